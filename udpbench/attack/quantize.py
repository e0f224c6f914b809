"""Fewer values: a perturbation smaller than a step of the scale is rounded away, or to a whole step."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from udpbench.attack.each import EachPicture
from udpbench.core.component import check_numbers
from udpbench.core.images import from_pil, to_pil
from udpbench.interfaces import Run


@dataclass(kw_only=True)
class Quantize(EachPicture):
    """Round every channel to ``bits``, or the picture to a palette of ``colours``; one of the two.

    Args:
        bits: 1 to 7; the 2^bits values are spread over [0,1] (feature squeezing, Xu et al., NDSS 2018).
        colours: 2 to 256, of the picture's own palette by median cut, without dithering (CopyrightMeter's "Quantize",
            256).
    """

    bits: int | None = None
    colours: int | None = None

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.colours is None):
            raise ValueError(f"attack quantize: give bits or colours, given {self.bits} and {self.colours}")
        if self.bits is not None:
            check_numbers("attack quantize", least=1, most=7, bits=self.bits)
        if self.colours is not None:
            check_numbers("attack quantize", least=2, most=256, colours=self.colours)

    @property
    def label(self) -> str:
        return f"quantize_{self.bits}bit" if self.bits else f"quantize_{self.colours}colours"

    def pure(self, x: Tensor, name: str, run: Run) -> Tensor:
        if self.bits:
            return (x * (steps := 2**self.bits - 1)).round() / steps
        palette = to_pil(x).quantize(self.colours or 0, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        return from_pil(palette.convert("RGB")).to(x.device)
