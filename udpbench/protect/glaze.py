"""Glaze: move a picture's latents to those of the same picture in another style (Shan et al., USENIX Security 2023).

The original is a closed application; this follows the re-implementation that comes with IMPRESS (Cao et al., NeurIPS
2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.interfaces import Advance, Owner, Protection, Run
from udpbench.models.latent import LatentDiffusion
from udpbench.models.perceptual import Perceptual, ToOriginal, load_distance
from udpbench.models.sample import editing_pipeline
from udpbench.optim.pgd import chunks
from udpbench.optim.samples import normal
from udpbench.optim.soft_bound import SoftBound, gradient
from udpbench.optim.target import mse


@dataclass(kw_only=True)
class Glaze(SoftBound, Protection):
    """Minimise ``mean |E(x + d) - E(target)|^2 + alpha * max(dist(x + d, x) - distance_budget, 0)`` over ``d``.

    The paper's: the objective (a distance of features under a soft bound on LPIPS) and a target made by style
    transfer. The released code's: the mean of squares; Adam at a constant rate with its usual eps (1e-8), pixels in
    [-1,1]; latents drawn anew from both posteriors at every step; a uniform start; the target by img2img with a style
    prompt alone (DPM-Solver++). Our choices: ``E`` is the latent as the UNet gets it, so ``alpha`` is the released
    one times the square of the model's latent scale; the mean of the posterior unless ``sample_latents``; and a
    *hard* bound: neither paper nor code has one, but here every protection keeps the budget, so after each step the
    picture is projected on it. A large one (``budget.eps=128``) leaves the soft bound alone.

    ``start_noise``: the start is uniform noise of up to this; ``distance_budget`` itself in the released code.

    Args: those of ``SoftBound``, and
        style_prompt: what the target shall look like.
        strength, guidance, img2img_steps: of img2img; ``int(strength * img2img_steps)`` steps are made.
        sample_latents: draw latents from the posteriors (as the released code does) or use their means.
    """

    style_prompt: str
    strength: float
    guidance: float
    img2img_steps: int
    sample_latents: bool = False

    name = "glaze"
    version = 2  # 2: latents of the picture alone, not of what it is padded with
    needs = frozenset({"denoise", "latent", "text"})
    couples_images = False
    wrappable = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.strength <= 1 or int(self.strength * self.img2img_steps) < 1:
            allowed = f"above 0, at most 1, and leave a step of the {self.img2img_steps}"
            raise ValueError(f"glaze: strength must be {allowed}, given {self.strength}")

    def model_prompts(self, prompts: Sequence[str]) -> list[str]:
        return [self.style_prompt]

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        """As the interface says; the owner's prompts are not used."""
        model, distance = surrogate, load_distance(self.perceptual, self.weights, run.device)
        out = list(owner.images)
        groups = list(chunks(owner.images, run.grad_batch))
        with run.log.bar("perturb", self.iterations * len(groups), "it") as advance:
            for index in groups:
                glazed = self._glazed(index, owner, budget, distance, model, run, advance)
                for i, made in zip(index, glazed, strict=True):
                    out[i] = made
        return out

    def _glazed(
        self,
        index: list[int],
        owner: Owner,
        budget: Budget,
        distance: Perceptual,
        model: LatentDiffusion,
        run: Run,
        advance: Advance,
    ) -> Tensor:
        """The owner's pictures at ``index``, of one size, protected, NCHW [0,1]; they do not influence one another."""
        clean = torch.stack([owner.images[i] for i in index]).to(run.device)
        names = [owner.names[i] for i in index]
        rngs = [run.rng("glaze", name) for name in names]
        to_original = distance.to_original(clean)
        goal = self.restyled(clean, names, model, run)
        fixed = None if self.sample_latents else self._latents(goal, rngs, model)
        start = torch.stack([torch.rand(clean.shape[1:], generator=rng) * 2 - 1 for rng in rngs])
        x = budget.project(clean + self.start_noise * start.to(clean.device) / 2, clean)
        y = (2 * x - 1).requires_grad_(True)  # the variable lives in [-1,1], as in the released code
        adam = torch.optim.Adam([y], lr=self.lr)
        apart: Any = partial(self._apart, goal=goal, fixed=fixed, rngs=rngs, model=model)
        apart = run.loss_hook(apart, 0) if run.loss_hook else apart
        aim, excess = partial(self._aim, y, index, apart, run), partial(self._bound, y, to_original)
        for step in range(self.iterations):
            loss, slope = gradient(aim, excess, y)
            y.grad = run.gradient_hook(slope) if run.gradient_hook else slope
            adam.step()
            with torch.no_grad():
                x = budget.project((y + 1) / 2, clean)
                y.copy_(2 * x - 1)
            run.log.scalar("glaze/loss", loss.sum(), step)
            advance(1)
        encoded = 2 * self.iterations if self.sample_latents else self.iterations + 1
        run.tally("vae_image", encoded * len(y))
        return x

    def _aim(self, y: Tensor, index: list[int], apart: Any, run: Run) -> Tensor:
        x = (y + 1) / 2
        return apart(x, index) if run.penalty is None else apart(x, index) + run.penalty(x)

    def _bound(self, y: Tensor, to_original: ToOriginal) -> Tensor:
        return self.excess(to_original((y + 1) / 2))

    def restyled(self, x: Tensor, names: Sequence[str], model: LatentDiffusion, run: Run) -> Tensor:
        """The targets of N pictures: img2img of ``x`` (NCHW [0,1]) with the style prompt, of the same size, [0,1].

        The noise of a picture belongs to its name.
        """
        from diffusers import StableDiffusionImg2ImgPipeline

        pipe = editing_pipeline(model, StableDiffusionImg2ImgPipeline, "dpmpp")
        rngs = [run.rng("glaze", "style", name) for name in names]
        steps = {"strength": self.strength, "num_inference_steps": self.img2img_steps, "guidance_scale": self.guidance}
        prompts, given = [self.style_prompt] * len(x), model.padded(x)
        with torch.inference_mode():
            made = pipe(prompt=prompts, image=given, generator=rngs, output_type="pt", **steps).images
        passes = 2 if self.guidance > 1 else 1
        run.tally("unet_forward", passes * len(x) * int(self.strength * self.img2img_steps))
        return made[..., : x.shape[-2], : x.shape[-1]].float().clone()  # no inference tensor: it is encoded again

    def _apart(self, x: Tensor, index: list[int], goal: Tensor, fixed: Tensor | None, rngs: Any, model: Any) -> Tensor:
        """Mean squared distance of the latents of N pictures to those of their targets, ``fixed`` or drawn anew."""
        latents = self._latents(x, rngs, model)
        wanted = self._latents(goal, rngs, model) if fixed is None else fixed
        return mse(latents, wanted)

    def _latents(self, x: Tensor, rngs: Sequence[torch.Generator], model: LatentDiffusion) -> Tensor:
        mean, std = model.moments(x)
        if not self.sample_latents:
            return mean
        return mean + std * normal(rngs, 1, mean)
