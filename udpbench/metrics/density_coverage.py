"""Density and coverage (Naeem et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from udpbench.core.neighbours import ROUNDING, check_sets, chunks, distances, radii
from udpbench.interfaces import SetMetric


def density_coverage(got: Tensor, ref: Tensor, k: int = 5) -> tuple[float, float]:
    """Density and coverage of (N, d) against (M, d): Naeem et al. 2020 (arXiv:2002.09797).

    Density: number of k-neighbour balls of ``ref`` in which a ``got`` lies (strictly, <), averaged over ``got``, over
    k; may exceed 1. Coverage: fraction of ``ref`` with a ``got`` in its ball. About 1 and 1 - 2^-k for equal
    distributions and sizes.
    """
    check_sets("density/coverage", got, ref, k + 1)
    # Of a point as far as the k-th neighbour, rounding would say otherwise now and then.
    radius = radii(ref, k) * (1 - ROUNDING)
    balls, covered = 0, torch.zeros(len(ref), dtype=torch.bool, device=ref.device)
    for rows in chunks(got, ref):
        inside = distances(rows, ref) < radius
        balls += int(inside.sum())
        covered |= inside.any(0)
    return balls / (k * len(got)), int(covered.sum()) / len(ref)


class DensityCoverage(SetMetric):
    """``density_coverage`` with k = 5; of the larger folder only as many as the smaller holds, the first by name."""

    kinds = {"density": "down", "coverage": "down"}
    least, usual = 6, 200
    equal_sizes = True

    def compute(self, got: Tensor, ref: Tensor) -> tuple[float, ...]:
        return density_coverage(got, ref)
