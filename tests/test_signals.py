"""A process that is asked to end writes a checkpoint first, whoever asks; what handled the signal before is told."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from forked import Command
from hydra.core.hydra_config import HydraConfig
from shared import on, small
from test_stage import make, start, wait_for
from test_workers import alive
from tqdm import tqdm

from udpbench.benchmark.store import Store
from udpbench.commands import run as run_command
from udpbench.commands import signals
from udpbench.commands.preparing import composed
from udpbench.commands.signals import HEEDED, heeded, leave_to_parent
from udpbench.core.errors import ConfigError, Stopped
from udpbench.interfaces import Run
from udpbench.optim.fit import FitSettings, fit
from udpbench.results.record import read_records


def train(checkpoint: Path | None, stop_at: int | None = None) -> list[torch.Tensor]:
    """Ten steps of a training whose process is asked to end in step ``stop_at``."""
    run, w = Run(), torch.nn.Parameter(torch.ones(3))

    def loss(step: int) -> torch.Tensor:
        if step == stop_at:
            run.stop.set()
        return (w - torch.randn(3, generator=run.rng("x", step))).square().sum()

    fit([w], loss, FitSettings(steps=10, lr=0.1), run, checkpoint=checkpoint)
    return [w.detach()]


@pytest.mark.parametrize("step", [0, 4, 8])
def test_a_training_that_is_asked_to_end_saves_the_step_it_is_at_and_goes_on_to_the_same_bits(tmp_path, step):
    file = tmp_path / "checkpoint.pt"
    with pytest.raises(Stopped):
        train(file, step)
    assert torch.load(file, weights_only=True)["step"] == step + 1
    assert torch.equal(train(file)[0], train(None)[0])


def test_a_training_without_a_checkpoint_or_in_its_last_step_is_finished(tmp_path):
    assert torch.equal(train(None, 3)[0], train(None)[0])
    assert torch.equal(train(tmp_path / "checkpoint.pt", 9)[0], train(None)[0])


def test_nothing_is_begun_after_a_process_was_asked_to_end(tmp_path):
    store, calls = Store(tmp_path), []
    first = make(work=lambda out, parents, run: (calls.append("first"), store.stop.set()))
    with pytest.raises(Stopped):
        store.do(make("b", parents={"p": first}, calls=calls))
    assert calls == ["first"]
    assert store.finished(first)


@pytest.mark.parametrize("number", HEEDED, ids=lambda n: n.name)
def test_a_signal_ends_the_process_with_its_number_once_the_work_may_stop(tmp_path, number):
    at_work = tmp_path / "at_work"

    def work(out, parents, run):
        at_work.touch()
        while True:
            time.sleep(0.01)
            run.stop_if_asked()

    def process():
        with heeded(store := Store(tmp_path / "store")):
            store.do(make(work=work))

    child = start(process)
    wait_for(at_work)
    os.kill(child.pid, number)
    child.join(20)
    assert child.exitcode == 128 + number


def test_work_that_never_may_stop_is_stopped_when_the_time_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "GRACE", 0.3)
    at_work = tmp_path / "at_work"

    def work(out, parents, run):
        at_work.touch()
        time.sleep(60)

    def process():
        with heeded(store := Store(tmp_path / "store")):
            store.do(make(work=work))

    child, began = start(process), time.monotonic()
    wait_for(at_work)
    os.kill(child.pid, signal.SIGTERM)
    child.join(20)
    assert child.exitcode == 143
    assert time.monotonic() - began < 20


def test_who_handled_a_signal_before_is_told_once_the_work_has_ended(tmp_path):
    """As submitit, which then has the job queued again."""
    told: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: told.append(number))
    try:
        with pytest.raises(SystemExit) as end, heeded(store := Store(tmp_path)):  # noqa: PT012
            signal.raise_signal(signal.SIGUSR2)
            assert not told
            store.do(make())
        assert end.value.code == 128 + signal.SIGUSR2
        assert told == [signal.SIGUSR2]
        with heeded(Store(tmp_path)):  # a signal after which all there was to do got done
            signal.raise_signal(signal.SIGUSR2)
        assert told == [signal.SIGUSR2]
        signal.raise_signal(signal.SIGUSR2)
        assert told == [signal.SIGUSR2] * 2, "its handler is back"
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.slow
def test_two_processes_at_a_cell_write_their_checkpoints_and_the_same_command_goes_on(tiny, tmp_path):
    words = [sys.executable, "-m", "udpbench", *on(tiny), "data.size=16", "data.reference=2", "data.heldout=2", "data.validation=0", "track=none",
             "protect=noise", "attack=none", "arms=[clean,protected]", "task.steps=60", "task.save_every=100000", "task.pictures=2",
             "runtime.workers=2", "runtime.threads=1", f"runtime.out={tmp_path}"]  # fmt: skip
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    end = time.monotonic() + 200
    while len(list(tmp_path.glob("store/train/*.part/_begun.json"))) < 2:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.1)
    children = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=100)[1]
    assert process.returncode == 143, said
    assert "SIGTERM: interrupted; the same command goes on where this one stopped" in said
    while any(map(alive, children)):
        assert time.monotonic() < end
        time.sleep(0.1)
    saved = [torch.load(p, weights_only=True)["step"] for p in tmp_path.glob("store/train/*.part/checkpoint.pt")]
    assert len(saved) == 2
    assert all(0 < step < 60 for step in saved)
    assert not list(tmp_path.glob("records/*"))
    status, _, said = Command(*words[3:]).finish(200)
    assert status == 0, said
    assert "error" not in said
    assert [r["status"] for r in read_records(tmp_path / "records")] == ["ok"]


@pytest.mark.slow
def test_a_grid_in_parallel_that_is_interrupted_leaves_nothing_running_and_goes_on(tiny, tmp_path):
    words = ["-m", *on(tiny), "data.size=16", "data.train=2", "data.reference=2", "data.heldout=2", "data.validation=0", "track=none", "protect=none",
             "attack=none", "arms=[clean]", "seed=0,1", "task.steps=200", "task.save_every=100000", "task.pictures=2", "task.sample_steps=1",
             "runtime.threads=1", f"runtime.out={tmp_path}", "hydra/launcher=local", "hydra.launcher.n_jobs=2"]  # fmt: skip

    def steps() -> dict[str, int]:
        checkpoints = tmp_path.glob("store/train/*.part/checkpoint.pt")
        return {p.parent.name: torch.load(p, weights_only=True)["step"] for p in checkpoints}

    trained = dict[str, int]()
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        command, end = Command(*words), time.monotonic() + 200
        while len(list(tmp_path.glob("store/locks/train-*.lease"))) < 2:
            assert time.monotonic() < end
            assert command.poll() is None
            time.sleep(0.05)
        children = [int(p) for p in Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()]
        assert len(children) >= 2
        command.send_signal(number)
        ended, _, said = command.finish(60)
        assert ended == status, said
        assert said.count("interrupted; the same command goes on where this one stopped") >= 2, said
        assert "Traceback" not in said
        while any(map(alive, children)):  # Python's own for semaphores a moment longer
            assert time.monotonic() < end
            time.sleep(0.05)
        before, trained = trained, steps()  # one that had not come to its first step has none
        assert before.keys() <= trained.keys()
        assert all(max(1, before.get(name, 0)) <= step < 200 for name, step in trained.items())
    assert trained


def _with_a_bar(end) -> None:
    leave_to_parent(lambda: None)
    bar = tqdm([], file=io.StringIO())
    end.send(isinstance(bar.get_lock(), type(threading.RLock())))


@pytest.mark.slow
def test_a_process_that_another_one_started_leaves_no_semaphore_of_bars():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_with_a_bar, args=(theirs,))
    process.start()
    assert ours.poll(60)
    assert ours.recv()
    process.join()


@pytest.mark.slow
@pytest.mark.parametrize("grid", [True, False])
def test_what_nobody_foresaw_before_a_cell_begins_ends_that_cell_only(tiny, tmp_path, monkeypatch, capsys, grid):
    begun, prepared = [], run_command.prepare

    def prepare(cfg, *given):
        if cfg.seed == 0:
            raise KeyError("of a method")
        return prepared(cfg, *given)

    words = [*small(tiny), "protect=noise", "runtime.device=cpu", f"runtime.out={tmp_path}"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_command, "prepare", prepare)
    monkeypatch.setattr(run_command, "execute", lambda ready, *_, **__: begun.append(ready.cell.seed))
    monkeypatch.setattr(sys, "argv", ["udpbench", *words, *(["-m", "seed=0,1"] if grid else ["seed=0"])])
    with pytest.raises(SystemExit if grid else KeyError) as end:
        run_command.run()
    if not grid:
        return
    assert end.value.code == 1
    assert begun == [1]
    said = capsys.readouterr().err
    assert "error: KeyError: 'of a method'" in said
    assert "1 of 2 cells failed:\n  seed=0: KeyError: 'of a method'" in said


@pytest.mark.slow
def test_a_lost_cell_that_cannot_be_prepared_here_is_a_failed_one(tmp_path, monkeypatch, capsys):
    def prepare(*_):
        raise ConfigError("runtime.device: no GPU here")

    sweep = ["hydra.mode=MULTIRUN", "hydra.job.num=3", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir='3'"]
    monkeypatch.setattr(run_command, "prepare", prepare)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    run_command.give_up(composed(sweep), "its worker was killed")
    assert "no record of the lost cell: runtime.device: no GPU here" in capsys.readouterr().err
    (noted,) = (tmp_path / "3").glob("failed-*.json")
    assert json.loads(noted.read_text())["reason"] == "its worker was killed"


@pytest.mark.slow
def test_after_a_signal_that_a_cell_outlived_no_other_one_is_begun(tiny, tmp_path, monkeypatch, capsys):
    begun = []

    def execute(ready, *_, **__):
        begun.append(ready.cell.seed)
        signal.raise_signal(signal.SIGUSR1)

    words = [*small(tiny), "protect=noise", "runtime.device=cpu", f"runtime.out={tmp_path}"]
    monkeypatch.setattr(run_command, "execute", execute)
    monkeypatch.setattr(sys, "argv", ["udpbench", "-m", *words, "seed=0,1"])
    with pytest.raises(SystemExit) as end:
        run_command.run()
    assert end.value.code == 128 + signal.SIGUSR1
    assert begun == [0]
    assert "SIGUSR1: interrupted; the same command goes on where this one stopped" in capsys.readouterr().err
