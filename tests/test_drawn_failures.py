"""What fails while a cell or a grid runs, in any kind of stage: the record is as in one go, or says what failed, and the others go on."""

from __future__ import annotations

import copy
import os
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable

import pytest
import torch
from cells import KINDS, ORDER, Cells, Notes, check_record, drop, fork, once, quietly
from drawn import DRAWS, SEED
from omegaconf import DictConfig
from shared import composed

from udpbench.benchmark import store as store_module
from udpbench.interfaces import Protection
from udpbench.results.record import read_records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> Cells:
    return Cells(tiny, tmp_path_factory.mktemp("whole"))


# -- kills -------------------------------------------------------------------------------------------------------------


def dies(cfg: DictConfig, kind: str, seconds: float) -> None:
    """Do the cell, but kill this process so long after the first stage of a kind was begun."""
    work = store_module._work

    def doomed(stage, *rest):
        if stage.name == kind:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        work(stage, *rest)

    store_module._work = doomed
    quietly(cfg)


def test_killed_in_any_kind_of_stage_and_resumed_the_record_is_as_in_one_go(whole, tmp_path):
    rng, wanted = random.Random(int(SEED or 0)), max(3, DRAWS // 8)
    kinds = rng.sample(KINDS, len(KINDS))
    kills, tries = dict.fromkeys(KINDS, 0), 0
    while sum(kills.values()) < wanted:
        kind, cell = kinds[sum(kills.values()) % len(kinds)]
        where, record, configured = whole(cell)
        out, took = tmp_path / str(tries), max(s["seconds"] for s in record["stages"] if s["name"].split()[0] == kind)
        shutil.copytree(where, out, symlinks=True)
        drop(out, [*ORDER[ORDER.index(kind) :], "content"])
        shutil.rmtree(out / "records")
        process = fork.Process(target=dies, args=(configured(out), kind, rng.uniform(0, took + 0.05)))
        process.start()
        process.join()
        kills[kind, cell] += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL)
        once(configured(out))
        check_record(out, record)
        assert not [path for path in out.glob("store/*/*.part") if path.is_dir()], kind
        assert not (out / "store" / "damaged").exists(), kind
        shutil.rmtree(out)
        tries += 1
    print(f"{kills} kills in {tries} runs", flush=True)


# -- memory, and numbers that are none ---------------------------------------------------------------------------------

FAILS: dict[str, Callable[[], object]] = {
    "cpu": lambda: torch.empty(10**15),
    "python": lambda: bytearray(2**62),
    "gpu": lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")),
    "no_numbers": lambda: None,
}
SAID = {
    "cpu": "error: the machine has too little memory; give runtime.grad_batch=N",
    "python": "error: the machine has too little memory; give runtime.grad_batch=N",
    "gpu": "error: the GPU has too little memory; give runtime.grad_batch=N",
    "no_numbers": "error: ValueError: protect none: returned values for 0000.png that are not finite",
}


class Fails(Protection):
    """Asks for more memory than there is, or keeps no numbers."""

    def __init__(self, how: str) -> None:
        self.how = how

    def protect(self, owner, budget, surrogate, run):
        FAILS[self.how]()
        return [x * torch.nan for x in owner.images]


@pytest.mark.parametrize("how", FAILS)
def test_a_cell_that_runs_out_of_memory_or_of_numbers_is_a_failed_record_and_one_line(tiny, tmp_path, how):
    words = ("protect=none", f"protect._target_={__name__}.Fails", f"+protect.how={how}", "data.train=2")
    few = (
        "arms=[clean,protected]",
        "task.steps=1",
        "task.sample_steps=1",
        "data.reference=4",
        "data.heldout=0",
        "data.validation=0",
    )
    cfg = copy.deepcopy(composed(tiny, *words, *few, f"runtime.out={tmp_path}"))
    notes = Notes()
    with pytest.raises((MemoryError, RuntimeError, ValueError)):
        once(cfg, notes)
    (line,) = [line for line in notes.said if line.startswith("error: ")]
    assert line.startswith(SAID[how])
    (found,) = read_records(tmp_path / "records")
    assert found["status"] == "failed"
    assert "protect protected" not in [stage["name"] for stage in found["stages"]]
    assert not list(tmp_path.glob("store/locks/*.lease"))


# -- disks -------------------------------------------------------------------------------------------------------------


def test_a_store_that_is_read_only_is_told_in_a_line_with_its_path(tiny, tmp_path):
    def mount(*options: str) -> bool:
        return subprocess.run(["mount", *options, str(store)], capture_output=True, check=False).returncode == 0

    (store := tmp_path / "store").mkdir()
    if not mount("-t", "tmpfs", "-o", "ro,size=1m", "tmpfs"):
        pytest.skip("needs the right to mount a small disk")
    cfg, notes = copy.deepcopy(composed(tiny, "protect=none", "data.train=2", f"runtime.out={tmp_path / 'out'}", f"runtime.store={store}")), Notes()  # fmt: skip
    try:
        with pytest.raises(OSError, match="Read-only file system"):
            once(cfg, notes)
    finally:
        subprocess.run(["umount", str(store)], check=True)
    (line,) = [line for line in notes.said if line.startswith("error: ")]
    assert line.startswith(f"error: cannot write {store}")
    assert line.endswith(": Read-only file system; free some space, or write elsewhere with runtime.store=DIR")
