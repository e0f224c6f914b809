"""What bfloat16 costs on a CPU, which may have no instructions for it."""

from __future__ import annotations

from functools import cache
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

NOTABLE = 4.0  # times as long as in float32: from here on somebody should know of it


@cache
def bf16_cost() -> float:
    """How many times as long as in float32 a convolution takes in bfloat16 on this CPU, measured once in a process.

    About 1 or less where the CPU has instructions for it (AVX512-BF16, AMX); tens where it has none (AVX2), for there
    PyTorch has a plain loop only.
    """
    x, kernel = torch.ones(1, 16, 16, 16), torch.ones(16, 16, 3, 3)  # small: where it is slow, it is very slow
    return _seconds(x.bfloat16(), kernel.bfloat16()) / _seconds(x, kernel)


@torch.inference_mode()
def _seconds(x: Tensor, kernel: Tensor) -> float:
    """The shortest of three convolutions after a first one: other work on the machine lengthens single ones."""
    times = []
    for _ in range(4):
        began = perf_counter()
        F.conv2d(x, kernel, padding=1)
        times.append(perf_counter() - began)
    return min(times[1:])
