"""What this machine can spare: processor cores and memory."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path


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
