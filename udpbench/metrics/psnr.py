"""Peak signal-to-noise ratio of a change."""

from __future__ import annotations

import torch

from udpbench.core.visibility import psnr
from udpbench.interfaces import Measure, PairMetric


class Psnr(PairMetric):
    """Peak signal-to-noise ratio in dB over all pixels and channels of a picture, peak 1; infinite if unchanged."""

    scores = {"psnr": "up"}

    def prepare(self, device: torch.device) -> Measure:
        return lambda changed, original: {"psnr": psnr(changed, original)}
