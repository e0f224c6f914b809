"""Improved precision and recall (Kynkaanniemi et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from udpbench.core.neighbours import ROUNDING, check_sets, chunks, distances, radii
from udpbench.interfaces import SetMetric


def precision_recall(got: Tensor, ref: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall of (N, d) against (M, d): Kynkaanniemi et al. 2019 (arXiv:1904.06991), eq. 1, 2.

    Precision: fraction of ``got`` within (<=) the ball of some ``ref`` that reaches to its k-th neighbour in ``ref``;
    recall: the same with the roles changed. The sets must be of equal size: the balls shrink with it.
    """
    check_sets("precision/recall", got, ref, k + 1)
    if len(got) != len(ref):
        raise ValueError(f"precision/recall: sets of equal size are needed, given {len(got)} and {len(ref)} pictures")
    # Of a point as far as the k-th neighbour, rounding would say otherwise now and then.
    ours, theirs = (radii(points, k) * (1 + ROUNDING) for points in (got, ref))
    inside, done, reached = 0, 0, torch.zeros(len(ref), dtype=torch.bool, device=ref.device)
    for rows in chunks(got, ref):
        apart, reach = distances(rows, ref), ours[done : done + len(rows)]
        inside += int((apart <= theirs).any(1).sum())
        reached |= (apart <= reach[:, None]).any(0)
        done += len(rows)
    return inside / len(got), int(reached.sum()) / len(ref)


class PrecisionRecall(SetMetric):
    """``precision_recall`` with k = 3; of the larger folder only as many as the smaller holds, the first by name."""

    kinds = {"precision": "down", "recall": "down"}
    least, usual = 4, 200
    equal_sizes = True

    def compute(self, got: Tensor, ref: Tensor) -> tuple[float, ...]:
        return precision_recall(got, ref)
