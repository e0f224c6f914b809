"""How similar the generated pictures are to the thief's training pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from udpbench.core.neighbours import CHUNK
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
        ours, theirs = F.normalize(got.double()), F.normalize(ref.double())
        nearest = torch.cat([(rows @ theirs.T).amax(1) for rows in ours.split(CHUNK)])
        return float(ours.mean(0) @ theirs.mean(0)), float(nearest.mean())
