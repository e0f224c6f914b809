"""Colour taken away: a perturbation loses what of it is no brightness."""

from __future__ import annotations

from torch import Tensor

from udpbench.attack.each import EachPicture
from udpbench.core.pixels import luma
from udpbench.interfaces import Run


class Grayscale(EachPicture):
    """The luma of ITU-R BT.601, .299 R + .587 G + .114 B (Pillow's and JPEG's), in all three channels."""

    def pure(self, x: Tensor, name: str, run: Run) -> Tensor:
        return luma(x).expand(3, -1, -1).contiguous()
