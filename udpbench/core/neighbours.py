"""Distances to nearest neighbours in sets of features, for scores of two sets."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1024  # rows of a pairwise matrix in memory at once
ROUNDING = 1e-9  # relative difference by which distances that are equal may differ as computed


def feature_sets(what: str, got: Tensor, ref: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Features (N, d) and (M, d) in float64; ValueError for other shapes or fewer than ``least`` rows."""
    if got.ndim != 2 or ref.ndim != 2 or got.shape[1] != ref.shape[1]:
        given = f"{tuple(got.shape)} and {tuple(ref.shape)}"
        raise ValueError(f"{what}: features must be (N, d) and (M, d) with one d, given {given}")
    if min(len(got), len(ref)) < least:
        raise ValueError(f"{what}: at least {least} pictures a side are needed, given {len(got)} and {len(ref)}")
    return got.double(), ref.double()


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances (N, M) between the rows of (N, d) and (M, d), float64, by way of their products.

    What cannot be told from 0 by the rounding of those is 0: the distance of equal pictures.
    """
    lengths = x.square().sum(1)[:, None] + y.square().sum(1)
    squares = torch.addmm(lengths, x, y.T, alpha=-2)
    return squares.masked_fill_(squares < 1e-12 * lengths, 0).sqrt_()


def radii(x: Tensor, k: int) -> Tensor:
    """Distance of each of N rows to its k-th nearest other row, (N,)."""
    # k + 1: the nearest of all is the point itself.
    return torch.cat([distances(rows, x).kthvalue(k + 1).values for rows in x.split(CHUNK)])
