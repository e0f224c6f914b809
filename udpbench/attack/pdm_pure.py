"""PDM-Pure: a diffusion model of pixels, which perturbations made for latent models do not fool, then an upscaler.

Xue & Chen, arXiv 2404.13320 ("Pixel is a Barrier").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from udpbench.attack.diffpure import DiffPure
from udpbench.attack.super_resolution import Upscaling
from udpbench.core.component import check_numbers
from udpbench.interfaces import Run
from udpbench.models.diffusion import Diffusion
from udpbench.models.pixel import PixelDiffusion
from udpbench.models.upscaler import Upscaler


@dataclass(kw_only=True)
class PdmPure(Upscaling, DiffPure):
    """A little noise at the size of the pixel model, a few of its steps back, then ``upscaler``, and the picture is
    resized to its own size.

    The released code's: ten steps within the lowest tenth of the schedule; the noise is that of the time step ``less``
    of them lower, while the model begins at the highest, and so takes away more than was added; the prompt "a picture".
    With ``less`` 0 it is SDEdit in pixels, as the paper describes. There the pixel model is the second stage of
    DeepFloyd IF, given the prompt and the picture itself as the one to be enlarged; our choice is a model that is given
    nothing (DDPM-shaped), so IF itself is not offered.

    Args: those of ``DiffPure`` and ``Upscaling``, and
        less: steps by which the noise is lower than where the model begins.
        upscaler: the model that enlarges; None: none, the picture is resized.
    """

    less: int
    upscaler: Diffusion | None

    name = "pdm_pure"
    needs = DiffPure.needs

    called = "pdm_pure_{t}"

    def __post_init__(self) -> None:
        DiffPure.__post_init__(self)
        Upscaling.__post_init__(self)
        check_numbers(f"attack {self.name}", least=0, below=min(self.t, self.steps or self.t), less=self.less)

    def check(self) -> None:
        super().check()
        if self.upscaler and "upscale" not in self.upscaler.capabilities:
            raise ValueError(f"attack pdm_pure: upscaler {self.upscaler.name} is no model that enlarges pictures")
        if isinstance(self.upscaler, Upscaler):
            self.upscaler.check_request(self.noise_level, self.model_prompts())

    def noise_at(self, indices: Sequence[int]) -> int:
        return indices[self.less]

    def denoised(self, x: Tensor, rngs: Sequence[torch.Generator], model: PixelDiffusion, run: Run) -> Tensor:
        pure = self.there_and_back(x, rngs, model, run)
        upscaler: Any = self.upscaler and self.upscaler.on(run)
        return self.enlarged(pure, [""] * len(pure), rngs, upscaler, run) if upscaler else pure
