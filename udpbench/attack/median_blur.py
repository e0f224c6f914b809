"""Median filter, one of the purifications of CopyrightMeter (7 x 7) and of feature squeezing (Xu et al., NDSS 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from udpbench.attack.each import EachPicture
from udpbench.core.component import check_numbers
from udpbench.interfaces import Run


@dataclass(kw_only=True)
class MedianBlur(EachPicture):
    """Each value becomes the median of its channel's ``window`` x ``window`` pixels; edge pixels are repeated.

    Args:
        window: its side in pixels, odd.
    """

    window: int

    called = "median_blur_{window}"

    def __post_init__(self) -> None:
        check_numbers("attack median_blur", least=3, most=99, window=self.window)  # its time grows with it
        if self.window % 2 == 0:
            raise ValueError(f"attack median_blur: window must be odd, given {self.window}")

    def pure(self, x: Tensor, name: str, run: Run) -> Tensor:
        from scipy.ndimage import median_filter

        return torch.from_numpy(median_filter(x.cpu().numpy(), size=(1, self.window, self.window), mode="nearest"))
