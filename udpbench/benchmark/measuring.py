"""Seconds and peak memory of a piece of work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from udpbench.core.memory import give_gpu_memory_back


def device_name(device: torch.device) -> str:
    """What facts call a device: the GPU's own name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def measured(device: torch.device, spent: Path) -> Iterator[dict[str, Any]]:
    """Seconds (interrupted attempts included) and peak memory of the block: of the device, or of the process where
    there is none."""
    facts: dict[str, Any] = {"device": device_name(device)}
    before = 0.0
    with suppress(OSError, ValueError):  # there is none, or it is half-written
        before = float(spent.read_text(encoding="utf-8"))
    _reset_peak(device)
    start = time.perf_counter()
    try:
        yield facts
    finally:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        facts["seconds"] = round(before + time.perf_counter() - start, 3)
        facts["peak_mb"] = _peak_mb(device)
        give_gpu_memory_back()
        with suppress(OSError):  # the disk is full, which is known by then
            spent.write_text(str(facts["seconds"]), encoding="utf-8")


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux: forget the peak resident size
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _peak_mb(device: torch.device) -> float | None:
    """Peak memory in MB: allocated on the GPU, or resident in the process (Linux); None where it cannot be
    measured."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        if peak := next((line for line in lines if line.startswith("VmHWM")), ""):
            return round(int(peak.split()[1]) / 1e3, 1)
    return None
