"""Distances to nearest neighbours in sets of features, for scores of two sets."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1024  # rows of a pairwise matrix in memory at once


def feature_sets(what: str, got: Tensor, ref: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Features (N, d) and (M, d) in float64; ValueError for other shapes or fewer than ``least`` rows."""
    if got.ndim != 2 or ref.ndim != 2 or got.shape[1] != ref.shape[1]:
        given = f"{tuple(got.shape)} and {tuple(ref.shape)}"
        raise ValueError(f"{what}: features must be (N, d) and (M, d) with one d, given {given}")
    if min(len(got), len(ref)) < least:
        raise ValueError(f"{what}: at least {least} pictures a side are needed, given {len(got)} and {len(ref)}")
    return got.double(), ref.double()


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances (N, M) between the rows of (N, d) and (M, d)."""
    # Not by way of x.y: equal pictures must be at distance 0, not at the rounding error of two large numbers.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def radii(x: Tensor, k: int) -> Tensor:
    """Distance of each of N rows to its k-th nearest other row, (N,)."""
    # k + 1: the nearest of all is the point itself.
    return torch.cat([distances(rows, x).kthvalue(k + 1).values for rows in x.split(CHUNK)])


def fraction_inside(points: Tensor, centres: Tensor, radius: Tensor) -> float:
    """Fraction of the points that lie within (<=) the ball of some centre, ``radius`` (M,) of each centre."""
    inside = torch.cat([(distances(rows, centres) <= radius).any(1) for rows in points.split(CHUNK)])
    return float(inside.double().mean())
