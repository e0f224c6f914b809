"""How a process treats the memory of large tensors on the CPU."""

from __future__ import annotations

import ctypes
import platform

MMAP_MAX, TRIM_THRESHOLD, TOP_PAD = -4, -1, -2  # of mallopt(3)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for what is asked for next; with another C library nothing is done.

    As it comes, it gives blocks above 32 MB back to the system at once, and gets each next one as new pages, which the
    kernel clears one by one: for networks whose layers make such tensors that takes as long as the arithmetic.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for setting, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 2**26)):
            libc.mallopt(setting, value)
