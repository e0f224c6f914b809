"""A protection that is not part of the package, as a user adds one: this class and one YAML, found by ``hydra.searchpath``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.interfaces import Owner, Protection, Run
from udpbench.optim.denoising import denoising_loss
from udpbench.optim.fit import FitSettings, fit, weighted_loss
from udpbench.optim.pgd import pgd
from udpbench.optim.training_set import TrainingSet


@dataclass(kw_only=True)
class Rewound(Protection):
    """In each round the surrogate is trained on clean and on perturbed pictures, the pictures raise its loss, and it is
    as it was again.

    Args:
        rounds, model_steps, image_steps: of the two parts.
        lr, batch, prior_weight: of the training (AdamW, DreamBooth's loss with prior preservation).
        class_images: pictures of the class for the prior; 0: no prior.
        samples: (t, noise) samples per picture and image step.
        train_text_encoder: in the training.
    """

    rounds: int
    model_steps: int
    image_steps: int
    lr: float
    batch: int = 1
    prior_weight: float = 1.0
    class_images: int = 200
    samples: int = 1
    train_text_encoder: bool = False

    needs = frozenset({"denoise", "latent", "text", "class_images"})
    wrappable: ClassVar[bool] = True

    @property
    def wants_extra_clean(self) -> bool:
        return True

    def protect(self, owner: Owner, budget: Budget, surrogate: Any, run: Run) -> list[Tensor]:
        trainable = surrogate.trainable(run.rng("surrogate"), text_encoder=self.train_text_encoder)
        n, images, steps = len(owner.extra_clean), list(owner.images), [budget.eps / 8] * self.image_steps
        most, training = run.grad_batch // self.samples, FitSettings(steps=self.model_steps, lr=self.lr)

        def pictures(images: list[Tensor], prompts: list[str]) -> TrainingSet:
            return TrainingSet(trainable, images, prompts, run, mixed_sizes=True)

        said = [owner.class_prompt] * len(owner.class_images)
        prior = {"prior": (self.prior_weight, pictures(owner.class_images, said))} if said else {}
        clean = {"clean": (1.0, pictures(owner.extra_clean, owner.prompts[:1] * n))}
        with run.log.bar("perturb", self.rounds * self.image_steps, "step") as advance:
            for k in range(self.rounds):
                sets = {**clean, **prior, "perturbed": (1.0, pictures(images, owner.prompts))}
                loss = weighted_loss(sets, self.batch, lambda name, step, k=k: run.rng("rewound", k, name, step))
                with trainable.restored():
                    fit(trainable.parameters, loss, training, run, before=k * self.model_steps)
                    with torch.no_grad():
                        cond = trainable.model.embed(owner.prompts)
                    rngs = [run.rng("rewound", k, name) for name in owner.names]
                    drawn = {"samples": self.samples, "sample_latents": False}
                    raised = denoising_loss(trainable.model, cond, rngs, run, **drawn)
                    settings = {"steps": steps, "most": most, "advance": advance, "before": k * len(steps)}
                    images = pgd(images, owner.images, raised, budget, run, **settings)
        return images
