"""Structural similarity of a changed picture with its original (Wang et al. 2004)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from udpbench.core.visibility import GAUSSIAN, WINDOW, ssim
from udpbench.interfaces import Measure, PairMetric


class Ssim(PairMetric):
    """Structural similarity, mean over RGB and all places where its window fits; see ``udpbench.core.visibility.ssim``.

    torchmetrics also counts padded places and so differs a little; sewar's has another window (``ssim_uniform``).
    """

    scores = {"ssim": "up"}
    window: ClassVar[Sequence[float]] = GAUSSIAN
    least_side = WINDOW

    def prepare(self, device: torch.device) -> Measure:
        def values(changed: Tensor, original: Tensor) -> dict[str, Tensor]:
            pairs = zip(original, changed, strict=True)
            rows = [ssim(clean, protected, self.window) for clean, protected in pairs]
            return {name: torch.tensor(rows, dtype=torch.float64) for name in self.scores}

        return values
