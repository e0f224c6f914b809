"""What this machine can spare: processor cores, memory and GPUs."""

from __future__ import annotations

import gc
import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from udpbench.core.memory import full_memory, give_gpu_memory_back

MEMORY = 2e9  # bytes that a process with the embedded models takes, with room to spare
VISIBLE = "CUDA_VISIBLE_DEVICES"
_SMALLER = "give runtime.grad_batch=N (with gradients) or runtime.batch=N, smaller, or runtime.low_memory=true"
_FIXED = "weights, gradients and AdamW's moments of a training take the same whatever the batch"
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
    return f"the {whose} has too little memory; {_SMALLER}; {_FIXED}" if whose else None


class LostGpu(SystemExit):
    """Ends a process that can do nothing with its GPU any more; ``gpu``: as CUDA_VISIBLE_DEVICES names it, "" if it
    names none; ``reason``: in a line."""

    def __init__(self, gpu: str, reason: str) -> None:
        super().__init__(gpu, reason)
        self.gpu, self.reason = gpu, reason
        self.code = 1

    def __str__(self) -> str:
        return f"lost {f'GPU {self.gpu}' if self.gpu else 'its GPU'} ({self.reason})"


def let_go() -> None:
    """Free what a cell that has ended, or failed, leaves on a GPU: its parts refer to one another, so that its models
    would stay until Python happens to look for such. Where CUDA is not in use nothing is done: to look takes 0.2 s, as
    long as all else of a cell whose work is done."""
    import torch

    if torch.cuda.is_initialized():
        gc.collect()
        give_gpu_memory_back()


def room() -> int:
    """Processes with the embedded models that there are cores and memory for, at least one."""
    return max(1, min(cores(), int(free_memory() / MEMORY)))


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; torch may be unable to use them."""
    import torch

    n = torch.cuda.device_count()  # which initialises nothing: the driver reads CUDA_VISIBLE_DEVICES when that is done
    return [name for name in os.environ.get(VISIBLE, "").split(",") if name][:n] or list(map(str, range(n)))


def usable_gpus() -> list[str]:
    """``gpus``, or none if torch cannot use them, as with a driver that is too old. From then on ``claim_gpu`` has no
    effect in this process: it is for those that start others."""
    import torch

    return gpus() if torch.cuda.is_available() else []


def places(per_gpu: int = 1) -> int:
    """Cells that this machine has room for at a time: ``per_gpu`` for each GPU; without one, ``room``."""
    return per_gpu * len(usable_gpus()) or room()


def share_of_gpu(per_gpu: int = 1) -> float:
    """What one of ``per_gpu`` cells takes of a GPU; 0 without one."""
    return 1 / per_gpu if usable_gpus() else 0.0


def claim_gpu(among: Sequence[str], avoid: Sequence[str] = ()) -> None:
    """Have this process see one GPU only: of those it may use, the one that fewest processes of this user have claimed;
    none of ``avoid`` as long as there are others.

    It is claimed until the process ends, however it does. CUDA must not have been initialised.
    """
    if len(among) < 2:
        return
    folder = Path(tempfile.gettempdir()) / f"udpbench-gpus-{os.getuid() if os.name == 'posix' else 0}"
    for turn in count():
        for gpu in [gpu for gpu in among if gpu not in avoid] or among:
            claim = FileLock(folder / f"{gpu}.{turn}", timeout=0)
            folder.mkdir(mode=0o700, exist_ok=True)
            with suppress(Timeout):
                claim.acquire()
                _claims.append(claim)
                os.environ[VISIBLE] = gpu
                return
