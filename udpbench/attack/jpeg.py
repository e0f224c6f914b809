"""Recompression with a real encoder, as websites do to every picture."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from udpbench.attack.each import EachPicture
from udpbench.core.codecs import FORMATS, SUBSAMPLINGS, recompress
from udpbench.core.component import check_choice
from udpbench.interfaces import Run


@dataclass(kw_only=True)
class Jpeg(EachPicture):
    """JPEG or lossy WebP by Pillow's encoders, in memory.

    Args:
        quality: 1 to 100.
        subsampling: of the chroma: 4:4:4, 4:2:2 or 4:2:0; WebP has 4:2:0 only.
        format: ``jpeg`` or ``webp``.
    """

    quality: int = 75
    subsampling: str = "4:2:0"
    format: str = "jpeg"

    called = "{format}_{quality}"

    def __post_init__(self) -> None:
        check_choice("attack jpeg: unknown format", self.format, FORMATS)
        check_choice("attack jpeg: unknown subsampling", self.subsampling, SUBSAMPLINGS)
        if not isinstance(self.quality, int) or isinstance(self.quality, bool) or not 1 <= self.quality <= 100:
            raise ValueError(f"attack jpeg: quality must be a whole number from 1 to 100, given {self.quality!r}")
        if self.format == "webp" and self.subsampling != "4:2:0":
            raise ValueError(f"attack jpeg: lossy webp always stores chroma 4:2:0, given {self.subsampling!r}")

    def pure(self, x: Tensor, name: str, run: Run) -> Tensor:
        return recompress(x, self.format, self.quality, self.subsampling).to(x.device)
