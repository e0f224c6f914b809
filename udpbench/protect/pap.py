"""PAP: prompt-agnostic adversarial perturbation (Wan et al., NeurIPS 2024, arXiv 2408.10571)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.component import check_choice, check_numbers
from udpbench.interfaces import Owner, Run
from udpbench.models.diffusion import Cond
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.denoising import Objective, denoising_loss
from udpbench.optim.pgd import Ascent, handed_over, pgd
from udpbench.optim.samples import normal

DEVIATIONS: dict[str, Callable[[Tensor], Tensor]] = {"root": torch.sqrt, "square": torch.square}


@dataclass(kw_only=True)
class PAP(Ascent):
    """Raise the denoising loss under prompt embeddings drawn from those that fit the picture, N(c_N, H^-1).

    A Laplace approximation around the owner's prompt c_0, anew in each round, of the loss L at the t and noise of its
    first image step: c_N after ``text_steps`` of gradient descent from c_0, and from L's Taylor expansion to the second
    order an isotropic H^-1 = ||c_N - c_0||^2 / (2 |L(c_0) - L(c_N)|). No surrogate is trained.

    The paper's: the Gaussian, and both of its moments. The released code has two versions: the first (rounds of ten
    image steps) uses that H^-1, the second (one step a round) divides it by the number of values of c; both hand
    (H^-1)^2, not its root, to the sampler as the standard deviation. Our choices are: each picture has a distribution
    of its own (there: one H^-1 for all of them, ||c_N - c_0||^2 summed over the pictures and divided by the gap of
    their mean loss, which of n pictures is n times as large: ``pictures``), and in a round of several steps the later
    ones draw from that of the first (there: the descent is left out in them, which divides 0 by 0).

    Args:
        rounds, image_steps: approximations, and image steps under each.
        text_steps, text_rate: of the descent, on the sum over a picture's samples of their mean squared errors.
        per_value: divide H^-1 by the number of values of c.
        pictures: n of the released code, by which H^-1 is multiplied; 1: each picture's own.
        deviation: of the samples: ``root`` of H^-1, as its variance says, or its ``square``, as released.
        step_size: length of one image step, of 255; None: an eighth of the budget.
        samples: (t, noise, embedding) samples per picture and image step, in one forward pass; 1 in the released code.
        sample_latents: draw latents from the posterior (as the released code does) or use its mean.
    """

    rounds: int
    image_steps: int
    text_steps: int
    text_rate: float
    per_value: bool
    pictures: int = 1
    deviation: str = "root"
    samples: int = 1
    sample_latents: bool = True

    version = 2  # 2: prompts are fitted in float32
    later: ClassVar[Mapping[str, Any]] = {"pictures": 1}
    needs = frozenset({"denoise", "latent", "text"})

    def __post_init__(self) -> None:
        counts = {"rounds": self.rounds, "image_steps": self.image_steps, "text_steps": self.text_steps}
        check_numbers("pap", least=1, samples=self.samples, pictures=self.pictures, **counts)
        check_numbers("pap", above=0, text_rate=self.text_rate)
        check_choice("pap: unknown deviation", self.deviation, DEVIATIONS)

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        cond = surrogate.embed(owner.prompts)
        drawn: dict[str, Any] = {"samples": self.samples, "sample_latents": self.sample_latents}
        images, steps = list(owner.images), self.lengths(budget, self.image_steps)
        with run.log.bar("perturb", self.rounds * self.image_steps, "step") as advance:
            settings: dict[str, Any] = {"steps": steps, "most": run.grad_batch // self.samples, "advance": advance}
            for k in range(self.rounds):
                rngs = [run.rng("pap", k, name) for name in owner.names]
                objective = self._objective(surrogate, owner, run, k)
                loss = denoising_loss(surrogate, cond, rngs, run, objective=objective, **drawn)
                images = pgd(handed_over(images), owner.images, loss, budget, run, before=k * len(steps), **settings)
        return images

    def _objective(self, model: LatentDiffusion, owner: Owner, run: Run, k: int) -> Objective:
        """The loss under embeddings drawn from the approximation of round ``k``, made when it is first called."""
        found: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        rngs = [run.rng("pap", "prompt", k, name) for name in owner.names]

        def objective(z: Tensor, cond: Cond, t: Tensor, noise: Tensor, which: list[int]) -> Tensor:
            if (key := tuple(which)) not in found:
                run.tally("unet_text", self.text_steps * len(z))
                found[key] = self.approximation(model, z.detach(), cond, t, noise)
            mean, deviation = found[key]
            draw = normal([rngs[i] for i in dict.fromkeys(which)], self.samples, mean)
            return model.loss(z, Cond(mean + deviation * draw), t, noise)

        return objective

    def approximation(
        self, model: LatentDiffusion, z: Tensor, cond: Cond, t: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """c_N (M, tokens, width) and the standard deviation (M, 1, 1) around it, of M latents at their t and noise."""
        first = cond.hidden.detach().float()  # steps are too small for bfloat16
        c, losses = first, []
        for _ in range(self.text_steps):
            c = c.requires_grad_(True)
            losses.append(model.loss(z, Cond(c), t, noise))
            (gradient,) = torch.autograd.grad(losses[-1].sum(), c)
            c = (c - self.text_rate * gradient).detach()
        with torch.no_grad():
            losses.append(model.loss(z, Cond(c), t, noise))
            gap = (losses[0] - losses[-1]).abs().clamp(min=1e-12)
            variance = self.pictures * (c - first).square().flatten(1).sum(1) / (2 * gap)
            variance = variance / c[0].numel() if self.per_value else variance
            return c, DEVIATIONS[self.deviation](variance).view(-1, 1, 1)
