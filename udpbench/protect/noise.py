"""Noise without any model: the controls that a protection must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from udpbench.core.budget import Budget, measure
from udpbench.core.images import as_saved
from udpbench.interfaces import Owner, Run


class Noise:
    """Noise of the whole budget: ``sign`` changes each value by +-levels, ``uniform`` by U(-levels, levels).

    Then projected.
    """

    version: ClassVar[int] = 1
    couples_images: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, kind: str = "sign") -> None:
        if kind not in ("sign", "uniform"):
            raise ValueError(f"protect noise: unknown kind {kind!r}; allowed are sign, uniform")
        self.kind = kind

    def __call__(self, owner: Owner, budget: Budget, surrogates: Sequence, run: Run) -> list[Tensor]:
        """CHW float32 [0,1] each; the draw of a picture belongs to its name."""
        return [self._one(x, name, budget, run) for x, name in zip(owner.images, owner.names, strict=True)]

    def _one(self, clean: Tensor, name: str, budget: Budget, run: Run) -> Tensor:
        draw = torch.rand(clean.shape, generator=run.rng("noise", self.kind, name)).to(clean.device) * 2 - 1
        draw = torch.where(draw < 0, -1.0, 1.0) if self.kind == "sign" else draw
        return budget.project((clean + draw * (budget.eps / 255))[None], clean[None])[0]


class NoiseRms:
    """Gaussian noise as strong as a protection was.

    For each picture the RMS of the saved PNG is that of the protection's. ``owner.like`` holds the protection's saved
    pictures. The noise is clipped at the largest change of that picture and scaled until its RMS after rounding fits
    (from below; within 2 % unless only a handful of pixels changed). Where a picture is so dark or bright that noise
    would leave [0,1] it points inward, as protections do, or their RMS could not be reached. So neither length of the
    protection is exceeded: if it keeps a budget, so does its control, and the given budget is not needed.
    """

    version: ClassVar[int] = 1
    couples_images: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    keeps_budget: ClassVar[bool] = False  # as far as the protection does
    wants_like: ClassVar[bool] = True

    def __call__(self, owner: Owner, budget: Budget, surrogates: Sequence, run: Run) -> list[Tensor]:
        """CHW float32 [0,1] each, already rounded to 8 bits; the draw of a picture belongs to its name."""
        if owner.like is None:
            raise ValueError(
                "protect noise_rms: it needs the saved pictures of the protection it should match, given none"
            )
        items = zip(owner.images, owner.names, owner.like, strict=True)
        return [self._one(clean, run.rng("noise_rms", name), measure(clean, like)) for clean, name, like in items]

    @staticmethod
    def _one(clean: Tensor, rng: torch.Generator, target: dict[str, float]) -> Tensor:
        draw = torch.randn(clean.shape, generator=rng).to(clean.device)
        limit = target["linf"] / 255
        outside = (clean + limit * draw.sign()).clamp(0, 1) != clean + limit * draw.sign()
        draw = torch.where(outside, -draw, draw)

        def scaled(factor: float) -> Tensor:
            return as_saved(clean + (draw * factor).clamp(-limit, limit))

        low, high = 0.0, 1e4 * limit  # there all but 1 in 10,000 values are clipped
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if measure(clean, scaled(middle))["rms"] <= target["rms"] else (low, middle)
        return scaled(low)
