"""How like the thief's training pictures the generated ones are."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch.nn.functional as F

from udpbench.interfaces import Run
from udpbench.metrics.sets import score_name
from udpbench.models.features import Extractor, features_of


class TrainSimilarity:
    """Cosine similarity of features to the *clean* training pictures, in [-1,1].

    ``sim_train``: mean over all pairs of a generated and a training picture. ``nearest_train``: mean over generated
    pictures of the similarity to the nearest training picture. A high value of either is not fidelity: a victim that
    has memorised its few pictures scores 1. Read them beside the distances to held-out references.
    """

    version: ClassVar[int] = 1
    against: ClassVar[str] = "train_clean"
    minimum: ClassVar[int] = 1

    def __init__(self, features: Extractor) -> None:
        self.features = features

    @property
    def scores(self) -> dict[str, str]:
        """Score name -> what the owner wants."""
        return {score_name(kind, self.features): "down" for kind in ("sim_train", "nearest_train")}

    def check(self) -> None:
        """ValueError saying what to do if weights are missing; nothing is loaded."""
        self.features.check()

    def identity(self) -> dict[str, str]:
        """Of the weights of the features."""
        return self.features.identity()

    def __call__(self, got: Path, ref: Path, run: Run) -> dict[str, float]:
        """Scores of the generated folder ``got`` against the folder of clean training pictures ``ref``."""
        ours, theirs = (F.normalize(features_of(folder, self.features, run).double()) for folder in (got, ref))
        cosines = ours @ theirs.T
        return dict(zip(self.scores, (float(cosines.mean()), float(cosines.amax(1).mean())), strict=True))
