"""Score distillation against imitation: SDS(+), SDS(-) and SDST (Xue et al., ICLR 2024, arXiv 2311.12832)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from udpbench.core.component import check_choice, check_numbers
from udpbench.interfaces import Owner
from udpbench.models.diffusion import Cond, clean_and_noise
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.denoising import Objective
from udpbench.optim.target import Patterned
from udpbench.protect.advdm import AdvDM

DIRECTIONS = {"descend": -1.0, "ascend": 1.0}


@dataclass(kw_only=True)
class SDS(Patterned, AdvDM):
    """Move pictures along the denoising loss's gradient without the UNet's Jacobian: that of the latents is taken to be
    ``output - noise``, as in score distillation with weight 1, and pulled back through the encoder alone.

    ``direction``: SDS(+) ascends, SDS(-) descends, which the paper prefers: pictures become smoother, edits blurred.
    With ``target_rate`` r it is SDST: the step is along ``r s g_sds - g_T``, ``s`` the direction's sign and ``g_T`` the
    gradient of the summed squared distance of the latents to the target's. Time steps are uniform over all. The loss
    that is logged is the product of latents and the gradient given to them: it says nothing of progress. Our choices
    are: one encoding and the mean of the target's posterior for ``g_T`` (there: an encoding each and a sample), noise
    from the velocity for v-prediction models, the owner's prompts (there: "a photo", or one by the folder's name), and
    the default target.

    Args: those of ``AdvDM``, and
        direction: descend | ascend.
        target_rate: weight of the denoising part beside the target; 0: there is no target.
        target: file of the target picture; None: a checkerboard (see ``Patterned``).
    """

    direction: str = "descend"
    target_rate: float = 0.0

    version = 1
    name: ClassVar[str] = "sds"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(f"{self.name}: unknown direction", self.direction, DIRECTIONS)
        check_numbers(self.name, least=0, target_rate=self.target_rate)

    @property
    def label(self) -> str:
        name = "sdst" if self.target_rate else "sds"
        return "" if (name, self.direction) == ("sds", "descend") else f"{name}_{self.direction}"

    def objective(self, model: LatentDiffusion, owner: Owner) -> Objective:
        weight = DIRECTIONS[self.direction] * (self.target_rate or 1.0)
        targets: Sequence[Tensor] = self.target_latents(model, owner) if self.target_rate else ()

        def pulled(z: Tensor, cond: Cond, t: Tensor, noise: Tensor, which: list[int]) -> Tensor:
            given = weight * predicted_noise(model, z.detach(), cond, t, noise).sub(noise)
            product = (z * given).flatten(1).sum(1)
            if not targets:
                return product
            return product - (z - torch.stack([targets[i] for i in which])).square().flatten(1).sum(1)

        return pulled


@torch.no_grad()
def predicted_noise(model: LatentDiffusion, z: Tensor, cond: Cond, t: Tensor, noise: Tensor) -> Tensor:
    """The noise that ``model`` sees in latents ``z`` (N, C, h, w) noised by ``noise`` to time steps ``t`` (N,)."""
    noisy, a = model.noised(z, t, noise), model.alpha_bar_on(z.device)[t].view(-1, 1, 1, 1)
    output = model.predict(noisy, t, cond)
    return clean_and_noise(output, noisy, a, model.prediction)[1]
