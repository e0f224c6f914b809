"""Cut the borders off and enlarge: the robustness test of Mist's own repository (384 of 512 pixels)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from udpbench.attack.each import EachPicture
from udpbench.core.component import check_numbers
from udpbench.core.pixels import cropped, resize
from udpbench.interfaces import Run


@dataclass(kw_only=True)
class CropResize(EachPicture):
    """Keep the central ``keep`` of both sides, resized (antialiased bicubic) to the size the picture had."""

    keep: float

    called = "crop_resize_{keep:g}"

    def __post_init__(self) -> None:
        check_numbers("attack crop_resize", above=0, below=1, keep=self.keep)

    def pure(self, x: Tensor, name: str, run: Run) -> Tensor:
        height, width = x.shape[-2:]
        return resize(cropped(x, self.keep)[None], (height, width))[0]
