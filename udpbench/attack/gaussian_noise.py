"""Gaussian noise on top of the perturbation: a baseline of IMPRESS (NeurIPS 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from udpbench.attack.each import EachPicture
from udpbench.core.component import check_numbers
from udpbench.interfaces import Run
from udpbench.optim.transforms import noisy


@dataclass(kw_only=True)
class GaussianNoise(EachPicture):
    """Add normal noise of standard deviation ``std`` (of 255) to every pixel and channel, and clip to [0,1].

    The code of IMPRESS says noise of 0.1 without its unit: of [0,1] that is 25.5, of the model's range [-1,1] 12.75.
    """

    std: float

    called = "gaussian_noise_{std:g}"

    def __post_init__(self) -> None:
        check_numbers("attack gaussian_noise", above=0, most=255, std=self.std)

    def pure(self, x: Tensor, name: str, run: Run) -> Tensor:
        return noisy(x, run.rng("gaussian_noise", name), self.std)
