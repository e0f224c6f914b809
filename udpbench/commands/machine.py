"""What this machine can spare: processor cores, memory and GPUs."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from udpbench.core.memory import full_memory

MEMORY = 2e9  # bytes that a process with the embedded models takes, with room to spare
VISIBLE = "CUDA_VISIBLE_DEVICES"
_SMALLER = "give runtime.grad_batch=N (with gradients) or runtime.batch=N, smaller, or runtime.low_memory=true"
_claims: list[FileLock] = []  # held until the process ends


def cores() -> int:
    """Processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def idle_cores() -> int:
    """Cores that the programs of the last minute left idle, at least one; all of them where the load is not known."""
    try:
        return max(1, min(cores(), round((os.cpu_count() or 1) - os.getloadavg()[0])))
    except (AttributeError, OSError):  # Windows; no /proc
        return cores()


def free_memory() -> float:
    """Bytes of memory that can be had (Linux); elsewhere it is not known, and said to be nothing."""
    with suppress(OSError):
        found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
        return 1024 * int(found[1]) if found else 0
    return 0


def memory_error(error: BaseException) -> str | None:
    """One line saying what to do, if ``error`` is that of a memory that is full; None if not."""
    whose = full_memory(error)
    return f"the {whose} has too little memory; {_SMALLER}" if whose else None


def room() -> int:
    """Processes with the embedded models that there are cores and memory for, at least one."""
    return max(1, min(cores(), int(free_memory() / MEMORY)))


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    n = torch.cuda.device_count()  # which initialises nothing
    return [name for name in os.environ.get(VISIBLE, "").split(",") if name][:n] or list(map(str, range(n)))


def places(per_gpu: int = 1) -> int:
    """Cells that this machine has room for at a time: ``per_gpu`` for each GPU; without one, ``room``."""
    return per_gpu * len(gpus()) or room()


def share_of_gpu(per_gpu: int = 1) -> float:
    """What one of ``per_gpu`` cells takes of a GPU; 0 without one."""
    return 1 / per_gpu if gpus() else 0.0


def claim_gpu(among: Sequence[str]) -> None:
    """Have this process see one GPU only: of those it may use, the one that fewest processes of this user have claimed.

    It is claimed until the process ends, however it does. CUDA must not have been initialised.
    """
    if len(among) < 2:
        return
    folder = Path(tempfile.gettempdir()) / f"udpbench-gpus-{os.getuid() if os.name == 'posix' else 0}"
    for turn in count():
        for gpu in among:
            claim = FileLock(folder / f"{gpu}.{turn}", timeout=0)
            folder.mkdir(mode=0o700, exist_ok=True)
            with suppress(Timeout):
                claim.acquire()
                _claims.append(claim)
                os.environ[VISIBLE] = gpu
                return
