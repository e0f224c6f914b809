"""How a process treats the memory of large tensors on the CPU, how small ones get to a GPU, and how much large models
take."""

from __future__ import annotations

import ctypes
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Gigabytes as measured on a CPU in float32 on models of the shape of Stable Diffusion 1.5: the weights, and the peak of
# one gradient of one picture of 512 x 512 px beside them, as it is and with runtime.low_memory (docs/cluster.md).
WEIGHTS = 4.3
GRADIENT = {"encoder": (3.3, 2.3), "encoder and UNet": (5.0, 2.8), "encoder and decoder": (9.4, 3.8)}
UNET = 0.86e9  # its weights: in training each has 4 bytes, its gradient 4, AdamW's two moments 8
CARDS = (12, 24, 48, 80)  # gigabytes
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


def full_memory(error: BaseException) -> str | None:
    """Whose memory is full by ``error``, the ``GPU``'s or the ``machine``'s; None: it is another error."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's
        return "GPU"
    full = isinstance(error, MemoryError) or "can't allocate memory" in str(error)  # the latter torch's, on a CPU
    return "machine" if full else None


def give_freed_memory_back() -> None:
    """Give back to the system what was freed so far: between works whose tensors are of other sizes, which would not
    fit into one another's gaps; with another C library nothing is done."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def queued(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on ``device``: in inner loops, for what is drawn on the CPU. The copy to a GPU is queued from pinned
    memory; a plain ``to`` waits until the GPU has done all that was queued before."""
    from_cpu = x.device.type == "cpu" and device.type == "cuda"
    return x.pin_memory().to(device, non_blocking=True) if from_cpu else x.to(device)


def pictures_that_fit(card: float, each: float) -> int:
    """How many pictures of 512 px with gradients of ``each`` gigabytes fit beside the weights into ``card``."""
    return max(0, int((card - WEIGHTS) / each))


def of_cards() -> dict[str, str]:
    """What fits into cards of memory, by their names: estimates, see ``GRADIENT``."""
    lines = {}
    for card in CARDS:
        fit = {what: [pictures_that_fit(card, each) for each in memory] for what, memory in GRADIENT.items()}
        counts = (f"{what} {plain} ({low})" for what, (plain, low) in fit.items())
        left = card - WEIGHTS - 16 * UNET / 1e9
        trained = "a UNet whose weights are all trained"
        training = f"{trained} leaves {left:.0f} GB" if left >= 1 else f"too small for {trained}"
        lines[f"{card} GB"] = f"{', '.join(counts)}; {training}"
    return lines


ESTIMATE = (
    "pictures of 512 px with gradients at a time, by what these go through, (with runtime.low_memory=true); estimated "
    "from the peak of one in float32 on a CPU with networks of Stable Diffusion 1.5's shape, a training by counting"
)
