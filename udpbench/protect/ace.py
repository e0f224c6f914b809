"""ACE: push the UNet's prediction to one constant pattern (Zheng et al., arXiv 2310.04687)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.component import check_numbers
from udpbench.interfaces import Owner, Run
from udpbench.models.diffusion import Cond, Trainable
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.denoising import Objective, Times
from udpbench.optim.target import Patterned, mse
from udpbench.optim.training_set import TrainingSet
from udpbench.protect.aspl import ASPL


@dataclass(kw_only=True)
class ACE(Patterned, ASPL):
    """Lower the mean squared distance of the UNet's prediction to the latents z_T of a target picture, whatever the
    noise, under a LoRA surrogate that is trained on the perturbed pictures after each round but the last: ASPL's loop,
    without its training on clean pictures (``clean_steps`` 0).

    The released code has two paths that are not the same attack. Its main one draws time steps from 600 to 999 and
    latents from the posterior (``first_time`` 600, ``sample_latents`` true); its path for little memory draws from all
    time steps and takes the posterior's mean (``first_time`` 0, ``sample_latents`` false); the surrogate learns from
    drawn latents on both. It trains LoRA on the text encoder, too, unless told not to (a flag that is stored the wrong
    way round); here the text encoder stays as it is. Its additions reach the first layer of the feed-forward blocks,
    too (``lora_layers`` ace). Our choices are: one LoRA that goes on from round to round (there: a new one in each, on
    top), the mean of the target's posterior, and the default target. The prediction is taken as it comes, the velocity
    for v-prediction models, as there.

    Args: those of ``ASPL``, and
        first_time, last_time: range of the time steps of the pictures' loss, both included.
        target: file of the target picture; None: a checkerboard (see ``Patterned``).
    """

    clean_steps: int = 0
    lora_rank: int = 4
    first_time: int = 600
    last_time: int = 999

    version = 2  # 2: the surrogate learns from drawn latents whatever the ascent takes
    name: ClassVar[str] = "ace"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self.name, least=0, first_time=self.first_time)
        check_numbers(self.name, least=self.first_time, last_time=self.last_time)

    def check_model(self, model: LatentDiffusion) -> None:
        if (n := model.time_steps) is not None:
            check_numbers(f"{self.name}, model {model.name}", below=n, last_time=self.last_time)

    def training_set(
        self, trainable: Trainable, images: Sequence[Tensor], prompts: Sequence[str], run: Run
    ) -> TrainingSet:
        """The surrogate learns from drawn latents on either path, as in the released code."""
        return TrainingSet(trainable, images, prompts, run, sample_latents=True, mixed_sizes=True)

    def times(self, model: LatentDiffusion, owner: Owner, budget: Budget, run: Run) -> Times:
        """Uniformly over the range."""

        def drawn(index: list[int], rngs: Sequence[torch.Generator], n: int) -> Tensor:
            return torch.cat([torch.randint(self.first_time, self.last_time + 1, (n,), generator=rng) for rng in rngs])

        return drawn

    def objective(self, model: LatentDiffusion, owner: Owner, run: Run) -> Objective:
        targets = self.target_latents(model, owner)

        def towards(z: Tensor, cond: Cond, t: Tensor, noise: Tensor, which: list[int]) -> Tensor:
            output = model.predict(model.noised(z, t, noise), t, cond)
            return self.raised(z, output, model.training_target(z, t, noise), torch.stack([targets[i] for i in which]))

        return towards

    def raised(self, z: Tensor, output: Tensor, truth: Tensor, target: Tensor) -> Tensor:
        """What is raised, (N,), of latents, the prediction for them, what it should be, and the target's latents."""
        return -mse(output, target)
