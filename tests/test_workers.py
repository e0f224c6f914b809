"""Processes that share the arms of a cell."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, nullcontext
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from shared import composed, on

from udpbench.commands import machine, preparing, run, workers
from udpbench.commands.preparing import prepare
from udpbench.interfaces import Log

pytestmark = pytest.mark.slow  # every test composes a configuration or starts processes

CELL = ["data.size=16", "task.steps=4", "task.pictures=8", "task.sample_steps=4", "data.reference=8", "data.heldout=8", "data.validation=0", "attack=jpeg",
        "protect.rounds=1", "protect.model_steps=1", "protect.image_steps=2", "metrics.bundle.kernel_distance.minimum=8", "track=jsonl"]  # fmt: skip


def command(tiny: Path, out: Path, n: int | str, *words: str) -> list[str]:
    shared = [f"runtime.workers={n}", f"runtime.out={out}", "runtime.threads=1"]
    return [sys.executable, "-m", "udpbench", *on(tiny), *CELL, *shared, *words]


def record(out: Path) -> dict:
    (path,) = out.glob("records/*.json")
    return json.loads(path.read_text())


def test_two_processes_make_the_record_of_one(tiny, tmp_path, monkeypatch, capsys):
    def here(n: int | str, out: Path) -> str:
        monkeypatch.setattr(sys, "argv", command(tiny, out, n)[2:])
        run.run()
        return capsys.readouterr().err

    done = subprocess.run(command(tiny, tmp_path / "2", 2), capture_output=True, text=True, check=True)
    said = {1: here(1, tmp_path / "1"), 2: done.stderr}
    found, curves = {}, {}
    for n in (1, 2):
        assert ("by 2 processes" in said[n]) == (n == 2)
        assert "waiting for" not in said[n], "for one another is nothing to tell"
        found[n] = record(tmp_path / str(n))
        (log,) = (tmp_path / str(n) / "cells").rglob("*.jsonl")
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        curves[n] = {(row["name"], row["step"]): row["value"] for row in rows if row["event"] == "scalar"}
    for of in found.values():
        for arm in of["arms"].values():
            for place in ("images", "pictures"):  # where they lie
                arm.pop(place, None)
    assert found[1]["arms"] == found[2]["arms"]
    assert found[1]["counts"] == found[2]["counts"]
    assert not any(stage["cached"] for stage in found[2]["stages"]), "what a worker did was done now"
    assert curves[1] == curves[2] != {}
    assert "0 stages to do\n" in here("auto", tmp_path / "2"), "and nobody else is started for it"


def test_what_ends_a_worker_is_told(monkeypatch):
    """It may be its own GPU that is full: the main process need not meet the same."""

    def fails(*_, **__):
        raise RuntimeError("no memory left\nmore of it")

    class Said(Log):
        def say(self, text: str) -> None:
            lines.append(text)

    lines: list[str] = []
    store = SimpleNamespace(computed=["a"], log=Said())
    monkeypatch.setattr(workers, "leave_to_parent", lambda ended: None)
    monkeypatch.setattr(workers, "heeded", lambda store: nullcontext())
    monkeypatch.setattr(workers, "prepare", lambda *_: SimpleNamespace(graph=None, store=store, scores=True))
    monkeypatch.setattr(workers, "run", fails)
    ours, theirs = Pipe(duplex=False)
    workers._work({"runtime": {}}, {}, "cpu", torch.get_num_threads(), theirs)
    main = SimpleNamespace(computed=[], log=Said())
    for _ in range(2):
        kind, *what = ours.recv()
        workers._pass_on(kind, what, ours, ExitStack(), {}, main)
    assert lines == ["a worker process ended with RuntimeError: no memory left; the others do its work"]
    assert main.computed == ["a"], "what it had done is known all the same"


def test_workers_end_with_the_process_that_started_them(tiny, tmp_path):
    words = command(tiny, tmp_path / "out", 2, "task.steps=100000")
    main = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    children: list[int] = []
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "out" / "store").glob("train/*.part"))) < 2:
        assert time.monotonic() < deadline
        assert main.poll() is None
        time.sleep(0.2)
    for status in Path("/proc").glob("[0-9]*/status"):
        text = status.read_text() if status.exists() else ""
        if re.search(rf"^PPid:\t{main.pid}$", text, re.MULTILINE):
            children.append(int(status.parent.name))
    assert children
    main.send_signal(signal.SIGKILL)
    main.wait()
    while any(alive(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_the_work_of_a_killed_worker_is_taken_over_at_once_and_told(tiny, tmp_path):
    words = command(tiny, tmp_path / "out", 2, "task.steps=300", "arms=[clean,noise]")
    main = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "out" / "store").glob("train/*.part"))) < 2:
        assert time.monotonic() < deadline
        assert main.poll() is None
        time.sleep(0.1)
    (worker,) = [pid for pid in children_of(main.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(worker, signal.SIGKILL)
    killed = time.monotonic()
    _, said = main.communicate(timeout=280)
    assert main.returncode == 0, said
    assert "a worker process was killed, as the system does when memory runs out; the others do its work" in said
    assert time.monotonic() - killed < 100, "the holder of a lock that is gone was waited for"
    assert record(tmp_path / "out")["status"] == "ok"


def children_of(pid: int) -> list[int]:
    statuses = {s: s.read_text() for s in Path("/proc").glob("[0-9]*/status") if s.exists()}
    return [int(s.parent.name) for s, text in statuses.items() if re.search(rf"^PPid:\t{pid}$", text, re.MULTILINE)]


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.parametrize(
    ("cores", "free", "wanted"), [(8, 1e12, 5), (2, 1e12, 2), (8, 5e9, 2), (1, 1e12, 1), (8, 1e9, 1)]
)
def test_there_are_as_many_as_cores_arms_and_memory_allow(tmp_path, monkeypatch, cores, free, wanted):
    """The cell trains for five arms: clean, noise, protected, purified, clean_attacked."""
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(machine, "free_memory", lambda: free)
    ready = prepare(preparing.composed(["attack=jpeg", f"runtime.out={tmp_path}", "track=none"]))
    assert workers.workers_for("auto", ready) == wanted
    assert workers.workers_for(3, ready) == 3
    model = ready.cell.victim.component
    assert workers.threads_for("auto", model, wanted) == 1, "so that no digit depends on the number of cores"
    assert workers.threads_for(2, model, wanted) == 2


def test_a_larger_model_has_the_idle_cores_for_itself(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(machine, "free_memory", lambda: 1e12)
    monkeypatch.setattr(workers, "idle_cores", lambda: 5)
    ready = prepare(composed(tiny, f"runtime.out={tmp_path}"))
    assert workers.workers_for("auto", ready) == 1
    model = ready.cell.victim.component
    assert [workers.threads_for("auto", model, n) for n in (1, 2, 8)] == [5, 2, 1]
    monkeypatch.setattr(workers, "cores", lambda: 8)
    together = [workers.threads_for("auto", model, 1, n) for n in (2, 4, 16)]
    assert together == [4, 2, 1], "cells that begin together all find the machine idle"


def test_who_calls_it_has_as_many_threads_afterwards_as_before(tiny, tmp_path):
    cfg = composed(tiny, f"runtime.out={tmp_path}", "runtime.threads=1")
    ready, before = prepare(cfg), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), workers.shared(ready, cfg, None):  # noqa: PT012
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("load", "idle"), [(0.1, 8), (2.6, 5), (30.0, 1)])
def test_idle_cores_are_those_that_the_load_leaves(monkeypatch, load, idle):
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert machine.idle_cores() == idle
