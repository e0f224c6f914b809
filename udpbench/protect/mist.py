"""Mist: semantic and textural losses against imitation (Liang & Wu, arXiv 2305.12683)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from udpbench.core.component import check_choice, check_numbers
from udpbench.interfaces import Owner, Run
from udpbench.models.diffusion import Cond
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.denoising import Objective
from udpbench.optim.pgd import Loss
from udpbench.optim.samples import normal
from udpbench.optim.target import Patterned, mse
from udpbench.protect.advdm import AdvDM

MODES = ("fused", "textural", "semantic")


@dataclass(kw_only=True)
class Mist(Patterned, AdvDM):
    """Raise ``semantic_weight * L - mean |z - z_T|^2``, ``z`` and ``z_T`` the latents of picture and target, ``L`` the
    denoising loss.

    ``mode``: ``fused`` both terms, as above; ``textural`` the second alone, which needs no UNet; ``semantic`` the
    first alone, which is AdvDM. The released code sums over the 4 x 64 x 64 values of a latent where the mean stands
    here, and weighs ``L``, a mean, by 10^(rate + 3), by default 10^4: beside a mean that is 10^4 / 16384, whatever
    the size of the latents. Our choices are: the mean of the target's posterior (there: a sample, which changes no
    expected gradient), one encoding of the picture for both terms (there: one each), the owner's prompts (there: "a
    painting" or "a photo"), and the default target.

    Args: those of ``AdvDM``, and
        mode: fused | textural | semantic.
        semantic_weight: of the denoising loss, beside a mean of squares; in ``fused`` only.
        target: file of the target picture; None: a checkerboard (see ``Patterned``).
    """

    mode: str = "fused"
    semantic_weight: float = 1e4 / (4 * 64 * 64)

    version = 1
    name: ClassVar[str] = "mist"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(f"{self.name}: unknown mode", self.mode, MODES)
        check_numbers(self.name, least=0, semantic_weight=self.semantic_weight)
        if self.mode == "textural":
            self.needs = frozenset({"latent"})

    @property
    def label(self) -> str:
        return "" if self.mode == "fused" else f"mist_{self.mode}"

    def image_loss(self, model: LatentDiffusion, owner: Owner, run: Run) -> Loss:
        return self._textural(model, owner, run) if self.mode == "textural" else super().image_loss(model, owner, run)

    def objective(self, model: LatentDiffusion, owner: Owner) -> Objective | None:
        if self.mode == "semantic":
            return None
        targets = self.target_latents(model, owner)

        def fused(z: Tensor, cond: Cond, t: Tensor, noise: Tensor, which: list[int]) -> Tensor:
            distance = mse(z, torch.stack([targets[i] for i in which]))
            return self.semantic_weight * model.loss(z, cond, t, noise) - distance

        return fused

    def _textural(self, model: LatentDiffusion, owner: Owner, run: Run) -> Loss:
        targets, n = self.target_latents(model, owner), self.samples
        rngs = [run.rng("mist", name) for name in owner.names]

        def loss(x: Tensor, index: list[int]) -> Tensor:
            run.tally("vae_image", len(x))
            z, std = (moment.repeat_interleave(n, 0) for moment in model.moments(x))
            if self.sample_latents:
                z = z + std * normal([rngs[i] for i in index], n, z)
            wanted = torch.stack([targets[i] for i in index]).repeat_interleave(n, 0)
            return -mse(z, wanted).view(len(x), n).mean(1)

        return loss
