"""Down and up again: a baseline of IMPRESS (NeurIPS 2023), whose code names a resize of 512 px pictures to 256."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from udpbench.attack.each import EachPicture
from udpbench.core.codecs import KERNELS, pillow_resize
from udpbench.core.component import check_choice, check_numbers
from udpbench.core.pixels import resize
from udpbench.interfaces import Run

ANTIALIASED = "antialiased"


@dataclass(kw_only=True)
class Resize(EachPicture):
    """Resize both sides to ``scale`` of their length, and back.

    Whether the paper's baseline enlarges its pictures again is not known; here it does, so that the size at which the
    thief trains does not change. Beside a purifier that works at another size it is the control of what the size alone
    does.

    Args:
        scale: above 0, below 1.
        kernel: ``antialiased``: bicubic, in floating point; or one of Pillow's, in 8 bits: nearest, box, bilinear,
            hamming, bicubic, lanczos.
    """

    scale: float
    kernel: str = ANTIALIASED

    def __post_init__(self) -> None:
        check_numbers("attack resize", above=0, below=1, scale=self.scale)
        check_choice("attack resize: unknown kernel", self.kernel, (ANTIALIASED, *KERNELS))

    @property
    def label(self) -> str:
        return f"resize_{self.scale:g}" + ("" if self.kernel == ANTIALIASED else f"_{self.kernel}")

    def pure(self, x: Tensor, name: str, run: Run) -> Tensor:
        height, width = x.shape[-2:]
        size = max(1, round(height * self.scale)), max(1, round(width * self.scale))
        if self.kernel == ANTIALIASED:
            return resize(resize(x[None], size), (height, width))[0]
        return pillow_resize(pillow_resize(x, size, self.kernel), (height, width), self.kernel)
