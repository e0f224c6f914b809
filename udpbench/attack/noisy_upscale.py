"""Noisy upscaling: drown the perturbation in noise, and have a diffusion model enlarge what is left.

Hönig et al., ICLR 2025 ("Adversarial Perturbations Cannot Reliably Protect Artists From Generative AI").
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from udpbench.attack.super_resolution import SuperResolution
from udpbench.core.component import check_numbers
from udpbench.core.images import as_saved
from udpbench.interfaces import Run
from udpbench.models.upscaler import Upscaler
from udpbench.optim.transforms import noisy


@dataclass(kw_only=True)
class NoisyUpscale(SuperResolution):
    """Normal noise of ``std`` (of 255) on the picture at its own size, 8 bits, then the upscaler; the large picture is
    reduced to the size of the first.

    The authors keep the large one and let the training cut it; a picture keeps its size here. Their fork of diffusers
    sets a second noise level, which the library's pipeline has not.

    Args: those of ``SuperResolution``, and
        std: of the noise; 25.5 is 0.1 on [0,1].
    """

    std: float

    name = "noisy_upscale"
    called = "noisy_upscale_{std:g}"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(f"attack {self.name}", least=0, most=255, std=self.std)

    def small(self, x: Tensor, name: str, model: Upscaler, run: Run) -> Tensor:
        return as_saved(noisy(x, run.rng("noisy_upscale", name), self.std))
