"""Down and up again: a baseline of IMPRESS (NeurIPS 2023), whose code names a resize of 512 px pictures to 256."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from udpbench.core.images import resize
from udpbench.interfaces import Run


class Resize:
    """Antialiased bicubic resize of both sides to ``scale`` of their length, and back to what they were.

    Whether the paper's baseline enlarges its pictures again is not known; here it does, so that the thief trains at
    the size it always does.
    """

    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, scale: float) -> None:
        if not 0 < scale < 1:
            raise ValueError(f"attack resize: scale must be above 0 and below 1, given {scale}")
        self.scale = scale

    @property
    def label(self) -> str:
        """Name with its strength."""
        return f"resize_{self.scale:g}"

    def purify(
        self, images: Sequence[Tensor], names: Sequence[str], prompts: Sequence[str], model: Any, run: Run
    ) -> list[Tensor]:
        """Pictures of the sizes they had, CHW [0,1]."""
        made = []
        for x in images:
            height, width = x.shape[-2:]
            small = resize(x[None], (max(1, round(height * self.scale)), max(1, round(width * self.scale))))
            made.append(resize(small, (height, width))[0])
        return made
