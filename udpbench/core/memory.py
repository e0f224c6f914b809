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
# Trainings of all weights with family sd, by counting: how many weights, and bytes for each. 16 are the weight, its
# gradient and AdamW's two moments, 2 the bfloat16 that autocast keeps for the rest of a step, 4 a copy in float32: what
# ASPL goes back to, or the average (EMA).
UNET, TEXT_ENCODER = 0.86e9, 0.123e9
TRAININGS = {
    "dreambooth, udp, fsmg": (UNET + TEXT_ENCODER, 18),
    "aspl": (UNET + TEXT_ENCODER, 22),
    "style_finetune": (UNET, 22),
}
CARDS = (12, 24, 48, 80)  # gigabytes
# What CUDA and its libraries say of a GPU whose memory is full, where torch raises no OutOfMemoryError.
FULL_GPU = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",
)
# Errors of CUDA after which a process can go on with its GPU: the setting or the installation is wrong.
NOT_LOST = ("invalid device ordinal", "no kernel image is available")
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
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's
        return "GPU"
    if isinstance(error, RuntimeError) and any(sign in text for sign in FULL_GPU):
        return "GPU"
    full = isinstance(error, MemoryError) or "can't allocate memory" in text  # the latter torch's, on a CPU
    return "machine" if full else None


def lost_gpu(error: BaseException) -> bool:
    """Whether by ``error``, or what it came of, this process has lost its GPU: after an error on it (an assertion, a
    wrong address, broken memory) every further call to it fails, in this process and in no other."""
    at: BaseException | None = error
    while at is not None:
        of_cuda = isinstance(at, RuntimeError | ValueError) and "CUDA error" in str(at)
        if of_cuda or type(at).__name__ == "AcceleratorError":  # torch's
            return not any(sign in str(at) for sign in (*FULL_GPU, *NOT_LOST))
        at = at.__cause__ or at.__context__
    return False


def give_freed_memory_back() -> None:
    """Give back to the system what was freed so far: between works whose tensors are of other sizes, which would not
    fit into one another's gaps; with another C library nothing is done."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def give_gpu_memory_back() -> None:
    """Give back to the GPUs what was freed so far, for the other processes on them; where CUDA is not in use nothing is
    done. A process keeps it otherwise, as much as its largest work took."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def queued(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on ``device``: in inner loops, for what is drawn on the CPU. The copy to a GPU is queued from pinned
    memory; a plain ``to`` waits until the GPU has done all that was queued before."""
    from_cpu = x.device.type == "cpu" and device.type == "cuda"
    return x.pin_memory().to(device, non_blocking=True) if from_cpu else x.to(device)


def pictures_that_fit(card: float, each: float) -> int:
    """How many pictures of 512 px with gradients of ``each`` gigabytes fit beside the weights into ``card``."""
    return max(0, int((card - WEIGHTS) / each))


def left_by_training(card: float, weights: float, each: int) -> float:
    """Gigabytes of ``card`` that a training of ``weights`` with ``each`` bytes leaves for layers, beside the frozen
    model in bfloat16; below 0: it does not fit."""
    return card - WEIGHTS / 2 - weights * each / 1e9


def of_cards() -> dict[str, str]:
    """What fits into cards of memory, by their names: estimates, see ``GRADIENT``."""
    lines = {}
    for card in CARDS:
        fit = {what: [pictures_that_fit(card, each) for each in memory] for what, memory in GRADIENT.items()}
        counts = (f"{what} {plain} ({low})" for what, (plain, low) in fit.items())
        left = {what: int(left_by_training(card, *training)) for what, training in TRAININGS.items()}
        trainings = ", ".join(f"{what} {f'{gb} GB' if gb >= 1 else 'none'}" for what, gb in left.items())
        lines[f"{card} GB"] = f"{', '.join(counts)}; left by {trainings}"
    return lines


ESTIMATE = (
    "pictures of 512 px with gradients at a time, by what these go through, (with runtime.low_memory=true); estimated "
    "from the peak of one in float32 on a CPU with networks of Stable Diffusion 1.5's shape; and what trainings of all "
    "weights in bf16 leave for their layers, by counting: weights, gradients, moments and copies, whatever the batch"
)
