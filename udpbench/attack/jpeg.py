"""Recompression with a real encoder.

What a website, or a thief who tries the cheapest thing first, does to a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from udpbench.core.images import check_codec, recompress
from udpbench.interfaces import Run


class Jpeg:
    """JPEG or lossy WebP at ``quality`` (1-100, of Pillow's encoders), in memory; ``subsampling`` of the chroma.

    WebP has 4:2:0 only.
    """

    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, quality: int = 75, subsampling: str = "4:2:0", format: str = "jpeg") -> None:
        check_codec(format, quality, subsampling)
        self.quality, self.subsampling, self.format = quality, subsampling, format

    @property
    def label(self) -> str:
        """Name with its strength."""
        return f"{self.format}_{self.quality}"

    def purify(
        self, images: Sequence[Tensor], names: Sequence[str], prompts: Sequence[str], model: Any, run: Run
    ) -> list[Tensor]:
        """CHW float32 [0,1] each -> the decoded pictures, same sizes, 8-bit values in [0,1]."""
        with run.log.bar(f"{self.format} {self.quality}", len(images)) as advance:
            done = []
            for image in images:
                done.append(recompress(image, self.format, self.quality, self.subsampling).to(image.device))
                advance(1)
        return done
