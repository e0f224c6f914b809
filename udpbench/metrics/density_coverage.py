"""Density and coverage (Naeem et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from udpbench.core.neighbours import CHUNK, distances, feature_sets, radii
from udpbench.interfaces import SetMetric


def density_coverage(got: Tensor, ref: Tensor, k: int = 5) -> tuple[float, float]:
    """Density and coverage of (N, d) against (M, d): Naeem et al. 2020 (arXiv:2002.09797).

    Density: number of k-neighbour balls of ``ref`` in which a ``got`` lies (strictly, <), averaged over ``got``, over
    k; may exceed 1. Coverage: fraction of ``ref`` with a ``got`` in its ball. About 1 and 1 - 2^-k for equal
    distributions and sizes.
    """
    got, ref = feature_sets("density/coverage", got, ref, k + 1)
    radius = radii(ref, k)
    inside = torch.cat([(distances(rows, ref) < radius).sum(1) for rows in got.split(CHUNK)])
    nearest = torch.cat([distances(rows, got).amin(1) for rows in ref.split(CHUNK)])
    return float(inside.double().mean() / k), float((nearest < radius).double().mean())


class DensityCoverage(SetMetric):
    """``density_coverage`` with k = 5; of the larger folder only as many as the smaller holds, the first by name."""

    kinds = {"density": "down", "coverage": "down"}
    least, usual = 6, 200
    equal_sizes = True

    def compute(self, got: Tensor, ref: Tensor) -> tuple[float, ...]:
        return density_coverage(got, ref)
