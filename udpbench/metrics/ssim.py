"""Structural similarity of a changed picture with its original (Wang et al. 2004)."""

from __future__ import annotations

import torch
from torch import Tensor

from udpbench.core.visibility import WINDOW, ssim
from udpbench.interfaces import Measure, PairMetric


class Ssim(PairMetric):
    """Structural similarity, mean over RGB and all places where its window fits; see ``udpbench.core.visibility.ssim``.

    torchmetrics also counts padded places and so differs a little.
    """

    scores = {"ssim": "up"}
    least_side = WINDOW

    def prepare(self, device: torch.device) -> Measure:
        def values(changed: Tensor, original: Tensor) -> dict[str, Tensor]:
            rows = [ssim(clean, protected) for clean, protected in zip(original, changed, strict=True)]
            return {"ssim": torch.tensor(rows, dtype=torch.float64)}

        return values
