"""Anti-Diffusion: a prompt tuned to the picture, and cross-attention put out (Zheng et al., AAAI 2025)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from udpbench.core.budget import Budget, Linf
from udpbench.core.component import check_numbers
from udpbench.interfaces import Advance, Owner, Run
from udpbench.models.attention import check_attention, mean_map, read_attention
from udpbench.models.diffusion import Cond
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.denoising import denoising_loss
from udpbench.optim.fit import FitSettings, fit
from udpbench.optim.pgd import Ascent, pgd, run_of

GAIN = 100  # of the attention before it is cut at 1, in the released code


@dataclass(kw_only=True)
class AntiDiffusion(Ascent):
    """For each picture alone: tune a prompt embedding to it, raise ``L - attention_weight * mean min(100 A, 1)^2``
    under that prompt, tune a copy of the UNet on the perturbed picture, and so on; L is the denoising loss, A the
    cross-attention.

    A is a mean over heads and layers of one resolution, a quarter of the latents' (16 of 64), at all tokens. The
    embedding starts from that of the empty prompt; owner's prompts are not read. As in the released code, the prompt is
    tuned before the first and after every later ascent, the UNet before every ascent but the first, each time by a new
    AdamW. Our choices: all heads (there: the second half of them, for the code is written for guidance); latents drawn
    anew in each step of the prompt's tuning (there: once); the model's own target (there: the noise).

    Args:
        rounds: ascents; one less than that of the UNet's trainings.
        text_steps, text_lr: of each tuning of the prompt.
        image_steps: of each ascent.
        model_steps, lr: of each training of the UNet (gradients clipped to norm 1; there they are not, as in ``ASPL``).
        round_eps: how far a picture may move in one ascent, of 255 (the released code bounds nothing else: what it
            gives is as large as ``rounds`` of these); None: as far as the budget lets it.
        attention_weight: of the attention term; 0: none.
        step_size: length of one image step, of 255; None: an eighth of the budget.
        samples: (t, noise) samples per image step, in one forward pass; 1 in the released code.
        sample_latents: draw latents from the posterior (as the released code does) or use its mean.
        dtype: of the UNet's passes in its training and under the pictures: fp32 | bf16.
        gradient_checkpointing: less memory, more time.
    """

    rounds: int
    text_steps: int
    image_steps: int
    model_steps: int
    lr: float
    text_lr: float = 1e-3
    round_eps: float | None = None
    attention_weight: float = 1.0
    samples: int = 1
    sample_latents: bool = True
    dtype: str = "fp32"
    gradient_checkpointing: bool = False

    version = 2  # 2: what wraps the ascent is told which picture it is
    places = ("gradient_checkpointing",)
    needs = frozenset({"denoise", "latent", "text"})

    def __post_init__(self) -> None:
        counts = {"rounds": self.rounds, "image_steps": self.image_steps, "samples": self.samples}
        check_numbers("anti_diffusion", least=1, **counts)
        check_numbers("anti_diffusion", least=0, text_steps=self.text_steps, model_steps=self.model_steps)
        check_numbers("anti_diffusion", least=0, attention_weight=self.attention_weight)
        if self.round_eps is not None:
            Linf(self.round_eps)  # which says what it may be
        self.tuning = FitSettings(steps=self.text_steps, lr=self.text_lr, clip_norm=0.0)
        self.training = FitSettings(steps=self.model_steps, lr=self.lr, dtype=self.dtype)

    def check_model(self, model: LatentDiffusion) -> None:
        if self.attention_weight:
            check_attention("anti_diffusion", model)

    def model_prompts(self, prompts: Any) -> list[str]:
        return [""]

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        total = len(owner.images) * self.rounds * self.image_steps
        with run.log.bar("perturb", total, "step") as advance:
            made = []
            for i, (x, name) in enumerate(zip(owner.images, owner.names, strict=True)):
                made.append(self._one(x, name, budget, surrogate, run_of(run, [i]), advance))
            return made

    def _one(
        self, clean: Tensor, name: str, budget: Budget, surrogate: LatentDiffusion, run: Run, advance: Advance
    ) -> Tensor:
        trainable = surrogate.trainable(run.rng("surrogate"), gradient_checkpointing=self.gradient_checkpointing)
        trainable.train(False)
        model, x = trainable.model, clean.to(run.device)
        with torch.no_grad():
            prompt = nn.Parameter(model.embed([""]).hidden.float().clone())
        steps = self.lengths(budget, self.image_steps)

        def loss(part: str, k: int, run: Run, **more: Any) -> Any:
            rngs, cond = [run.rng("anti_diffusion", part, k, name)], Cond(prompt)
            drawn: dict[str, Any] = {"sample_latents": self.sample_latents, **more}
            return denoising_loss(model, cond, rngs, run, **drawn)

        def lower(parameters: list[nn.Parameter], settings: FitSettings, part: str, k: int) -> None:
            lowered = loss(part, k, replace(run, count={}), samples=1)  # of the picture as it is now
            run.tally("unet_train", settings.steps)
            picture = x[None]
            fit(parameters, lambda step: lowered(picture, [0]).mean(), settings, run, title=part, before=k)

        for k in range(self.rounds):
            if k != 1:  # the released order: prompt, ascent; then over and over weights, ascent, prompt
                lower([prompt], self.tuning, "prompt", k)
            prompt.requires_grad_(False)
            if k:
                trainable.train(True)
                lower(trainable.parameters, self.training, "tune", k)
                trainable.train(False)
            raised = loss("image", k, run, samples=self.samples, dtype=self.dtype, objective=self._objective(model))
            origin, bound = ([clean], budget) if self.round_eps is None else ([x], Linf(self.round_eps))
            settings: dict[str, Any] = {"steps": steps, "most": None, "advance": advance, "before": k * len(steps)}
            (x,) = pgd([x], origin, raised, bound, run, **settings)
            x = budget.project(x[None], clean.to(run.device)[None])[0]
            prompt.requires_grad_(True)
        return x

    def _objective(self, model: LatentDiffusion) -> Any:
        """The denoising loss less the attention's energy."""

        def objective(z: Tensor, cond: Cond, t: Tensor, noise: Tensor, which: list[int]) -> Tensor:
            if not self.attention_weight:
                return model.loss(z, cond, t, noise)
            with read_attention(model.pipe.unet) as read:
                raised = model.loss(z, cond, t, noise)
            maps = mean_map(read, z.shape[-2] * z.shape[-1] // 16) * GAIN
            return raised - self.attention_weight * maps.clamp(max=1).square().flatten(1).mean(1)

        return objective
