"""Distances and neighbourhood scores between two sets of pictures: functions of features, and metrics made of them.

Generated first, reference second, always. None of these numbers compares across feature networks: the name says
which.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from udpbench.core import images
from udpbench.interfaces import Run
from udpbench.models.features import Extractor, features_of

CHUNK = 1024  # rows of a pairwise matrix in memory at once
# Numbers of the reference Inception go by their public names; "x1000" because the libraries print a KID unscaled.
PUBLIC = {
    "fd_inception": "fid",
    "kd_inception": "kid_x1000",
    "fd_inception_clean": "fid_clean",
    "kd_inception_clean": "kid_clean_x1000",
}


def frechet_distance(got: Tensor, ref: Tensor) -> float:
    """Squared Frechet distance of the Gaussians of (N, d) and (M, d): Heusel et al. 2017 (arXiv:1706.08500), eq. 6.

    |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2)), covariances over N-1, in float64. With S = R^T R the last trace
    is the sum of the singular values of R1 R2^T: exact at any rank, where a matrix square root of S1 S2 is not.
    """
    got, ref = _checked("Frechet distance", got, ref, 2)
    (mean1, root1), (mean2, root2) = _moments(got), _moments(ref)
    spread = root1.square().sum() + root2.square().sum() - 2 * torch.linalg.svdvals(root1 @ root2.T).sum()
    return max(0.0, float((mean1 - mean2).square().sum() + spread))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(0)
    root = (x - mean) / (len(x) - 1) ** 0.5
    return mean, torch.linalg.qr(root, mode="r").R if len(x) > x.shape[1] else root


def kernel_distance(got: Tensor, ref: Tensor) -> float:
    """1000 x the squared maximum mean discrepancy of (N, d) and (M, d): Binkowski et al. 2018 (arXiv:1801.01401).

    Kernel (x.y/d + 1)^3; the unbiased estimate, so it may be below 0; over all pairs (libraries take random subsets).
    """
    got, ref = _checked("kernel distance", got, ref, 2)
    cross = _kernel_sum(got, ref) / (len(got) * len(ref))
    return 1000 * float(_mean_off_diagonal(got) + _mean_off_diagonal(ref) - 2 * cross)


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    sums = [((rows @ y.T / x.shape[1] + 1) ** 3).sum() for rows in x.split(CHUNK)]
    return torch.stack(sums).sum()


def _mean_off_diagonal(x: Tensor) -> Tensor:
    diagonal = ((x.square().sum(1) / x.shape[1] + 1) ** 3).sum()
    return (_kernel_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))


def precision_recall(got: Tensor, ref: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall of (N, d) against (M, d): Kynkaanniemi et al. 2019 (arXiv:1904.06991), eq. 1, 2.

    Precision: share of ``got`` within (<=) the ball of some ``ref`` that reaches to its k-th neighbour in ``ref``;
    recall: the same with the roles changed. The sets must be of equal size: the balls shrink with it.
    """
    got, ref = _checked("precision/recall", got, ref, k + 1)
    if len(got) != len(ref):
        raise ValueError(f"precision/recall: sets of equal size are needed, given {len(got)} and {len(ref)} pictures")
    return _share_inside(got, ref, _radii(ref, k)), _share_inside(ref, got, _radii(got, k))


def density_coverage(got: Tensor, ref: Tensor, k: int = 5) -> tuple[float, float]:
    """Density and coverage of (N, d) against (M, d): Naeem et al. 2020 (arXiv:2002.09797).

    Density: in how many k-neighbour balls of ``ref`` a ``got`` lies (strictly, <), on average, over k; may exceed 1.
    Coverage: share of ``ref`` with a ``got`` in its ball. About 1 and 1 - 2^-k for equal distributions and sizes.
    """
    got, ref = _checked("density/coverage", got, ref, k + 1)
    radii = _radii(ref, k)
    inside = torch.cat([(_distances(rows, ref) < radii).sum(1) for rows in got.split(CHUNK)])
    nearest = torch.cat([_distances(rows, got).amin(1) for rows in ref.split(CHUNK)])
    return float(inside.double().mean() / k), float((nearest < radii).double().mean())


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # Not by way of x.y: equal pictures must be at distance 0, not at the rounding error of two large numbers.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(x: Tensor, k: int) -> Tensor:
    # k + 1: the nearest of all is the point itself.
    return torch.cat([_distances(rows, x).kthvalue(k + 1).values for rows in x.split(CHUNK)])


def _share_inside(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    inside = torch.cat([(_distances(rows, centres) <= radii).any(1) for rows in points.split(CHUNK)])
    return float(inside.double().mean())


def _checked(what: str, got: Tensor, ref: Tensor, least: int) -> tuple[Tensor, Tensor]:
    if got.ndim != 2 or ref.ndim != 2 or got.shape[1] != ref.shape[1]:
        raise ValueError(
            f"{what}: features must be (N, d) and (M, d) with one d, given {tuple(got.shape)} and {tuple(ref.shape)}"
        )
    if min(len(got), len(ref)) < least:
        raise ValueError(f"{what}: at least {least} pictures a side are needed, given {len(got)} and {len(ref)}")
    return got.double(), ref.double()


class SetMetric:
    """Features of both folders, then one of the functions above.

    Too few pictures: ValueError before any is read.
    """

    version: ClassVar[int] = 1
    against: ClassVar[str] = "reference"
    kinds: ClassVar[dict[str, str]]  # score without the network's name -> what the owner wants
    least: ClassVar[int]  # below this the formula itself makes no sense
    equal_sizes: ClassVar[bool] = False  # of the larger folder only the first pictures by name are used

    def __init__(self, features: Extractor, minimum: int) -> None:
        if minimum < self.least:
            raise ValueError(f"{'/'.join(self.kinds)}: minimum must be at least {self.least} pictures, given {minimum}")
        self.features = features
        self.minimum = minimum

    @property
    def scores(self) -> dict[str, str]:
        """Score name -> what the owner wants."""
        return {score_name(kind, self.features): wants for kind, wants in self.kinds.items()}

    def check(self) -> None:
        """ValueError saying what to do if weights are missing; nothing is loaded."""
        self.features.check()

    def identity(self) -> dict[str, str]:
        """Of the weights of the features."""
        return self.features.identity()

    def __call__(self, got: Path, ref: Path, run: Run) -> dict[str, float]:
        """Scores of the generated folder ``got`` against the reference folder ``ref``."""
        n, m = (len(images.list_images(folder)) for folder in (got, ref))
        if min(n, m) < self.minimum:
            name, least = ", ".join(self.scores), self.minimum
            raise ValueError(
                f"{name}: {n} generated and {m} reference pictures given; at least {least} a side are needed"
            )
        ours, theirs = (features_of(folder, self.features, run) for folder in (got, ref))
        if self.equal_sizes:
            ours, theirs = ours[: min(n, m)], theirs[: min(n, m)]
        return dict(zip(self.scores, self.compute(ours, theirs), strict=True))

    def compute(self, got: Tensor, ref: Tensor) -> tuple[float, ...]:
        """The scores, in the order of ``kinds``, of features (N, d) and (M, d)."""
        raise NotImplementedError


def score_name(kind: str, features: Extractor) -> str:
    """``kind_network``, or the name the world knows it by (``fid``)."""
    name = f"{kind}_{features.suffix}"
    return PUBLIC.get(name, name)


class FrechetDistance(SetMetric):
    """``frechet_distance``.

    Biased by the number of pictures, and by how much depends on the model.
    """

    kinds: ClassVar[dict[str, str]] = {"fd": "up"}
    least: ClassVar[int] = 2

    def __init__(self, features: Extractor, minimum: int = 1000) -> None:
        super().__init__(features, minimum)

    def compute(self, got: Tensor, ref: Tensor) -> tuple[float, ...]:
        return (frechet_distance(got, ref),)


class KernelDistance(SetMetric):
    """``kernel_distance`` (x 1000).

    Unbiased, so that sets of 50 and more already compare.
    """

    kinds: ClassVar[dict[str, str]] = {"kd": "up"}
    least: ClassVar[int] = 2

    def __init__(self, features: Extractor, minimum: int = 50) -> None:
        super().__init__(features, minimum)

    def compute(self, got: Tensor, ref: Tensor) -> tuple[float, ...]:
        return (kernel_distance(got, ref),)


class PrecisionRecall(SetMetric):
    """``precision_recall`` with k = 3; of the larger folder only as many as the smaller holds, the first by name."""

    kinds: ClassVar[dict[str, str]] = {"precision": "down", "recall": "down"}
    least: ClassVar[int] = 4
    equal_sizes: ClassVar[bool] = True

    def __init__(self, features: Extractor, minimum: int = 200) -> None:
        super().__init__(features, minimum)

    def compute(self, got: Tensor, ref: Tensor) -> tuple[float, ...]:
        return precision_recall(got, ref)


class DensityCoverage(SetMetric):
    """``density_coverage`` with k = 5; of the larger folder only as many as the smaller holds, the first by name."""

    kinds: ClassVar[dict[str, str]] = {"density": "down", "coverage": "down"}
    least: ClassVar[int] = 6
    equal_sizes: ClassVar[bool] = True

    def __init__(self, features: Extractor, minimum: int = 200) -> None:
        super().__init__(features, minimum)

    def compute(self, got: Tensor, ref: Tensor) -> tuple[float, ...]:
        return density_coverage(got, ref)
