"""Recompression with a real encoder, as websites do to every picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from udpbench.core.images import check_codec, recompress
from udpbench.interfaces import Attack, Run


@dataclass(kw_only=True)
class Jpeg(Attack):
    """JPEG or lossy WebP by Pillow's encoders, in memory.

    Args:
        quality: 1 to 100.
        subsampling: of the chroma: 4:4:4, 4:2:2 or 4:2:0; WebP has 4:2:0 only.
        format: ``jpeg`` or ``webp``.
    """

    quality: int = 75
    subsampling: str = "4:2:0"
    format: str = "jpeg"

    def __post_init__(self) -> None:
        check_codec(self.format, self.quality, self.subsampling)

    @property
    def label(self) -> str:
        return f"{self.format}_{self.quality}"

    def purify(
        self, images: Sequence[Tensor], names: Sequence[str], prompts: Sequence[str], model: Any, run: Run
    ) -> list[Tensor]:
        with run.log.bar(f"{self.format} {self.quality}", len(images)) as advance:
            done = []
            for image in images:
                done.append(recompress(image, self.format, self.quality, self.subsampling).to(image.device))
                advance(1)
        return done
