"""Several processes at one grid: shared stages are done once, a failing cell stops nobody, lines say whose they are."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import Command
from hydra.core.utils import JobReturn, JobStatus
from shared import on

from hydra_plugins.udpbench_launchers import LocalLauncher, _Turns
from udpbench.benchmark.graph import Graph
from udpbench.benchmark.stage import Stage
from udpbench.benchmark.store import Store
from udpbench.core import images
from udpbench.core.errors import ConfigError
from udpbench.interfaces import Protection
from udpbench.results.record import read_records
from udpbench.tracking.console import Console

CELLS, WORKERS = 3, 2


@pytest.fixture(scope="module")
def swept(tiny, pictures, tmp_path_factory):
    """A grid of three cells on two workers, differing in pictures protected elsewhere; those of the second are wrong,
    which shows when they are read.

    Its folder, and its status and what it said when it has ended.
    """
    root = tmp_path_factory.mktemp("swept")
    for cell in range(CELLS):
        (root / f"protected{cell}").mkdir()
        for i in range(3 if cell == 1 else 4):
            images.write_png(root / f"protected{cell}" / f"{i:04d}.png", pictures[i].roll(cell, -1))
    words = [
        *on(tiny), "data.size=16", "data.train=4", "data.reference=8",
        "data.validation=4", "data.heldout=8", "task.steps=4", "task.pictures=6", "task.sample_steps=2", "track=none",
        "protect=folder", f"protect.path={','.join(str(root / f'protected{cell}') for cell in range(CELLS))}", "attack=none",
        "arms=[pretrained,clean,protected]", "runtime.device=cpu", "runtime.threads=1", f"runtime.out={root / 'out'}",
        f"hydra.sweep.dir={root / 'sweep'}", "hydra/launcher=local", f"hydra.launcher.n_jobs={WORKERS}",
    ]  # fmt: skip
    status, _, said = Command("-m", *words).finish()
    return root, status, said


def computed(root: Path) -> list[str]:
    """The keys of the stages that the cells' records call their own work."""
    return [s["key"] for r in read_records(root / "out" / "records") for s in r["stages"] if not s["cached"]]


@pytest.mark.slow
def test_workers_share_stages_and_none_is_done_twice(swept):
    root, _, said = swept
    facts = [json.loads(path.read_text()) for path in (root / "out" / "store").glob("*/*/_stage.json")]
    kinds = Counter(f["stage"] for f in facts)
    # pretrained, clean and two perturbations; the data set
    assert {k: kinds[k] for k in ("data", "protect", "train", "generate")} == {
        "data": 1, "protect": 2, "train": 3, "generate": 4,
    }, said  # fmt: skip
    assert len(computed(root)) == len(set(computed(root)))
    # The failing cell has no list of stages in its record, but says what it does like the others.
    for line in ("clean: train  4/4", "clean: generate  6/6", "pretrained: generate  6/6", "clean: render"):
        assert said.count(line) == 1, said
    assert said.count("folder: train  4/4") == 2


@pytest.mark.slow
def test_a_cell_that_another_process_is_at_comes_back_after_the_others(tiny, graph, tmp_path):
    said = sweep_beside_another_process(tiny, graph, tmp_path)
    assert said.count("other processes are computing its remaining stages") == 1, said


def sweep_beside_another_process(tiny: Path, graph: Callable[..., Graph], tmp_path: Path, *launcher: str) -> str:
    """What a grid of three cells says, one at a time, while another process is at a stage of the first until the others are done."""
    words = ["data.train=2", "data.reference=2", "data.validation=0", "data.heldout=2", "task.steps=2", "task.pictures=2",
             "task.sample_steps=1", "track=none", "protect=noise", "attack=none", "arms=[clean,protected]"]  # fmt: skip
    stages = graph(*words, "seed=0").stages
    (held,) = [
        stage for stage in stages if stage.name == "train" and any(p.name == "protect" for p in stage.parents.values())
    ]
    records = tmp_path / "records"
    with Store(tmp_path / "store").leases.of(held.name, held.key):
        command = Command("-m", *on(tiny), "data.size=16", *words, "seed=0,1,2", "runtime.workers=1", "runtime.threads=1",
                          "runtime.device=cpu", f"runtime.out={tmp_path}", *launcher)  # fmt: skip
        end = time.monotonic() + 200
        while len(list(records.glob("*.json"))) < 2:
            assert command.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
    status, _, said = command.finish()
    assert status == 0, said
    found = {r["cell"]["seed"]: r for r in read_records(records)}
    assert {seed: r["status"] for seed, r in found.items()} == {0: "ok", 1: "ok", 2: "ok"}
    own = [s["key"] for r in found.values() for s in r["stages"] if not s["cached"]]
    assert len(own) == len(set(own))
    assert {stage.key for stage in stages} <= {
        *own,
        *(path.name for path in tmp_path.glob("store/*/*") if path.is_symlink()),
    }
    return said


def test_the_turns_of_cells_that_others_are_at():
    def left(*keys):
        return JobReturn(status=JobStatus.COMPLETED, _return_value=list(keys))

    turns = _Turns([7, 8, 9])
    assert turns.take() == (7, {"patient": False, "before": []})
    assert turns.came_back(7, left("a"))  # something was done of it
    for number in (8, 9):
        assert turns.take() == (number, {"patient": False, "before": []})
        assert turns.came_back(number, left())
    assert turns.take() == (7, {"patient": False, "before": ["a"]})
    assert turns.came_back(7, left("a"))
    assert turns.take() == (8, {"patient": True, "before": []}), "all three were tried in vain"
    assert not turns.came_back(8, JobReturn(status=JobStatus.COMPLETED))
    assert turns.take()[1]["patient"] is False
    assert turns.take()[1]["patient"] is True, "the last one"
    turns.waiting.append(7)
    assert turns.take(begun=1)[1]["patient"] is False, "another may be waiting for a worker"


@pytest.mark.slow
def test_a_failing_cell_stops_no_worker_and_the_status_is_1(swept):
    root, status, said = swept
    assert status == 1, said
    summary = f"1 of 3 cells failed:\n  protect.path={root / 'protected1'}: ValueError: "
    assert summary in said
    assert "0003.png" in said.split(summary)[1]
    records = read_records(root / "out" / "records")
    assert Counter(r["status"] for r in records) == {"ok": 2, "failed": 1}
    (failed,) = [r for r in records if r["status"] == "failed"]
    assert failed["error"].startswith("Traceback")
    assert "0003.png" in failed["error"].splitlines()[-1]
    assert failed["arms"] == {}
    assert [p.parent.name for p in (root / "sweep").rglob("failed-*.json")] == ["1"]
    assert "the traceback is in " in said
    assert all(list(r["arms"]) == ["pretrained", "clean", "protected"] for r in records if r["status"] == "ok")


@pytest.mark.slow
def test_every_line_of_several_workers_says_whose_it_is(swept):
    *_, said = swept
    first, *lines, _, _ = said.splitlines()  # the last two say what failed
    assert first == f"sweep: {CELLS} cells"
    assert {line.split(" ")[0] for line in lines} == {f"[{i}]" for i in range(CELLS)}, said
    assert [line for line in lines if line.startswith("[1] error: ValueError: ")]


class Dies(Protection):
    """Has its process asked to end when it is first asked, or killed whenever it is."""

    def __init__(self, when: str, mark: str) -> None:
        self.when, self.mark = when, mark

    def protect(self, owner, budget, surrogate, run):
        first = Path(f"{self.mark}-{self.when}")  # of its own: the other cell may be asked earlier
        if self.when == "always" or not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL if self.when == "always" else signal.SIGTERM)
        return [1 - x for x in owner.images]


@pytest.mark.slow
def test_the_cell_of_a_killed_worker_begins_again_and_one_that_always_kills_it_is_a_failed_record(tiny, tmp_path):
    small = ["data.size=16", "data.train=2", "data.reference=2", "data.validation=0", "data.heldout=2", "task.steps=2",
             "task.pictures=2", "task.sample_steps=1", "track=none", "attack=none", "arms=[protected]", "budget.eps=128", "runtime.device=cpu",
             "runtime.threads=1"]  # fmt: skip
    words = [*on(tiny), *small, "protect=none", f"protect._target_={__name__}.Dies", "+protect.when=first,always",
             f"+protect.mark={tmp_path / 'mark'}", f"runtime.out={tmp_path / 'out'}", "hydra/launcher=local", "hydra.launcher.n_jobs=2",
             "hydra.launcher.max_retries=1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]  # fmt: skip
    status, _, said = Command("-m", *words, path=(Path(__file__).parent,)).finish()
    assert status == 1, said
    killed = "its worker was killed, as the system does when memory runs out"
    for number in (0, 1):
        assert said.count(f"[{number}] {killed}; it begins again\n") == 1, said
    assert said.endswith(f"1 of 2 cells failed:\n  +protect.when=always: {killed}, 2 times\n")
    records = {r["config"]["protect"]["when"]: r for r in read_records(tmp_path / "out" / "records")}
    assert {when: r["status"] for when, r in records.items()} == {"first": "ok", "always": "failed"}
    assert records["always"]["error"].endswith(f"{killed}, 2 times\n")
    assert "Traceback" not in said


@pytest.mark.parametrize("n", [-1, 0, None, 1.5])
def test_a_number_of_jobs_that_means_nothing_is_refused(n):
    with pytest.raises(ConfigError, match=r"hydra.launcher.n_jobs: must be a whole number >= 1, given"):
        LocalLauncher(n, 3)


def test_a_worker_draws_no_bars_and_signs_its_lines(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")  # whatever the suite was started from

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream, alone = Terminal(), Terminal()
    for console in (Console(stream, worker="3"), Console(alone)):
        with console.bar("train", 2, "step") as advance:
            advance(2)
    assert stream.getvalue() == "[3] train  2/2 step  in 0:00\n"
    assert "\x1b[" in alone.getvalue()


def test_a_holder_that_is_done_before_it_is_named_is_no_error(tmp_path, monkeypatch):
    said: set[str] = set()
    stage = Stage("data", {}, lambda *_: None)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    (store := Store(tmp_path)).leases.wait(str(stage), stage.name, stage.key, said, store.log)
    assert said == set()
