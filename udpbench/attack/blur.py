"""Gaussian blur: the control whose damage is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from udpbench.core.images import smooth
from udpbench.interfaces import Attack, Run


@dataclass(kw_only=True)
class Blur(Attack):
    """Convolve with a Gaussian of standard deviation ``sigma`` pixels (of the picture as it is)."""

    sigma: float

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"attack blur: sigma must be above 0 pixels, given {self.sigma}")

    @property
    def label(self) -> str:
        return f"blur_{self.sigma:g}"

    def purify(
        self, images: Sequence[Tensor], names: Sequence[str], prompts: Sequence[str], model: Any, run: Run
    ) -> list[Tensor]:
        return [smooth(x[None], self.sigma)[0].clamp(0, 1) for x in images]
