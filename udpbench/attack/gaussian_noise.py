"""Gaussian noise on top of the perturbation: a baseline of IMPRESS (NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from udpbench.interfaces import Attack, Run


@dataclass(kw_only=True)
class GaussianNoise(Attack):
    """Add normal noise of standard deviation ``std`` (of 255) to every pixel and channel, and clip to [0,1].

    The code of IMPRESS says noise of 0.1 without its unit: of [0,1] that is 25.5, of the model's range [-1,1] 12.75.
    """

    std: float

    def __post_init__(self) -> None:
        if not 0 < self.std <= 255:
            raise ValueError(f"attack gaussian_noise: std must be above 0 and at most 255, given {self.std}")

    @property
    def label(self) -> str:
        return f"gaussian_noise_{self.std:g}"

    def purify(
        self, images: Sequence[Tensor], names: Sequence[str], prompts: Sequence[str], model: Any, run: Run
    ) -> list[Tensor]:
        noise = (
            torch.randn(x.shape, generator=run.rng("gaussian_noise", n)) for x, n in zip(images, names, strict=True)
        )
        return [(x + self.std / 255 * e).clamp(0, 1) for x, e in zip(images, noise, strict=True)]
