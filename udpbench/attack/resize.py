"""Down and up again: a baseline of IMPRESS (NeurIPS 2023), whose code names a resize of 512 px pictures to 256."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from udpbench.core.images import resize
from udpbench.interfaces import Attack, Run


@dataclass(kw_only=True)
class Resize(Attack):
    """Antialiased bicubic resize of both sides to ``scale`` of their length, and back.

    Whether the paper's baseline enlarges its pictures again is not known; here it does, so that the size at which the
    thief trains does not change.
    """

    scale: float

    def __post_init__(self) -> None:
        if not 0 < self.scale < 1:
            raise ValueError(f"attack resize: scale must be above 0 and below 1, given {self.scale}")

    @property
    def label(self) -> str:
        return f"resize_{self.scale:g}"

    def purify(
        self, images: Sequence[Tensor], names: Sequence[str], prompts: Sequence[str], model: Any, run: Run
    ) -> list[Tensor]:
        made = []
        for x in images:
            height, width = x.shape[-2:]
            small = resize(x[None], (max(1, round(height * self.scale)), max(1, round(width * self.scale))))
            made.append(resize(small, (height, width))[0])
        return made
