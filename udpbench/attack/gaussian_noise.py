"""Gaussian noise on top of the cloak: a baseline of IMPRESS (NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from udpbench.interfaces import Run


class GaussianNoise:
    """Add normal noise of ``levels`` standard deviation (8-bit levels) to every pixel and channel, and clip.

    IMPRESS's code names noise of 0.1 without saying of what: of [0,1] that is 25.5 levels, of the model's range
    [-1,1] 12.75.
    """

    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, std: float) -> None:
        if not 0 < std <= 255:
            raise ValueError(f"attack gaussian_noise: std must be above 0 and at most 255, given {std}")
        self.std = std

    @property
    def label(self) -> str:
        """Name with its strength."""
        return f"gaussian_noise_{self.std:g}"

    def purify(
        self, images: Sequence[Tensor], names: Sequence[str], prompts: Sequence[str], model: Any, run: Run
    ) -> list[Tensor]:
        """Noisy pictures, CHW [0,1]."""
        noise = (
            torch.randn(x.shape, generator=run.rng("gaussian_noise", n)) for x, n in zip(images, names, strict=True)
        )
        return [(x + self.std / 255 * e).clamp(0, 1) for x, e in zip(images, noise, strict=True)]
