"""Trackers: what is sent, when the device is read, and that nothing is opened for nothing."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from factory import make_record
from hydra.utils import instantiate
from offline import offline_run, summary_of
from omegaconf import OmegaConf
from PIL import Image

from udpbench.tracking import track as T
from udpbench.tracking.console import Console
from udpbench.tracking.dashboard import mirror
from udpbench.tracking.track_jsonl import Jsonl
from udpbench.tracking.track_tensorboard import Tensorboard
from udpbench.tracking.track_wandb import Wandb

CONF = Path(__file__).parent.parent / "conf" / "track"
CONFIG = {"protect": {"steps": 50}}


def events(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def started(tracker: T.Tracker, folder: Path) -> T.Tracker:
    tracker.start(
        "ab12", "sweep", CONFIG, folder, ["eudp", "", "jpeg"]
    )  # a data set without a subject has an empty one
    return tracker


def test_jsonl_writes_everything_in_order(tmp_path: Path) -> None:
    log = started(Jsonl(), tmp_path)
    log.scalar("train/loss", torch.tensor(0.5), 0)
    log.scalar("train/loss", 0.25, 1)
    log.finish("ok")
    start, first, second, finish = events(tmp_path / "track.jsonl")
    assert start == {
        "event": "start", "run_id": "ab12", "group": "sweep", "tags": ["eudp", "jpeg"], "config": CONFIG,
    }  # fmt: skip
    assert (first["value"], first["step"], second["value"], second["step"]) == (0.5, 0, 0.25, 1)
    assert finish == {"event": "finish", "status": "ok"}
    log.start("ab13", "sweep", CONFIG, tmp_path)
    log.table("scores", [{"arm": "clean", "distance": 1.5}])
    log.images("sheet", [tmp_path / "sheet.png"])
    log.finish("failed")
    kinds = [e["event"] for e in events(tmp_path / "track.jsonl")]
    assert kinds == ["start", "scalar", "scalar", "finish", "start", "table", "images", "finish"]


def test_a_loss_that_is_no_number_is_valid_json(tmp_path: Path) -> None:
    log = started(Jsonl(), tmp_path)
    log.scalar("loss", torch.tensor(float("nan")), 0)
    log.scalar("loss", float("-inf"), 1)
    log.finish("failed")
    assert [e["value"] for e in events(tmp_path / "track.jsonl")[1:3]] == ["nan", "-inf"]


@pytest.mark.parametrize("tracker", [Wandb(), Jsonl(), Tensorboard(), T.Nothing()])
def test_a_cell_that_logs_nothing_leaves_no_trace(tracker: T.Tracker, tmp_path: Path) -> None:
    started(tracker, tmp_path / "cell").finish("ok")
    assert list(tmp_path.iterdir()) == []


def test_tensors_are_read_fifty_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    original = torch.Tensor.tolist

    def counting(x: torch.Tensor) -> list[float]:
        reads.append(x.numel())
        return original(x)

    monkeypatch.setattr(torch.Tensor, "tolist", counting)
    log = started(Jsonl(), tmp_path)
    loss = torch.tensor(2.0, requires_grad=True)
    for step in range(120):
        log.scalar("train/loss", loss * step, step)
        assert len(reads) == (step + 1) // 50
    log.finish("ok")
    assert reads == [50, 50, 20]
    assert [e["value"] for e in events(tmp_path / "track.jsonl")[1:-1]] == [2.0 * s for s in range(120)]


def test_logging_before_start_is_an_error(tmp_path: Path) -> None:
    log = Jsonl()
    log.scalar("a", 1.0, 0)
    with pytest.raises(ValueError, match="before start"):
        log.finish("ok")


class Broken(T.Buffered):
    """A tracker whose other end is gone."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error, self.tried = error, 0

    def open(self, started: T.Start) -> str:
        return "open"

    def send(self, scalars: Any) -> None:
        self.tried += 1
        raise self.error

    def images(self, name: str, paths: Any) -> None:
        raise self.error


def test_a_tracker_that_breaks_ends_no_cell_and_says_so_once(tmp_path: Path) -> None:
    broken, shown = Broken(ConnectionResetError("connection lost")), io.StringIO()
    log = T.Tracked(Console(shown), broken)
    started(broken, tmp_path)
    for step in range(3 * T.BUFFER):
        log.scalar("train/loss", torch.tensor(0.5), step)
    mirror(make_record(), tmp_path / "sheet.png", broken)
    broken.finish("ok")
    assert broken.tried == 1
    said = "tracking stopped: ConnectionResetError: connection lost; the cell goes on"
    assert shown.getvalue().splitlines() == [said]
    started(broken, tmp_path)  # the next cell
    mirror(make_record(), tmp_path / "sheet.png", broken)
    assert shown.getvalue().splitlines() == [said, said]


def test_the_folder_of_a_tracker_may_go_and_a_user_may_stop(tmp_path: Path) -> None:
    shown, file = io.StringIO(), Jsonl("sub/track.jsonl")
    log = T.Tracked(Console(shown), started(file, tmp_path / "cell"))
    for step in range(T.BUFFER):
        log.scalar("train/loss", 0.5, step)
    shutil.rmtree(tmp_path / "cell")
    log.scalar("train/loss", 0.5, T.BUFFER)
    file.finish("ok")
    assert shown.getvalue().startswith("tracking stopped: FileNotFoundError")
    stopped = Broken(KeyboardInterrupt())
    T.Tracked(Console(shown), started(stopped, tmp_path)).scalar("train/loss", 0.5, 0)
    with pytest.raises(KeyboardInterrupt):
        stopped.finish("ok")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_wandb_offline_writes_a_run_that_can_be_synced(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "sheet.png")
    log = started(Wandb(), tmp_path / "cell")
    for step in range(3):
        log.scalar("train clean/loss", torch.tensor(1.0), step)
        log.scalar("train protected/loss", torch.tensor(1.0), step)
    log.table("scores", [{"arm": "clean", "distance": 1.5}])
    log.bars("distance by arm", {"clean": 1.5, "protected": 2.5})
    log.summary({"effect/distance": 1.0})
    log.images("sheet", [tmp_path / "sheet.png"])
    log.finish("ok")
    import wandb

    wandb.teardown()  # wandb's service writes the last block after finish; the end of a process waits for it as well
    (run,) = (tmp_path / "cell" / "wandb").glob("offline-run-*-ab12")
    assert (run / "run-ab12.wandb").stat().st_size > 500
    found = offline_run(run / "run-ab12.wandb")
    (begun,) = found["run"]
    assert (begun.project, begun.run_group, begun.display_name) == ("udpbench", "sweep", "eudp, jpeg")
    assert list(begun.tags) == ["eudp", "jpeg"]
    assert {item.key: json.loads(item.value_json) for item in begun.config.update}["protect"] == CONFIG["protect"]
    logged = [
        row for x in found["history"] for row in [{"/".join([i.key, *i.nested_key]).strip("/"): i for i in x.item}]
    ]
    losses = [json.loads(row["train protected/loss"].value_json) for row in logged if "train protected/loss" in row]
    steps = [json.loads(row["train protected/step"].value_json) for row in logged if "train protected/step" in row]
    assert (losses, steps) == ([1.0] * 3, [0, 1, 2])
    assert json.loads(summary_of(found)["effect/distance"]) == 1.0
    (table,) = (run / "files" / "media" / "table").glob("scores_*.table.json")
    assert json.loads(table.read_text()) == {
        **json.loads(table.read_text()),
        "columns": ["arm", "distance"],
        "data": [["clean", 1.5]],
    }
    assert list((run / "files" / "media" / "images").glob("sheet_*.png"))
    assert list((run / "files" / "media" / "table").glob("distance by arm_table_*.table.json"))


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.new("RGB", (8, 8)).save(tmp_path / "sheet.png")
    log = started(Tensorboard(), tmp_path / "cell")
    log.check()
    for step in range(3):
        log.scalar("train clean/loss", torch.tensor(step / 2), step)
    log.table("scores", [{"arm": "clean", "distance": 1.5}])
    log.images("sheet", [tmp_path / "sheet.png"])
    log.summary({"effect/distance": 1.0})
    log.finish("ok")
    found = EventAccumulator(str(tmp_path / "cell" / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("train clean/loss")] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert [e.value for e in found.Scalars("effect/distance")] == [1.0]
    assert found.Tags()["images"] == ["sheet"]


def test_without_its_package_tensorboard_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udpbench.tracking.track_tensorboard.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="its package is missing; pip install tensorboard"):
        Tensorboard().check()


def test_wandb_disabled_writes_nothing_but_runs(tmp_path: Path) -> None:
    log = started(Wandb(mode="disabled"), tmp_path / "cell")
    log.scalar("a/loss", 1.0, 0)
    log.finish("ok")
    assert list(tmp_path.rglob("*.wandb")) == []


def test_wrong_settings_are_refused_when_built() -> None:
    with pytest.raises(ValueError, match="unknown mode 'off'; allowed are offline, online, disabled"):
        Wandb(mode="off")
    with pytest.raises(ValueError, match="project is empty"):
        Wandb(project="")
    with pytest.raises(ValueError, match="path is empty"):
        Jsonl("")


def test_bars_and_lines_go_to_the_terminal_and_curves_to_the_tracker(tmp_path: Path) -> None:
    shown, now = io.StringIO(), [0.0]
    console, file = Console(shown, clock=lambda: now[0]), Jsonl()
    started(file, tmp_path)
    log = T.Tracked(console, file)
    with log.bar("train", 2, "step") as advance:
        advance(0)
        now[0] = 1.0
        advance(2)
        log.scalar("train/loss", 1.0, 0)
    log.say("done")
    file.finish("ok")
    assert shown.getvalue().splitlines() == ["train  2/2 step  2/s  in 0:01", "done"]
    assert [e["event"] for e in events(tmp_path / "track.jsonl")] == ["start", "scalar", "finish"]


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_option_can_be_built(path: Path) -> None:
    kinds = {"wandb": Wandb, "jsonl": Jsonl, "tensorboard": Tensorboard, "none": T.Nothing}
    assert type(instantiate(OmegaConf.load(path))) is kinds[path.stem]


@pytest.mark.slow
def test_no_tracking_never_imports_wandb() -> None:
    code = (
        "import sys; from pathlib import Path; import torch; from udpbench.tracking.track import Nothing; log = Nothing()\n"
        "log.start('a', 'b', {}, Path('nowhere')); log.scalar('x', torch.ones(()), 0); log.table('t', [{'a': 1}])\n"
        "log.images('i', [Path('x.png')]); log.finish('ok'); print('wandb' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
