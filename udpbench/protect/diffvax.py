"""DiffVax: a network that protects a picture in one pass (Ozden et al., ICLR 2026, arXiv 2411.17957)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udpbench.core.budget import Budget
from udpbench.core.component import check_numbers
from udpbench.core.memory import queued
from udpbench.interfaces import Owner, Run
from udpbench.models.latent import LatentDiffusion
from udpbench.models.networks import initialised_by
from udpbench.models.unetpp import UNetPlusPlus
from udpbench.optim.chains import OFFSET, Inpainting
from udpbench.optim.fit import FitSettings, fit
from udpbench.optim.masked import MaskedProtection
from udpbench.optim.pgd import by_size, chunks

STATE = "diffvax.ckpt"


@dataclass(kw_only=True)
class DiffVax(MaskedProtection):
    """Train ``net`` to lower ``mean |edit(x + d) on m| + alpha * mean |d| on 1 - m``, pixels in [-1,1], for pictures
    ``x`` whose part ``m`` is painted anew, ``d = (1 - m) net((1 - m) x)``; then perturb each picture by its ``d``.

    ``edit`` is a whole inpainting in a few steps of DDIM, guided by a prompt: its result shall be grey.

    The paper's and the released code's: the objective, a UNet++, Adam, training pictures that are not those to be
    protected (818 there). The released code's: the network sees the kept part alone, the rest grey. The released
    weights, which belong to Stable Diffusion's inpainting model, are not used. Our choices: the training pictures are
    class pictures of the surrogate, each with a prompt and a mask of the owner's, drawn at random; or, with
    ``class_images`` 0, the owner's own. What is protected is projected on the budget, where the released code has no
    bound but ``alpha``; the gradient goes through that as if it were not there, so a large one (``budget.eps=128``)
    leaves the published objective. The posterior mean; group norms; evaluations recomputed in the
    backward pass (not counted); for a UNet that takes latents alone see ``Inpainting``. The training is a part of this
    stage and depends on all pictures.

    Args: those of ``Masked``, and
        iterations, lr, batch: of the network's training; every step draws pictures, masks, prompts and noise.
        widths: channels of the network's levels.
        alpha: weight of the perturbation's size.
        sample_steps, guidance: of the inpainting; with a guidance of 1 half as many UNet evaluations.
        class_images: how many class pictures it is trained on; 0: on the owner's pictures.
        save_every: steps between checkpoints; 0: none.
    """

    iterations: int
    lr: float
    batch: int
    widths: Sequence[int]
    alpha: float
    sample_steps: int
    guidance: float
    class_images: int = 0
    save_every: int = 0

    version = 2  # 2: the network sees the kept part alone, in [-1,1]
    name = "diffvax"
    places = ("mask", "save_every")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self.name, least=1, iterations=self.iterations, batch=self.batch, sample_steps=self.sample_steps)
        check_numbers(self.name, least=0, alpha=self.alpha, guidance=self.guidance, class_images=self.class_images)
        if not self.widths or any(width < 8 or width % 8 for width in self.widths):
            raise ValueError(f"diffvax: widths must be multiples of 8, given {list(self.widths)}")
        if self.class_images:
            self.needs = self.needs | {"class_images"}
        self.training = FitSettings(
            steps=self.iterations, lr=self.lr, weight_decay=0.0, clip_norm=0.0, save_every=self.save_every
        )

    def check_model(self, model: LatentDiffusion) -> None:
        model.check_steps(self.name, OFFSET, sample_steps=self.sample_steps)

    def model_prompts(self, prompts: Sequence[str]) -> list[str]:
        return [*prompts, ""]

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        anew = self.anew_of(owner)
        with initialised_by(run.rng(self.name)):
            net = UNetPlusPlus(self.widths).to(run.device)
        weights, file = list(net.parameters()), None if run.scratch is None else run.scratch / STATE
        loss = self._loss(net, owner, anew, budget, surrogate, run)
        fit(weights, loss, self.training, run, title=self.name, checkpoint=file)
        out = list(owner.images)
        with torch.no_grad():
            for index in chunks(out, run.batch):
                x, m = (torch.stack([of[i] for i in index]).to(run.device) for of in (owner.images, anew))
                for i, made in zip(index, budget.project(perturbed(net, x, m), x), strict=True):
                    out[i] = made
        return out

    def _loss(
        self, net: nn.Module, owner: Owner, anew: list[Tensor], budget: Budget, model: LatentDiffusion, run: Run
    ) -> Callable[[int], Tensor]:
        """The loss of a training step of ``net``."""
        pictures = owner.class_images if self.class_images else owner.images
        groups = [torch.tensor(group) for group in by_size(pictures)]
        cond, empty = model.embed(owner.prompts), model.embed([""])

        def loss(step: int) -> Tensor:
            rng, n = run.rng(self.name, step), self.batch
            first = int(torch.randint(len(pictures), (), generator=rng))
            group = next(group for group in groups if first in group)  # a batch is of one size
            index = group[torch.randint(len(group), (n,), generator=rng)].tolist()
            x = queued(torch.stack([pictures[i] for i in index]), run.device)
            whose = torch.randint(len(anew), (n,), generator=rng) if self.class_images else torch.tensor(index)
            m = queued(torch.cat([F.interpolate(anew[i][None], x.shape[-2:]) for i in whose.tolist()]), x.device)
            raw = perturbed(net, x, m)
            moved = raw + (budget.project(raw, x) - raw).detach()
            seen = Inpainting(model, moved, m)
            noise = queued(torch.randn(seen.latents.shape, generator=rng), x.device)
            run.tally("unet_image", n * self.sample_steps * (1 if self.guidance == 1 else 2))
            made = seen.edited(cond.take(whose), empty.repeat(n), noise, self.sample_steps, self.guidance)
            made = made[..., : x.shape[-2], : x.shape[-1]]
            edit, change = (2 * made - 1).abs() * m, 2 * (raw - x).abs()
            return edit.mean() / m.mean() + self.alpha * change.mean() / (1 - m).mean()

        return loss


def perturbed(net: nn.Module, x: Tensor, anew: Tensor) -> Tensor:
    """What ``net`` makes of the kept part of pictures ``x`` (NCHW [0,1]), which it sees and changes in [-1,1]; nothing
    bounds it. ``anew``: where they are painted anew, (N, 1, H, W)."""
    return x + (1 - anew) * net((1 - anew) * (2 * x - 1)) / 2
