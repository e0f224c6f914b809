"""A perceptual distance whose network needs no download; it is not LPIPS."""

from __future__ import annotations

import torch

from udpbench.interfaces import Measure, PairMetric
from udpbench.models.perceptual import check_distance, load_distance


class PerceptualDistance(PairMetric):
    """``dist_lite1``: see ``udpbench.models.perceptual.PerceptualLite1``."""

    scores = {"dist_lite1": "down"}

    def check(self) -> None:
        check_distance("lite1", None)

    def prepare(self, device: torch.device) -> Measure:
        distance = load_distance("lite1", None, device)
        return lambda changed, original: {"dist_lite1": distance(changed, original)}
