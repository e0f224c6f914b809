"""LPIPS 0.1 of a changed picture to its original (Zhang et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from udpbench.core.component import check_choice
from udpbench.interfaces import Measure, PairMetric
from udpbench.models.perceptual import TRUNKS, check_distance, load_distance


@dataclass(kw_only=True)
class Lpips(PairMetric):
    """``lpips_alex`` (what the field reports), ``lpips_vgg`` or ``lpips_squeeze``: see
    ``udpbench.models.perceptual.LpipsDistance``.

    Args:
        net: alex, vgg or squeeze.
        weights: file of the trunk; None: the torch hub's checkpoints.
    """

    net: str = "alex"
    weights: str | None = None

    def __post_init__(self) -> None:
        check_choice("lpips: unknown net", self.net, TRUNKS)
        self.scores = {f"lpips_{self.net}": "down"}

    def check(self) -> None:
        check_distance(f"lpips_{self.net}", self.weights)

    def prepare(self, device: torch.device) -> Measure:
        distance = load_distance(f"lpips_{self.net}", self.weights, device)
        return lambda changed, original: {f"lpips_{self.net}": distance(changed, original)}
