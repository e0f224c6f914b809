"""AdvDM: raise the denoising loss of a model that stays as it is (Liang et al., ICML 2023, arXiv 2302.04578)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.interfaces import Owner, Run
from udpbench.optim.pgd import first_images, pgd

if TYPE_CHECKING:
    from udpbench.models.latent import LatentDiffusion


class AdvDM:
    """Projected sign ascent of the denoising loss; every step draws new time steps (uniform), noise and latents.

    Args:
        steps: of ascent.
        samples: (t, noise, latent) samples per picture and step, in one forward pass; 1 in the released code.
        step_size: length of one step in levels; None: an eighth of the budget.
        sample_latents: draw latents from the posterior (as the released code does) or use its mean.
        random_start: start from uniform noise within the budget, as the released code does.
    """

    version: ClassVar[int] = 1
    couples_images: ClassVar[bool] = False
    heeds_penalty: ClassVar[bool] = True  # by way of pgd
    needs: ClassVar[frozenset[str]] = frozenset({"denoise", "latent", "text"})

    def __init__(
        self,
        steps: int,
        samples: int = 1,
        step_size: float | None = None,
        sample_latents: bool = True,
        random_start: bool = True,
    ) -> None:
        if min(steps, samples) < 1:
            raise ValueError(f"advdm: steps and samples must be >= 1, given {steps} and {samples}")
        self.steps, self.samples, self.step_size = steps, samples, step_size
        self.sample_latents, self.random_start = sample_latents, random_start

    def __call__(self, owner: Owner, budget: Budget, surrogates: Sequence[LatentDiffusion], run: Run) -> list[Tensor]:
        """Perturbed pictures, CHW [0,1] within ``budget`` of ``owner.images``."""
        model = surrogates[0]
        with torch.no_grad():
            cond = model.embed(owner.prompts)
        rngs = [run.rng("advdm", name) for name in owner.names]

        def normal(like: Tensor, index: list[int]) -> Tensor:
            shape = (self.samples, *like.shape[1:])
            return torch.cat([torch.randn(shape, generator=rngs[i]) for i in index]).to(like.device)

        def loss(x: Tensor, index: list[int]) -> Tensor:
            mean, std = model.moments(x)
            z = mean.repeat_interleave(self.samples, 0)
            if self.sample_latents:
                z = z + std.repeat_interleave(self.samples, 0) * normal(mean, index)
            t = [torch.randint(len(model.alpha_bar), (self.samples,), generator=rngs[i]) for i in index]
            many = cond.take(torch.tensor(index)).repeat(self.samples)
            run.tally("unet_image", len(z))
            each = model.loss(z, many, torch.cat(t).to(z.device), normal(mean, index))
            return each.view(len(x), self.samples).mean(1)

        images = first_images(owner, budget, run, self.random_start)
        steps = [self.step_size or budget.eps / 8] * self.steps
        most = run.grad_batch // self.samples
        with run.log.bar("perturb", self.steps, "step") as advance:
            return pgd(images, owner.images, loss, budget, run, steps=steps, most=most, advance=advance)
