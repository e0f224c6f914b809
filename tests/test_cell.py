"""Whole cells through the real command line, on the tiny pipeline: finished, repeated, killed, interrupted, failing in a sweep."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Command
from offline import offline_run, summary_of

from udpbench.benchmark.facts import FACTS
from udpbench.benchmark.stage import Stage
from udpbench.core.images import write_metadata, write_png
from udpbench.results.gather import _some
from udpbench.results.record import read_records

ARMS = ["pretrained", "upper_bound", "clean", "noise", "protected", "purified", "clean_attacked"]
SMALL = [
    "model=local", "family=micro", "model.dtype=fp32", "data.size=16", "data.reference=8", "data.validation=4", "data.heldout=8", "task.steps=6",
    "task.pictures=6", "task.sample_steps=2", "task.save_every=2", "metrics.bundle.kernel_distance.minimum=4", "runtime.device=cpu",
    "runtime.threads=1", "track=none",
]  # fmt: skip
CELL = [
    *SMALL,
    "protect=eudp",
    "protect.rounds=1",
    "protect.model_steps=2",
    "protect.image_steps=4",
    "protect.samples=1",
    "attack=impress",
    "attack.iterations=3",
    "+metric@perturbation.bundle.inconsistency=inconsistency",
]
NOTES_IMPORTS = """
import atexit, os, sys
importers = []
class Notes:
    def find_spec(self, name, path=None, target=None):
        if name == "wandb":
            frame = sys._getframe(1)
            while frame and "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            importers.append("wandb<-" + frame.f_globals["__name__"])
sys.meta_path.insert(0, Notes())
atexit.register(lambda: open(os.environ["MODULES"], "w").write("\\n".join([*sys.modules, *importers])))
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory, tiny):
    """Starts the command from nothing; its process gets ``modules``, the file that names what was imported when it ended."""
    spy = tmp_path_factory.mktemp("spy")
    (spy / "sitecustomize.py").write_text(NOTES_IMPORTS)

    def start(*args: str, model: bool = True) -> Any:
        modules = spy / f"modules{len(list(spy.iterdir()))}"
        modules.touch()
        env = {**os.environ, "PYTHONPATH": str(spy), "MODULES": str(modules), "OMP_NUM_THREADS": "1", "COLUMNS": "110"}
        env.pop("HYDRA_FULL_ERROR", None)
        words = [sys.executable, "-m", "udpbench", *args, *([f"model.path={tiny}"] if model else [])]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(words, **pipes, text=True, env=env)
        process.modules = modules  # type: ignore[attr-defined]
        return process

    return start


def finish(process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=280)
    return process.returncode, out, err


def imported(process) -> set[str]:
    return set(process.modules.read_text().split())


def wait_until(process: Command, enough, seconds: float = 200.0) -> None:
    end = time.monotonic() + seconds
    while not enough():
        assert process.poll() is None, process.finish()
        assert time.monotonic() < end
        time.sleep(0.01)


def scores(record) -> dict[str, dict[str, float]]:
    return {arm: {k: m["value"] for k, m in part["metrics"].items()} for arm, part in record["arms"].items()}


@pytest.fixture(scope="module")
def whole(shell, tmp_path_factory):
    """A cell, done in one go: its folder, process, status and output."""
    out = tmp_path_factory.mktemp("whole")
    process = shell(*CELL, f"runtime.out={out}")
    return out, process, *finish(process)


@pytest.mark.slow
def test_a_whole_cell(whole):
    out, process, status, table, said = whole
    assert status == 0, said
    assert "error" not in said
    (record,) = read_records(out / "records")
    assert record["status"] == "ok"
    assert sorted(record["arms"]) == sorted(ARMS)
    assert record["cell"]["protect"] == "eudp"
    assert record["label"] == "local"
    assert record["knowledge"] == {"same_vae": True, "same_unet": True, "same_prompt": False}
    for part in record["arms"].values():
        assert {"kd_efflite0", "sim_train_efflite0", "subject_acc", "scene_acc"} <= set(part["metrics"])
        assert part["absent"]["frechet_distance"] == "needs 1000 pictures a side, there are 6"
        assert len(list(Path(part["images"]).glob("*.png"))) == 6
    for arm in ("noise", "protected"):
        assert 2 <= record["perturbation"][arm]["linf"] <= 8
    assert set(record["perturbation"]) == {"noise", "protected", "purified", "clean_attacked"}
    assert {a for a, c in record["perturbation"].items() if "inconsistency_auc_vs_noise" in c} == set(
        record["perturbation"]
    ) - {"noise"}
    assert record["counts"] == {"unet_image": 4 * 6, "unet_train": 2 * 4, "vae_purify": 3 * 6}
    assert all(not stage["cached"] and stage["device"] == "cpu" for stage in record["stages"])
    assert len({stage["key"] for stage in record["stages"]}) == len(record["stages"])
    assert sum(stage["name"].startswith("train") for stage in record["stages"]) == 5
    assert record["config"]["protect"]["rounds"] == 1


@pytest.mark.slow
def test_the_table_and_the_sheet_are_shown(whole):
    from udpbench.core import images

    out, _, _, table, said = whole
    for word in (*ARMS, "effect", "residual", "recovery", "subject_", "needs 1000 pictures", "no seed SD"):
        assert word in table, word
    (path,) = out.glob("cells/*/sheet.png")
    assert str(path) in said
    assert f"record: {next((out / 'records').glob('*.json'))}" in said
    sheet = images.read(path)
    assert min(sheet.shape[1:]) > 500
    assert float(sheet.std()) > 0.1


@pytest.mark.slow
def test_wandb_is_not_imported_unless_it_is_asked_for(whole):
    modules = imported(whole[1])
    assert "diffusers" in modules, "the list of modules is not that of the run"
    importers = {line.partition("<-")[2] for line in modules if line.startswith("wandb<-")}
    assert not [name for name in importers if name.startswith("udpbench")], "libraries may look for it"
    assert not list(whole[0].rglob("wandb"))


@pytest.mark.slow
def test_the_default_tracker_keeps_an_offline_run_of_the_scores(shell, tmp_path, monkeypatch):
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    words = [word for word in SMALL if not word.startswith("track=")]
    status, _, said = finish(shell(*words, "protect=none", "arms=[pretrained,clean]", f"runtime.out={tmp_path}"))
    assert (status, "error" in said) == (0, False), said
    (record,) = read_records(tmp_path / "records")
    (file,) = (tmp_path / "cells").glob("*/wandb/offline-run-*/run-*.wandb")
    run = offline_run(file)
    assert [begun.run_id for begun in run["run"]] == [file.parents[2].name]
    found = {name: json.loads(value) for name, value in summary_of(run).items()}
    for arm, told in scores(record).items():
        assert {metric: found[f"{arm}/{metric}"] for metric in told} == pytest.approx(told)
    losses = [item for row in run["history"] for item in row.item if "/".join(item.nested_key) == "clean/train/loss"]
    assert len(losses) == 6, "one for each step of the training"


@pytest.mark.slow
def test_the_same_command_again_does_nothing(whole, shell):
    out = whole[0]

    def there() -> dict[Path, int | bytes]:
        """When files were written; of those whose time says when a stage was last used, what is in them."""
        files = [p for p in (out / "store").rglob("*") if p.is_file() and "locks" not in p.parts]
        return {p: p.read_bytes() if p.name == FACTS else p.stat().st_mtime_ns for p in files}

    before = there()
    (first,) = read_records(out / "records")
    process = shell(*CELL, f"runtime.out={out}")
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    status, table, said = finish(process)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert status == 0
    assert "; 0 stages to do" in said
    assert table.splitlines()[:20] == whole[3].splitlines()[:20]
    assert there() == before
    (second,) = read_records(out / "records")
    assert scores(first) == scores(second)
    assert all(stage["cached"] for stage in second["stages"])
    assert "diffusers" not in imported(process), "nothing to do, and yet the model's library was loaded"
    assert end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime < 8


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_interrupted_then_killed_then_finished_is_as_if_in_one_go(whole, tiny, tmp_path):
    command = [*CELL, f"model.path={tiny}", f"runtime.out={tmp_path}"]

    def trained() -> int:
        return len(list(tmp_path.glob("store/train/*/_stage.json")))

    process = Command(*command)
    wait_until(process, lambda: trained() >= 1)
    process.send_signal(signal.SIGINT)
    status, _, said = process.finish()
    assert status == 130, said
    assert "interrupted; the same command goes on where this one stopped" in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("records/*"))
    had = trained()
    assert 1 <= had < 5

    process = Command(*command)
    wait_until(process, lambda: trained() > had)
    process.send_signal(signal.SIGKILL)
    assert process.finish()[0] == -signal.SIGKILL
    assert trained() < 5
    assert not list(tmp_path.glob("records/*"))

    status, _, said = Command(*command).finish()
    assert status == 0, said
    (resumed,) = read_records(tmp_path / "records")
    (record,) = read_records(whole[0] / "records")
    assert scores(resumed) == scores(record)
    assert resumed["perturbation"] == record["perturbation"]
    assert {k: a["key"] for k, a in resumed["arms"].items()} == {k: a["key"] for k, a in record["arms"].items()}
    assert not [path for path in tmp_path.glob("store/*/*.part") if path.is_dir()]


def sweep(tiny, tmp_path, pictures) -> tuple[int, str, str]:
    """A sweep whose first cell fails in its attack stage and whose second is fine."""
    from udpbench.core import images

    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        for i in range(4 if name == "good" else 3):
            images.write_png(tmp_path / name / f"{i:04d}.png", pictures[i])
    paths = f"attack.clean={tmp_path / 'bad'},{tmp_path / 'good'}"
    words = [
        *SMALL,
        "protect=none",
        "attack=folder",
        f"attack.path={tmp_path / 'good'}",
        "data.train=4",
        "arms=[clean_attacked]",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    ]
    return Command("-m", *words, paths, f"model.path={tiny}", f"runtime.out={tmp_path / 'out'}").finish()


def check_sweep(tmp_path, status: int, said: str) -> None:
    assert status == 1, said
    assert f"1 of 2 cells failed:\n  attack.clean={tmp_path / 'bad'}: ValueError: " in said
    assert [p.parent.name for p in (tmp_path / "sweep").rglob("failed-*.json")] == ["0"]
    records = {r["status"]: r for r in read_records(tmp_path / "out" / "records")}
    assert set(records) == {"ok", "failed"}
    assert records["failed"]["error"].startswith("Traceback")
    assert "must have exactly one picture for 0003.png" in records["failed"]["error"].splitlines()[-1]
    assert records["failed"]["arms"] == {}
    assert records["failed"]["config"]["attack"]["clean"].endswith("bad")
    assert list(records["ok"]["arms"]) == ["clean_attacked"]
    assert "error: ValueError: images: " in said
    assert "the traceback is in " in said


@pytest.mark.slow
def test_a_failing_cell_does_not_stop_a_sweep(tiny, tmp_path, pictures):
    others = [tmp_path / "sweep" / "failed.txt", tmp_path / "sweep" / "7" / "failed-0123abcd.json"]
    for other in others:  # somebody's own file, and that of an earlier sweep into the same folder
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_text("1")
    status, _, said = sweep(tiny, tmp_path, pictures)
    assert all(other.read_text() == "1" for other in others)
    others[1].unlink()
    check_sweep(tmp_path, status, said)


@pytest.mark.slow
def test_a_full_disk_is_told_in_a_line_and_the_command_goes_on_when_there_is_room(tiny, tmp_path):
    def mount(*options: str) -> bool:
        return subprocess.run(["mount", *options, str(tmp_path)], capture_output=True, check=False).returncode == 0

    command = [*CELL, "arms=[clean,protected]", f"model.path={tiny}", f"runtime.out={tmp_path}"]
    if not mount("-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        pytest.skip("needs the right to mount a small disk")
    try:
        status, _, said = Command(*command).finish()
        assert status == 1
        (line,) = [row for row in said.splitlines() if row.startswith("error: ")]
        assert str(tmp_path) in line
        assert line.endswith("free some space, or write elsewhere with runtime.out=DIR")
        assert "Traceback" not in said
        assert mount("-o", "remount,size=500m")
        status, _, said = Command(*command).finish()
        assert status == 0, said
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.slow
def test_help_is_quick_and_imports_no_torch(shell):
    """Under two seconds of processor time, the better of two: wall clock says more about the machine than about us."""
    spent = []
    for _ in range(2):
        process, start = shell("--help", model=False), resource.getrusage(resource.RUSAGE_CHILDREN)
        status, out, said = finish(process)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime)
        assert status == 0, said
        for word in (
            "protect: ace, ace_plus, ace_plus_released, ace_released, advdm, advdm_released",
            "attack: adverse_cleaner, best_of, blur",
            "python -m udpbench",
            "owner_prompt: class",
        ):
            assert word in out
    modules = imported(process)
    assert "hydra" in modules
    assert not modules & {"torch", "diffusers", "transformers", "wandb", "pandas", "numpy"}
    assert min(spent) < 2, spent


def test_importing_the_package_is_light(shell):
    code = "import sys, udpbench, udpbench.__main__; print([m for m in ('torch', 'numpy', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []


def test_edits_stand_under_the_picture_they_were_made_of_prompt_after_prompt(tmp_path):
    pictures, each = 10, 4
    stems = sorted(["cat", "cat-1", *(f"dog-{i}" for i in range(pictures - 2))], key=lambda stem: f"{stem}.png")
    rows = {}
    for i in range(pictures * each):  # sorted by their own names, the edits of cat-1 stand behind those of cat
        name = f"{stems[i // each]}-{i % each:02d}.png"
        write_png(tmp_path / name, torch.full((3, 8, 8), i / 255))
        rows[name] = {"text": "", "of": f"{stems[i // each]}.png"}
    write_metadata(tmp_path, rows)

    class OneFolder:
        def path(self, stage):
            return tmp_path

    stage = Stage("edit", {}, lambda *_: None)
    shown = [round(float(x.mean()) * 255) for x in _some(OneFolder(), stage, edits=True)]
    assert shown == [k * each + k % each for k in range(8)]
