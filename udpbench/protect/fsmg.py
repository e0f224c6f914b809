"""FSMG: raise the denoising loss of a model that has learned the subject (Anti-DreamBooth; Van Le et al., ICCV 2023,
arXiv 2303.15433)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.component import check_choice, check_numbers
from udpbench.interfaces import Advance, Owner, Run
from udpbench.models.diffusion import Cond, Trainable, clean_and_noise, noised
from udpbench.models.latent import LatentDiffusion
from udpbench.models.lora import LAYERS, Lora
from udpbench.models.reverse import posterior_mean
from udpbench.optim.denoising import Objective, Times, denoising_loss
from udpbench.optim.fit import FitSettings, fit, weighted_loss
from udpbench.optim.pgd import Loss, Scale, first_length, handed_over, pgd
from udpbench.optim.target import Targeted
from udpbench.optim.training_set import TrainingSet

CLEAN = ("own", "extra")


@dataclass(kw_only=True)
class FSMG(Targeted):
    """Train a surrogate on clean pictures of the subject as DreamBooth trains (fully), freeze it, and raise its
    denoising loss by projected ascent (the paper's equation 6).

    The prompts of the subject's pictures are the owner's: with ``owner_prompt=class`` those of prior preservation, too.
    In the released codes of this family the owner names the subject (``owner_prompt=data``).

    With a ``target`` it is the paper's targeted variant: the distance of the surrogate's next latents, x_(t-1), to the
    target's, noised to t-1, is subtracted. Our choices are: the mean of x_(t-1) given x_t (the released code adds the
    noise of a DDPM step, which changes no expected gradient), and at t = 0 the target as it is (there: noised to the
    last step).

    Args:
        clean_steps: of the surrogate's training on clean pictures.
        image_steps: of ascent.
        clean: which pictures those are. ``own``: the pictures that will be protected, before they are; ``extra``:
            further ones of the subject (``data.extra_clean``), the paper's set A.
        lr, batch, dtype: of the surrogate's training (AdamW, weight decay .01, gradients clipped to norm 1).
        prior_weight, class_images: of prior preservation: weight and number of pictures of the class; 0: none.
        lora_rank: of additions to the layers ``lora_layers`` (see ``Lora``), trained in place of the UNet; 0: the UNet.
        train_text_encoder: in the surrogate's training, too.
        step_size: length of one image step, of 255; None: an eighth of the budget.
        samples: (t, noise) samples per picture and image step, in one forward pass; 1 in the released code.
        sample_latents: draw latents from the posterior (as the released code does) or use its mean.
        gradient_checkpointing: less memory, more time.
        target: file of the target picture; None: untargeted.
    """

    clean_steps: int
    image_steps: int
    lr: float
    batch: int
    clean: str = "own"
    prior_weight: float = 1.0
    class_images: int = 0
    lora_rank: int = 0
    lora_layers: str = "attention"
    train_text_encoder: bool = False
    step_size: float | None = None
    samples: int = 1
    sample_latents: bool = False
    dtype: str = "fp32"
    gradient_checkpointing: bool = False

    needs = frozenset({"denoise", "latent", "text"})
    wrappable = True
    places: ClassVar[tuple[str, ...]] = (*Targeted.places, "gradient_checkpointing")
    later: ClassVar[Mapping[str, Any]] = {"lora_layers": "attention"}
    name: ClassVar[str] = "fsmg"  # a part of the keys of random numbers, too
    default: ClassVar[str] = "none"

    def __post_init__(self) -> None:
        who = self.name
        check_choice(f"{who}: unknown clean", self.clean, CLEAN)
        check_numbers(who, least=1, image_steps=self.image_steps, batch=self.batch, samples=self.samples)
        check_numbers(who, least=0, clean_steps=self.clean_steps, prior_weight=self.prior_weight)
        check_numbers(who, least=0, class_images=self.class_images, lora_rank=self.lora_rank)
        check_choice(f"{who}: unknown lora_layers", self.lora_layers, LAYERS)
        self.training = FitSettings(steps=self.clean_steps, lr=self.lr, dtype=self.dtype)
        if self.class_images:
            self.needs = self.needs | {"class_images"}

    @property
    def wants_extra_clean(self) -> bool:
        return self.clean == "extra"

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        trainable, times = self.trainable(surrogate, run), self.times(surrogate, owner, budget, run)
        train = self.trainer(trainable, owner, run)
        train(self.clean_set(trainable, owner, run), self.clean_steps, "clean", 0)
        with run.log.bar("perturb", self.image_steps, "step") as advance:
            return self.ascend(list(owner.images), trainable, owner, budget, run, advance=advance, times=times)

    # -- the surrogate -------------------------------------------------------------------------------------------------

    def trainable(self, surrogate: LatentDiffusion, run: Run) -> Trainable:
        """What is trained: all of a copy of the UNet or additions to it, and the text encoder if that is set."""
        lora = Lora(self.lora_rank, layers=self.lora_layers) if self.lora_rank else None
        parts: dict[str, Any] = {"text_encoder": self.train_text_encoder, "lora": lora}
        checkpointing = self.gradient_checkpointing
        return surrogate.trainable(run.rng("surrogate"), gradient_checkpointing=checkpointing, **parts)

    def training_set(
        self, trainable: Trainable, images: Sequence[Tensor], prompts: Sequence[str], run: Run
    ) -> TrainingSet:
        """Pictures to train on, latents as ``sample_latents`` says."""
        return TrainingSet(trainable, images, prompts, run, sample_latents=self.sample_latents, mixed_sizes=True)

    def clean_set(self, trainable: Trainable, owner: Owner, run: Run) -> TrainingSet:
        """The clean pictures of the subject; further ones go by the owner's first prompt."""
        if self.clean == "own":
            return self.training_set(trainable, owner.images, owner.prompts, run)
        if not owner.extra_clean:
            raise ValueError(f"{self.name}: needs further clean pictures of the subject; give data.extra_clean")
        return self.training_set(trainable, owner.extra_clean, owner.prompts[:1] * len(owner.extra_clean), run)

    def trainer(self, trainable: Trainable, owner: Owner, run: Run) -> Callable[..., dict[int, list[Tensor]]]:
        """``train(pictures, steps, part, k, keep=())``: DreamBooth's training of round ``k``, with prior preservation
        where there are class pictures; its AdamW begins anew each time, as in the released code. It returns the
        weights after each number of steps in ``keep``, on the CPU."""
        prompts = [owner.class_prompt] * len(owner.class_images)
        classes = self.training_set(trainable, owner.class_images, prompts, run) if prompts else None
        prior = {"prior": (self.prior_weight, classes)} if classes else {}

        def train(
            pictures: TrainingSet, steps: int, part: str, k: int, keep: Sequence[int] = ()
        ) -> dict[int, list[Tensor]]:
            kept: dict[int, list[Tensor]] = {}

            def copied(step: int) -> None:
                kept[step] = [p.to("cpu", copy=True) for p in trainable.weights()]

            trainable.train(True)
            if 0 in keep:
                copied(0)
            sets, settings = {"subject": (1.0, pictures), **prior}, replace(self.training, steps=steps)
            loss = weighted_loss(sets, self.batch, lambda name, step: run.rng(self.name, part, k, name, step))
            parts: dict[str, Any] = {"title": part, "curve_steps": keep, "at_curve_step": copied}
            fit(trainable.parameters, loss, settings, run, **parts, before=k * steps)
            return kept

        return train

    # -- the pictures --------------------------------------------------------------------------------------------------

    def ascend(
        self,
        images: list[Tensor],
        trainable: Trainable,
        owner: Owner,
        budget: Budget,
        run: Run,
        k: int = 0,
        advance: Advance = lambda n: None,
        times: Times | None = None,
    ) -> list[Tensor]:
        """``images`` (a list that is emptied) after the ascent of round ``k`` under the surrogate as it is; ``times``:
        as ``image_loss``."""
        trainable.train(False)
        times, scale = self.paced(times, len(trainable.model.alpha_bar), len(images))
        loss = self.image_loss(trainable.model, owner, run, k, times)
        steps = [first_length(self.step_size, budget.eps)] * self.image_steps
        settings: dict[str, Any] = {"most": run.grad_batch // self.samples, "before": k * self.image_steps}
        given = handed_over(images)
        return pgd(given, owner.images, loss, budget, run, steps=steps, advance=advance, scale=scale, **settings)

    def times(self, model: LatentDiffusion, owner: Owner, budget: Budget, run: Run) -> Times | None:
        """How time steps of the image steps are drawn, chosen before anything is trained; None: uniformly."""
        return None

    def paced(self, times: Times | None, steps: int, n: int) -> tuple[Times | None, Scale | None]:
        """(times, scale) of one ascent of ``n`` pictures on a schedule of ``steps`` time steps: how these are drawn
        (None: uniformly), and a factor of each picture's step length as ``pgd`` takes it (None: 1)."""
        return times, None

    def image_loss(self, model: LatentDiffusion, owner: Owner, run: Run, k: int, times: Times | None = None) -> Loss:
        """What the pictures raise in round ``k``; each has samples of its own, time steps by ``times`` (None:
        uniform)."""
        cond = model.embed(owner.prompts)
        rngs = [run.rng(self.name, k, name) for name in owner.names]
        settings: dict[str, Any] = {"samples": self.samples, "sample_latents": self.sample_latents}
        objective = self.objective(model, owner, run)
        return denoising_loss(model, cond, rngs, run, **settings, times=times, objective=objective, dtype=self.dtype)

    def objective(self, model: LatentDiffusion, owner: Owner, run: Run) -> Objective | None:
        """The loss of latents; None: the model's denoising loss."""
        return None if self.target is None else _shifted(model, self.target_latents(model, owner))


def _shifted(model: LatentDiffusion, targets: Sequence[Tensor]) -> Objective:
    """The denoising loss less the mean squared distance of the predicted x_(t-1) to the target's latents at t-1."""

    alpha_bar = model.alpha_bar_on(model.device)
    earlier = torch.cat([torch.ones_like(alpha_bar[:1]), alpha_bar])  # of t-1: 1 at t = 0, where nothing is noised

    def objective(z: Tensor, cond: Cond, t: Tensor, noise: Tensor, which: list[int]) -> Tensor:
        noisy, target = model.noised(z, t, noise), torch.stack([targets[i] for i in which])
        output = model.predict(noisy, t, cond)
        aimed = noised(earlier, target, t, noise)
        distance = (previous_mean(output, noisy, alpha_bar[t], earlier[t], model.prediction) - aimed).square()
        return ((output - model.training_target(z, t, noise)).square() - distance).flatten(1).mean(1)

    return objective


def previous_mean(output: Tensor, noisy: Tensor, a: Tensor, b: Tensor, prediction: str) -> Tensor:
    """The mean of x_(t-1) given x_t = ``noisy`` and the model's ``output`` (Ho et al. 2020, equation 7), NCHW.

    a, b: alpha_bar (N,) at t and at t-1.
    """
    a, b = a.view(-1, 1, 1, 1), b.view(-1, 1, 1, 1)
    clean, _ = clean_and_noise(output, noisy, a, prediction)
    return posterior_mean(clean, noisy, a, b)
