"""Sets of features, for scores of two sets: distances to nearest neighbours, and sets of any size in little memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 1024  # rows of a pairwise matrix in memory at once,
ENTRIES = 2**23  # but no more entries of it than these
PART = 2048  # rows of features in float64 at once
ROUNDING = 1e-9  # relative difference by which distances that are equal may differ as computed


def check_sets(what: str, got: Tensor, ref: Tensor, least: int) -> None:
    """ValueError unless the features are (N, d) and (M, d), with at least ``least`` rows each."""
    if got.ndim != 2 or ref.ndim != 2 or got.shape[1] != ref.shape[1]:
        given = f"{tuple(got.shape)} and {tuple(ref.shape)}"
        raise ValueError(f"{what}: features must be (N, d) and (M, d) with one d, given {given}")
    if min(len(got), len(ref)) < least:
        raise ValueError(f"{what}: at least {least} pictures a side are needed, given {len(got)} and {len(ref)}")


def parts(x: Tensor, most: int | None = None) -> Iterator[Tensor]:
    """(N, d) in float64, ``most`` rows at a time (None: ``PART``): of 50,000 pictures all would be half a gigabyte."""
    return (rows.double() for rows in x.split(most or PART))


def chunks(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """(N, d) in float64, as many rows at a time as a matrix of them and all M rows of ``y`` may have."""
    return parts(x, max(1, min(CHUNK, ENTRIES // len(y))))


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances (N, M) between the rows of (N, d) and (M, d), float64, by way of their products.

    What cannot be told from 0 by the rounding of those is 0: the distance of equal pictures.
    """
    x = x.double()
    found, squares = x.new_empty(len(x), len(y)), x.square().sum(1)[:, None]
    for some, here in zip(parts(y), found.split(PART, 1), strict=True):
        lengths = squares + some.square().sum(1)
        # In place: matrices that come and go leave gaps in memory that the next ones do not fit into.
        torch.addmm(lengths, x, some.T, alpha=-2, out=here)
        here.masked_fill_(here < lengths.mul_(1e-12), 0).sqrt_()
    return found


def radii(x: Tensor, k: int) -> Tensor:
    """Distance of each of N rows to its k-th nearest other row, (N,)."""
    found, done = x.new_empty(len(x), dtype=torch.float64), 0
    for rows in chunks(x, x):
        # k + 1: the nearest of all is the point itself.
        found[done : done + len(rows)] = distances(rows, x).kthvalue(k + 1).values
        done += len(rows)
    return found
