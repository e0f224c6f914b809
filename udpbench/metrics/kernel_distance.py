"""Kernel distance of two sets of pictures (Binkowski et al. 2018): KID with the Inception's features."""

from __future__ import annotations

import torch
from torch import Tensor

from udpbench.core.memory import give_freed_memory_back
from udpbench.core.neighbours import check_sets, chunks, parts
from udpbench.interfaces import SetMetric


def kernel_distance(got: Tensor, ref: Tensor) -> float:
    """1000 x the squared maximum mean discrepancy of (N, d) and (M, d): Binkowski et al. 2018 (arXiv:1801.01401).

    Kernel (x.y/d + 1)^3; the unbiased estimate, so it may be below 0; over all pairs (libraries take random subsets).
    """
    check_sets("kernel distance", got, ref, 2)
    cross = _kernel_sum(got, ref) / (len(got) * len(ref))
    return 1000 * float(_mean_off_diagonal(got) + _mean_off_diagonal(ref) - 2 * cross)


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    sums = [((rows @ some.T / x.shape[1] + 1) ** 3).sum() for rows in chunks(x, y) for some in parts(y)]
    return torch.stack(sums).sum()


def _mean_off_diagonal(x: Tensor) -> Tensor:
    """Over pairs of a row and a later one: the kernel is symmetric."""
    sums, done = [], 0
    for rows in chunks(x, x):
        give_freed_memory_back()  # the rows that are left are fewer each time: blocks of every size in between
        among = (rows @ rows.T / x.shape[1] + 1) ** 3
        done += len(rows)
        sums += [among.triu(1).sum()] + ([_kernel_sum(rows, x[done:])] if done < len(x) else [])
    return 2 * torch.stack(sums).sum() / (len(x) * (len(x) - 1))


class KernelDistance(SetMetric):
    """``kernel_distance`` (x 1000): unbiased, so that sets of 50 and more already compare."""

    kinds = {"kd": "up"}
    least, usual = 2, 50

    def compute(self, got: Tensor, ref: Tensor) -> tuple[float, ...]:
        return (kernel_distance(got, ref),)
