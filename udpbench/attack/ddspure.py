"""Denoised diffusion smoothing as a purifier: as much noise as a perturbation of a known size asks for.

After Carlini et al. (ICLR 2023); as used against protections by MetaCloak's and DiffShortcut's authors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from udpbench.attack.diffpure import DiffPure
from udpbench.core.component import check_numbers
from udpbench.interfaces import Run
from udpbench.models.pixel import PixelDiffusion


@dataclass(kw_only=True)
class DdsPure(DiffPure):
    """DiffPure whose t is the first time step with ``alpha_bar < 1 / (1 + d^2)``, at which the noise of a picture
    scaled back to its size is d, the perturbation's radius in the model's range [-1,1].

    The released code's: the rule (there the nearer one of that time step and the one before), a radius of 11, the
    sampler. It gives pictures in [0,1] to a model of [-1,1] and uses a step of 1,000 as one of 250; here both are
    right.

    Args: those of ``DiffPure`` but t, and
        radius: of the perturbation, of 255; the thief has to know it.
        rounds: how often.
    """

    radius: float
    rounds: int = 1
    t: int = 1  # follows from the radius

    name = "ddspure"
    called = "ddspure_{radius:g}"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(f"attack {self.name}", above=0, most=255, radius=self.radius)
        check_numbers(f"attack {self.name}", least=1, rounds=self.rounds)
        if self.t != 1:
            raise ValueError(f"attack ddspure: t follows from the radius; leave it out, given {self.t}")

    @property
    def most_steps(self) -> float:
        return math.inf  # t is not known before the model is; as many as there are, then

    def level(self, model: PixelDiffusion) -> int:
        """The first time step, counted from 1, that is noisy enough; the last one, if none is."""
        enough = model.alpha_bar.double() < 1 / (1 + (2 * self.radius / 255) ** 2)
        return int(enough.int().argmax()) + 1 if bool(enough.any()) else len(enough)

    def denoised(self, x: Tensor, rngs: Sequence[torch.Generator], model: PixelDiffusion, run: Run) -> Tensor:
        for _ in range(self.rounds):
            x = self.there_and_back(x, rngs, model, run)
        return x
