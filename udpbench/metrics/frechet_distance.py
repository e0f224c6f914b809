"""Frechet distance of two sets of pictures (Heusel et al. 2017): FID with the Inception's features."""

from __future__ import annotations

import torch
from torch import Tensor

from udpbench.core.neighbours import check_sets, parts
from udpbench.interfaces import SetMetric


def frechet_distance(got: Tensor, ref: Tensor) -> float:
    """Squared Frechet distance of the Gaussians of (N, d) and (M, d): Heusel et al. 2017 (arXiv:1706.08500), eq. 6.

    |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2)), covariances over N-1, in float64. With S = R^T R the last trace
    is the sum of the singular values of R1 R2^T: exact at any rank, where a matrix square root of S1 S2 is not.
    """
    check_sets("Frechet distance", got, ref, 2)
    (mean1, root1), (mean2, root2) = _moments(got), _moments(ref)
    spread = root1.square().sum() + root2.square().sum() - 2 * torch.linalg.svdvals(root1 @ root2.T).sum()
    return max(0.0, float((mean1 - mean2).square().sum() + spread))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and root (n, d) of the covariance of (N, d), n <= d."""
    mean, root = torch.stack([rows.sum(0) for rows in parts(x)]).sum(0) / len(x), x.new_empty(0, x.shape[1]).double()
    for rows in parts(x):
        root = torch.cat([root, (rows - mean) / (len(x) - 1) ** 0.5])
        root = torch.linalg.qr(root, mode="r").R if len(root) > x.shape[1] else root
    return mean, root


class FrechetDistance(SetMetric):
    """``frechet_distance``: biased by the number of pictures, and the bias differs between models."""

    kinds = {"fd": "up"}
    least, usual = 2, 1000

    def compute(self, got: Tensor, ref: Tensor) -> tuple[float, ...]:
        return (frechet_distance(got, ref),)
