"""Eight workers at a grid of eight cells that share most of their work: each stage is done once, and nobody waits while there is other work."""

from __future__ import annotations

import errno
import itertools
import socket
import time
from collections import Counter

import pytest
import torch
from test_stage import make, start, wait_for

from udpbench.benchmark.run import run
from udpbench.benchmark.store import Store
from udpbench.interfaces import Log

pytestmark = pytest.mark.slow

SMALL = ["data.train=2", "data.reference=2", "data.validation=0", "data.heldout=2", "task.steps=2", "task.pictures=2", "task.sample_steps=1",
         "protect=noise", "arms=[clean,protected]"]  # fmt: skip


@pytest.fixture
def grid(graph):
    words = itertools.product(("budget.eps=4", "budget.eps=8"), ("attack=none", "attack=jpeg"), ("seed=0", "seed=1"))
    return [graph(*SMALL, *cell) for cell in words]


class Waits(Log):
    """Ends the wait as soon as it is told of."""

    def say(self, text: str) -> None:
        if text.startswith("waiting for"):
            raise TimeoutError(text)


def test_eight_workers_do_every_stage_once(grid, tmp_path):
    def work(i):
        torch.set_num_threads(1)
        store = Store(tmp_path / "store")
        run(grid[i], store)
        (tmp_path / f"{i}.done").write_text("\n".join(store.computed))

    workers = [start(lambda i=i: work(i)) for i in range(len(grid))]
    for worker in workers:
        worker.join(250)
    assert [worker.exitcode for worker in workers] == [0] * 8
    executed = Counter(key for file in tmp_path.glob("*.done") for key in file.read_text().split())
    unique = {stage.key for cell in grid for stage in cell.stages}
    linked = {path.name for path in tmp_path.glob("store/*/*") if path.is_symlink()}  # equal to another's, not done
    assert executed.keys() == unique - linked
    assert sum(executed.values()) / len(executed) == 1.0
    assert sum(len(cell.stages) for cell in grid) > 2 * len(unique), "the cells share work"
    assert not list((tmp_path / "store" / "locks").iterdir())


def test_a_worker_waits_for_another_only_when_nothing_else_of_its_cell_can_be_done(grid, tmp_path):
    cell = grid[-1]
    (protect,) = [stage for stage in cell.stages if stage.name == "protect"]
    busy = Store(tmp_path).leases.of(protect.name, protect.key)

    def depends(stage):
        return stage.key == protect.key or any(map(depends, stage.parents.values()))

    with busy, pytest.raises(TimeoutError, match="waiting for noise|waiting for protect noise"):
        run(cell, mine := Store(tmp_path, log=Waits()))
    assert {stage.key for stage in cell.stages if not depends(stage)} == set(mine.computed)
    assert any(stage.name == "train" for stage in cell.stages if stage.key in mine.computed)
    assert run(cell, mine) == {stage.key for stage in cell.stages if depends(stage)}


def test_of_many_hosts_one_takes_over_what_a_lost_host_was_at(tmp_path, monkeypatch):
    """Seven processes that call themselves hosts of their own, with clocks hours apart and no flock, wait for an eighth, which is killed."""

    def no_flock(*arguments):
        raise OSError(errno.ENOSYS, "flock")

    clock = time.time
    monkeypatch.setattr("udpbench.benchmark.leases.LEASE", 1.5)
    attempts = tmp_path / "attempts"

    def work(out, parents, run):
        with attempts.open("a") as file:
            file.write(f"{socket.gethostname()} begins\n")
        time.sleep(
            60 if socket.gethostname() == "node-0" else 3
        )  # alive for twice as long as a silent one is waited for
        (out / "text").write_text("x")

    def host(i):
        monkeypatch.setattr("socket.gethostname", lambda: f"node-{i}")
        monkeypatch.setattr("fcntl.flock", no_flock)
        monkeypatch.setattr("time.time", lambda: clock() + 3600 * (i - 4))
        Store(tmp_path / "store").do(make(work=work))

    lost = start(lambda: host(0))
    wait_for(attempts)
    others = [start(lambda i=i: host(i)) for i in range(1, 8)]
    time.sleep(3)
    assert attempts.read_text() == "node-0 begins\n", "a host that is alive keeps what it is at"
    lost.kill()
    for other in others:
        other.join(60)
    assert [other.exitcode for other in others] == [0] * 7
    assert len(attempts.read_text().splitlines()) == 2, attempts.read_text()
    assert not Store(tmp_path / "store").damage(make(work=work))
