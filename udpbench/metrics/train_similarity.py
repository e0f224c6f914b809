"""How similar the generated pictures are to the thief's training pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from udpbench.core.neighbours import chunks, parts
from udpbench.interfaces import SetMetric


class TrainSimilarity(SetMetric):
    """Cosine similarity of features to the *clean* training pictures, in [-1,1].

    ``sim_train``: mean over all pairs of a generated and a training picture. ``nearest_train``: mean over generated
    pictures of the similarity to the nearest training picture. A high value of either is not fidelity: a victim that
    has memorised its few pictures scores 1. Read them beside the distances to held-out references.
    """

    against = "train_clean"
    kinds = {"sim_train": "down", "nearest_train": "down"}

    def compute(self, got: Tensor, ref: Tensor) -> tuple[float, ...]:
        nearest = torch.cat([_nearest(rows, ref) for rows in chunks(got, ref)])
        return float(_mean(got) @ _mean(ref)), float(nearest.mean())


def _nearest(x: Tensor, y: Tensor) -> Tensor:
    """Similarity of each of N rows to the nearest row of ``y``, (N,)."""
    return torch.stack([(F.normalize(x) @ F.normalize(some).T).amax(1) for some in parts(y)]).amax(0)


def _mean(x: Tensor) -> Tensor:
    """Mean direction of (N, d), (d,)."""
    return torch.stack([F.normalize(rows).sum(0) for rows in parts(x)]).sum(0) / len(x)
