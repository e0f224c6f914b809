"""Pictures encoded or resized by other programs' code, and read again."""

from __future__ import annotations

import io

from PIL import Image
from torch import Tensor

from udpbench.core.images import from_pil, to_pil

KERNELS = {kernel.name.lower(): kernel for kernel in Image.Resampling}


def pillow_resize(x: Tensor, size: tuple[int, int], kernel: str) -> Tensor:
    """CHW [0,1], rounded to 8 bits, resized to (height, width) by Pillow with ``kernel``, one of ``KERNELS``."""
    return from_pil(to_pil(x).resize(size[::-1], KERNELS[kernel])).to(x.device)


FORMATS = ("jpeg", "webp")
LONGEST = {"jpeg": 65500, "webp": 16383}  # sides that they can hold, in pixels
SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")


def recompress(x: Tensor, format: str, quality: int, subsampling: str = "4:2:0") -> Tensor:
    """Encode CHW [0,1] (rounded to 8 bits) and decode it again; float32 CHW in [0,1] on the CPU.

    ``format``: one of ``FORMATS``; ``quality``: 1 to 100; ``subsampling``: one of ``SUBSAMPLINGS``, of JPEG alone.
    """
    buffer, options = io.BytesIO(), {"subsampling": subsampling} if format == "jpeg" else {}
    to_pil(x).save(buffer, format=format, quality=quality, **options)
    with Image.open(buffer) as image:
        return from_pil(image)
