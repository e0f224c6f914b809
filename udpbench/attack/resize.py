"""Down and up again: a baseline of IMPRESS (NeurIPS 2023), whose code names a resize of 512 px pictures to 256."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from udpbench.attack.each import EachPicture
from udpbench.core.component import check_numbers
from udpbench.core.images import resize
from udpbench.interfaces import Run


@dataclass(kw_only=True)
class Resize(EachPicture):
    """Antialiased bicubic resize of both sides to ``scale`` of their length, and back.

    Whether the paper's baseline enlarges its pictures again is not known; here it does, so that the size at which the
    thief trains does not change.
    """

    scale: float

    def __post_init__(self) -> None:
        check_numbers("attack resize", above=0, below=1, scale=self.scale)

    @property
    def label(self) -> str:
        return f"resize_{self.scale:g}"

    def pure(self, x: Tensor, name: str, run: Run) -> Tensor:
        height, width = x.shape[-2:]
        small = resize(x[None], (max(1, round(height * self.scale)), max(1, round(width * self.scale))))
        return resize(small, (height, width))[0]
