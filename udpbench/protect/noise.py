"""Noise without any model: the controls that a protection must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from udpbench.core.budget import Budget, measure
from udpbench.core.component import check_choice
from udpbench.core.images import as_saved
from udpbench.core.pixels import is_grey
from udpbench.interfaces import Owner, Protection, Run


@dataclass(kw_only=True)
class Noise(Protection):
    """Noise of the whole budget, projected on it.

    Args:
        kind: ``sign`` changes each value by +eps or -eps, ``uniform`` by U(-eps, eps).
    """

    kind: str = "sign"

    couples_images = False

    def __post_init__(self) -> None:
        check_choice("protect noise: unknown kind", self.kind, ("sign", "uniform"))

    def protect(self, owner: Owner, budget: Budget, surrogate: Any, run: Run) -> list[Tensor]:
        return [self._one(x, name, budget, run) for x, name in zip(owner.images, owner.names, strict=True)]

    def _one(self, clean: Tensor, name: str, budget: Budget, run: Run) -> Tensor:
        noise = torch.rand(clean.shape, generator=run.rng("noise", self.kind, name)).to(clean.device) * 2 - 1
        noise = _of_grey(clean, torch.where(noise < 0, -1.0, 1.0) if self.kind == "sign" else noise)
        return budget.project((clean + noise * (budget.eps / 255))[None], clean[None])[0]


def _of_grey(clean: Tensor, noise: Tensor) -> Tensor:
    """``noise`` (CHW), that of one channel in all of them if the picture is grey: a mean of three would be weaker."""
    return torch.where(is_grey(clean[None])[0], noise[:1], noise)


class NoiseRms(Protection):
    """Gaussian noise as strong as a protection was: its RMS on each saved PNG is that of ``owner.like``.

    The noise is clipped at the largest change of that picture and scaled by bisection until its RMS after rounding
    fits (from below; within 2 % unless only a handful of pixels changed). Where a picture is so dark or bright that
    noise would leave [0,1] it points inward, as protections do, or their RMS could not be reached. Neither the largest
    change nor the RMS of the protection is exceeded: if it keeps a budget, so does this, and the given one is not used.
    Pictures are returned rounded to 8 bits.
    """

    couples_images = False
    keeps_budget = False  # as far as the protection does
    matches_strength = True

    def protect(self, owner: Owner, budget: Budget, surrogate: Any, run: Run) -> list[Tensor]:
        if owner.like is None:
            needed = "the saved pictures of the protection it should match"
            raise ValueError(f"protect noise_rms: it needs {needed}, given none")
        items = zip(owner.images, owner.names, owner.like, strict=True)
        return [self._one(clean, run.rng("noise_rms", name), measure(clean, like)) for clean, name, like in items]

    @staticmethod
    def _one(clean: Tensor, rng: torch.Generator, target: dict[str, float]) -> Tensor:
        noise = _of_grey(clean, torch.randn(clean.shape, generator=rng).to(clean.device))
        limit = target["linf"] / 255
        outside = (clean + limit * noise.sign()).clamp(0, 1) != clean + limit * noise.sign()
        noise = torch.where(outside, -noise, noise)

        def scaled(factor: float) -> Tensor:
            return as_saved(clean + (noise * factor).clamp(-limit, limit))

        low, high = 0.0, 1e4 * limit  # there all but 1 in 10,000 values are clipped
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if measure(clean, scaled(middle))["rms"] <= target["rms"] else (low, middle)
        return scaled(low)
