"""IMPRESS++: noise, IMPRESS, and a negative prompt when pictures are generated (Hönig et al., ICLR 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from udpbench.attack.gaussian_noise import GaussianNoise
from udpbench.attack.impress import Impress
from udpbench.interfaces import Images, Run, Texts
from udpbench.models.latent import LatentDiffusion


@dataclass(kw_only=True)
class ImpressPP(Impress):
    """Gaussian noise drowns the perturbation before IMPRESS's optimisation takes the noise away; what is left of either
    is steered away from in the generation.

    The authors' README: the three steps and their order. No code and no numbers of it are released, so all settings are
    our choice (IMPRESS's own where it has them), and their denoising of the generated pictures is left out.

    Args: those of ``Impress``, and
        noise: standard deviation of 255.
        negative_prompt: in the generation; it counts where the task has guidance.
    """

    noise: float
    negative_prompt: str

    name = "impress_pp"

    def purify(self, images: Images, names: Texts, prompts: Texts, model: LatentDiffusion, run: Run) -> list[Tensor]:
        noisy = GaussianNoise(std=self.noise).purify(images, names, prompts, None, run)
        return super().purify(noisy, names, prompts, model, run)

    def sampling(self) -> dict[str, Any]:
        return {"negative_prompt": self.negative_prompt}
