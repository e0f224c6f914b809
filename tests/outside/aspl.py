"""A protection that is not part of the package, as a user adds one: this class and one YAML, found by ``hydra.searchpath``.

Anti-DreamBooth's alternating surrogate and perturbation learning (ASPL; Van Le et al., ICCV 2023, arXiv 2303.15433).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.interfaces import Owner, Protection, Run
from udpbench.optim.fit import FitSettings, fit, weighted_loss
from udpbench.optim.pgd import Loss, pgd
from udpbench.optim.samples import normal, uniform_times
from udpbench.optim.training_set import TrainingSet


@dataclass(kw_only=True)
class ASPL(Protection):
    """In each round a copy of the surrogate is trained on the owner's further clean pictures, the pictures raise that
    copy's loss, and the surrogate itself is trained on the perturbed pictures.

    Args:
        rounds, clean_steps, image_steps, model_steps: of the three parts.
        lr, batch, prior_weight: of both trainings (AdamW, DreamBooth's loss with prior preservation).
        class_images: pictures of the class for the prior; 0: no prior.
        step_size: length of one image step, of 255; None: an eighth of the budget.
        samples: (t, noise) samples per picture and image step.
        train_text_encoder: in both trainings.
    """

    rounds: int
    clean_steps: int
    image_steps: int
    model_steps: int
    lr: float
    batch: int = 1
    prior_weight: float = 1.0
    class_images: int = 200
    step_size: float | None = None
    samples: int = 1
    train_text_encoder: bool = False

    needs = frozenset({"denoise", "latent", "text", "class_images"})
    heeds_penalty: ClassVar[bool] = True

    def protect(self, owner: Owner, budget: Budget, surrogate: Any, run: Run) -> list[Tensor]:
        if not owner.extra_clean:
            raise ValueError("aspl: needs further clean pictures of the subject; give data.extra_clean")
        trainable = surrogate.trainable(run.rng("surrogate"), text_encoder=self.train_text_encoder)

        def pictures(images: list[Tensor], prompts: list[str]) -> TrainingSet:
            return TrainingSet(trainable, images, prompts, run, mixed_sizes=True)

        said = [owner.class_prompt] * len(owner.class_images)
        prior = {"prior": (self.prior_weight, pictures(owner.class_images, said))} if said else {}

        def train(subject: TrainingSet, steps: int, k: int, part: str) -> None:
            sets = {"subject": (1.0, subject), **prior}
            loss = weighted_loss(sets, self.batch, lambda name, step: run.rng("aspl", part, k, name, step))
            fit(trainable.parameters, loss, FitSettings(steps=steps, lr=self.lr), run, title=part, before=k * steps)

        clean = pictures(owner.extra_clean, owner.prompts[:1] * len(owner.extra_clean))
        images, steps = list(owner.images), [self.step_size or budget.eps / 8] * self.image_steps
        with run.log.bar("perturb", self.rounds * self.image_steps, "step") as advance:
            for k in range(self.rounds):
                with trainable.restored():
                    train(clean, self.clean_steps, k, "clean")
                    loss, most = self._loss(trainable.model, owner, run, k), run.grad_batch // self.samples
                    settings = {"steps": steps, "most": most, "advance": advance, "before": k * len(steps)}
                    images = pgd(images, owner.images, loss, budget, run, **settings)
                train(pictures(images, owner.prompts), self.model_steps, k, "perturbed")
        return images

    def _loss(self, model: Any, owner: Owner, run: Run, k: int) -> Loss:
        rngs, n = [run.rng("aspl", k, name) for name in owner.names], self.samples
        with torch.no_grad():
            cond = model.embed(owner.prompts)

        def loss(x: Tensor, index: list[int]) -> Tensor:
            z, mine = model.encode(x), [rngs[i] for i in index]
            t, noise = uniform_times(mine, n, len(model.alpha_bar)).to(z.device), normal(mine, n, z)
            run.tally("unet_image", len(t))
            many = cond.take(torch.tensor(index)).repeat(n)
            return model.loss(z.repeat_interleave(n, 0), many, t, noise).view(len(x), n).mean(1)

        return loss
