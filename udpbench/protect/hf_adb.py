"""HF-ADB: ASPL with a large budget where the picture has high frequencies (Onikubo & Matsui, ECCV 2024 workshop, arXiv
2409.08167)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from udpbench.core.budget import MAXIMUM, Budget, Linf
from udpbench.core.component import check_choice, check_numbers
from udpbench.core.pixels import luma
from udpbench.interfaces import Owner, Run
from udpbench.models.latent import LatentDiffusion
from udpbench.protect.aspl import ASPL

BOUNDS = ("linf", "rms")


@dataclass(kw_only=True)
class HFADB(ASPL):
    """ASPL whose bound is ``eps`` on the pixels of the highest frequencies and ``outside`` times that on the others,
    for what purifiers keep of a perturbation they keep there.

    Args: those of ``ASPL``, and
        fraction: of a picture's pixels that are inside: those with the largest response of a 3 x 3 Laplacian (8 at the
            centre, -1 around it) of the grey clean picture, whose negative values count as 0, as in the released code
            (there the grey picture is rounded to 8 bits before the filter, here the response alone is).
        outside: the bound of the others over that inside.
        bound: what of the perturbation ``budget.eps`` is. ``linf``: the bound inside, as in the released code; ``rms``:
            the root mean square of a perturbation that is at its bounds everywhere, so that the bound inside is eps /
            sqrt(fraction + (1 - fraction) outside^2). That is our choice where methods are compared: at one linf bound,
            a change of a few pixels is next to nothing. It exceeds budget=linf, and is flagged there; budget=rms and
            budget=perceptual it keeps. The bound outside follows: with eps 8 and the published fractions it is 0.92
            of 255, less than one step of 8 bits, so the saved picture is as before there; from eps 8.8 it is a whole
            step, and nearly every value may change.
    """

    fraction: float
    outside: float
    bound: str = "linf"

    name: ClassVar[str] = "hf_adb"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self.name, above=0, most=1, fraction=self.fraction)
        check_numbers(self.name, least=0, most=1, outside=self.outside)
        check_choice(f"{self.name}: unknown bound", self.bound, BOUNDS)
        self.keeps_budget = self.bound == "linf"

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        within = HighFrequency(budget, self.fraction, self.outside, self.bound)
        return super().protect(owner, within, surrogate, run)


class HighFrequency(Budget):
    """A budget whose bound on a pixel is ``eps`` where the clean picture has high frequencies, ``outside`` times that
    elsewhere; with ``bound`` linf, the given ``budget`` holds, too."""

    def __init__(self, budget: Budget, fraction: float, outside: float, bound: str) -> None:
        root = math.sqrt(fraction + (1 - fraction) * outside**2)
        self.fraction, self.outside = fraction, outside
        self.also = budget if bound == "linf" or budget.kind == "rms" else Linf(MAXIMUM)  # which keeps grey grey
        self.eps = budget.eps if bound == "linf" else budget.eps / root

    def project(self, x: Tensor, clean: Tensor) -> Tensor:
        inside, outside = (min(eps, math.floor(eps) + 0.49) / 255 for eps in (self.eps, self.eps * self.outside))
        most = torch.where(high_frequencies(clean, self.fraction), inside, outside)
        return self.also.project(torch.minimum(torch.maximum(x, clean - most), clean + most), clean)

    def direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign() / 255


def high_frequencies(clean: Tensor, fraction: float) -> Tensor:
    """The pixels of NCHW pictures with the largest Laplacian, ``fraction`` of each, (N, 1, H, W) of bools."""
    grey = luma(clean)
    around = F.pad(grey, (1, 1, 1, 1), mode="reflect")
    # 8-bit. In the released code the grey picture is, before the filter, and so the response.
    response = (9 * grey - F.avg_pool2d(around, 3, 1) * 9).clamp(0, 1).mul(255).round()
    n = int(fraction * response[0].numel())
    first = response.flatten(1).argsort(dim=1, descending=True, stable=True)[:, :n]
    return torch.zeros_like(response, dtype=torch.bool).flatten(1).scatter(1, first, True).view_as(response)
