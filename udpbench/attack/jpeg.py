"""Recompression with a real encoder.

What a website, or a thief who tries the cheapest thing first, does to a picture.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from udpbench.images import from_pil, to_pil
from udpbench.types import Run

FORMATS = ("jpeg", "webp")
SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")


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


def recompress(x: Tensor, format: str, quality: int, subsampling: str = "4:2:0") -> Tensor:
    """Encode CHW [0,1] (rounded to 8 bits) and decode it again; float32 CHW in [0,1] on the CPU."""
    check_codec(format, quality, subsampling)
    buffer = io.BytesIO()
    if format == "jpeg":
        to_pil(x).save(buffer, format="JPEG", quality=quality, subsampling=subsampling)
    else:
        to_pil(x).save(buffer, format="WEBP", quality=quality)
    with Image.open(buffer) as image:
        return from_pil(image)


def check_codec(format: str, quality: int, subsampling: str = "4:2:0") -> None:
    """ValueError unless Pillow can encode this."""
    if format not in FORMATS:
        raise ValueError(f"attack jpeg: unknown format {format!r}; allowed are {', '.join(FORMATS)}")
    if not isinstance(quality, int) or isinstance(quality, bool) or not 1 <= quality <= 100:
        raise ValueError(f"attack jpeg: quality must be a whole number from 1 to 100, given {quality!r}")
    if subsampling not in SUBSAMPLINGS:
        raise ValueError(f"attack jpeg: unknown subsampling {subsampling!r}; allowed are {', '.join(SUBSAMPLINGS)}")
    if format == "webp" and subsampling != "4:2:0":
        raise ValueError(f"attack jpeg: lossy webp always stores chroma 4:2:0, given {subsampling!r}")
