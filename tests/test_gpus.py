"""Workers of one machine take one GPU each, the idlest first; several share one when there are more of them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from test_stage import fork, wait_for

from udpbench.commands import machine


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(machine.VISIBLE, raising=False)


def worker(given, go: Path) -> None:
    machine.claim_gpu(["0", "1", "2"])
    given.put((os.getpid(), os.environ[machine.VISIBLE]))
    machine.claim_gpu([os.environ[machine.VISIBLE]])  # the worker's next cell
    wait_for(go)


def test_each_worker_has_a_gpu_and_what_an_ended_one_had_is_taken_next(tmp_path):
    given, go = fork.SimpleQueue(), tmp_path / "go"
    first = [fork.Process(target=worker, args=(given, go)) for _ in range(6)]
    for process in first:
        process.start()
    has = dict(given.get() for _ in first)
    assert Counter(has.values()) == {"0": 2, "1": 2, "2": 2}
    freed = Counter(has[process.pid] for process in first[:2])
    for process in first[:2]:  # however it ends
        process.kill()
        process.join()
    further = [fork.Process(target=worker, args=(given, go)) for _ in range(2)]
    for process in further:
        process.start()
    assert Counter(gpu for _, gpu in (given.get() for _ in further)) == freed
    go.touch()
    for process in [*first[2:], *further]:
        process.join(20)
        assert process.exitcode == 0


def test_one_gpu_or_none_is_left_as_it_is(monkeypatch):
    for among in ([], ["3"]):
        machine.claim_gpu(among)
    assert machine.VISIBLE not in os.environ
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert machine.gpus() == ["0", "1"]
    monkeypatch.setenv(machine.VISIBLE, "GPU-a,GPU-b")
    assert machine.gpus() == ["GPU-a", "GPU-b"]
    assert (machine.places(), machine.places(4), machine.share_of_gpu(4)) == (2, 8, 0.25)


@pytest.mark.parametrize(("cores", "free", "wanted"), [(8, 1e12, 8), (8, 5e9, 2), (4, 1e9, 1)])
def test_without_a_gpu_there_is_room_for_as_many_as_cores_and_memory_allow(monkeypatch, cores, free, wanted):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(machine, "free_memory", lambda: free)
    assert machine.places() == machine.places(4) == wanted
    assert machine.share_of_gpu() == 0
