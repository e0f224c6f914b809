"""Visual information fidelity of a changed picture (Sheikh & Bovik 2006)."""

from __future__ import annotations

import torch
from torch import Tensor

from udpbench.interfaces import Measure, PairMetric


class Vif(PairMetric):
    """Pixel-domain visual information fidelity, by torchmetrics; 1 for equal pictures."""

    scores = {"vif": "up"}
    least_side = 41  # or its coarsest scale would have nothing left

    def prepare(self, device: torch.device) -> Measure:
        from torchmetrics.functional.image import visual_information_fidelity

        def values(changed: Tensor, original: Tensor) -> dict[str, Tensor]:
            pairs = zip(changed.split(1), original.split(1), strict=True)  # in [0,255], as its noise constant is
            return {"vif": torch.stack([visual_information_fidelity(255 * x, 255 * y) for x, y in pairs])}

        return values
