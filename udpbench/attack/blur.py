"""Gaussian blur: the control whose damage is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from udpbench.core.images import smooth
from udpbench.interfaces import Run


class Blur:
    """Convolve with a Gaussian of standard deviation ``sigma`` pixels (of the picture as it is)."""

    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, sigma: float) -> None:
        if not sigma > 0:
            raise ValueError(f"attack blur: sigma must be above 0 pixels, given {sigma}")
        self.sigma = sigma

    @property
    def label(self) -> str:
        """Name with its strength."""
        return f"blur_{self.sigma:g}"

    def purify(
        self, images: Sequence[Tensor], names: Sequence[str], prompts: Sequence[str], model: Any, run: Run
    ) -> list[Tensor]:
        """Blurred pictures, CHW [0,1]."""
        return [smooth(x[None], self.sigma)[0].clamp(0, 1) for x in images]
