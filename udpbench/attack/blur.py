"""Gaussian blur: the control whose damage is known."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from udpbench.attack.each import EachPicture
from udpbench.core.component import check_numbers
from udpbench.core.pixels import smooth
from udpbench.interfaces import Run


@dataclass(kw_only=True)
class Blur(EachPicture):
    """Convolve with a Gaussian of standard deviation ``sigma`` pixels (of the picture as it is)."""

    sigma: float

    called = "blur_{sigma:g}"

    def __post_init__(self) -> None:
        check_numbers("attack blur", above=0, sigma=self.sigma)

    def pure(self, x: Tensor, name: str, run: Run) -> Tensor:
        return smooth(x[None], self.sigma)[0].clamp(0, 1)
