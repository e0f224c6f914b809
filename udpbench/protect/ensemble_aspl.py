"""E-ASPL and E-FSMG: Anti-DreamBooth under several base models (Van Le et al., ICCV 2023, arXiv 2303.15433)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.interfaces import Owner, Run
from udpbench.models.diffusion import Trainable
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.several import Several
from udpbench.protect.aspl import ASPL, Turn


@dataclass(kw_only=True)
class EnsembleASPL(Several, ASPL):
    """In each round, ASPL's round under each of the base models from the same pictures, which are then the mean of what
    these made of them; each model is trained on its own.

    As in the released code. Our choices are: the class pictures are the cell's surrogate's (there: whichever model's
    were first), all models get the same t and noise (there: each its own), and an interrupted attempt begins anew.
    """

    places: ClassVar[tuple[str, ...]] = ASPL.places
    name: ClassVar[str] = "ensemble_aspl"

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        models, images = self.models(surrogate, run), list(owner.images)
        turns = [self.turns(self.trainable(model, run), model, owner, budget, run) for model in models]
        with run.log.bar("perturb", self.rounds * self.image_steps * len(models), "step") as advance:
            for k in range(self.rounds):
                made = [turn(list(images), k, advance) for turn in turns]  # which empties its list
                images = [torch.stack(each).mean(0) for each in zip(*made, strict=True)]
        return images


@dataclass(kw_only=True)
class EnsembleFSMG(EnsembleASPL):
    """Base models that were trained on the clean subject, once and for all; in each round the pictures are the mean of
    what an ascent under each makes of them.

    As in the released code, where each base model has class pictures of its own; here, as in ``EnsembleASPL``, they are
    the cell's surrogate's.
    """

    model_steps: int = 0

    name: ClassVar[str] = "ensemble_fsmg"

    def turns(self, trainable: Trainable, surrogate: LatentDiffusion, owner: Owner, budget: Budget, run: Run) -> Turn:
        self.trainer(trainable, owner, run)(self.clean_set(trainable, owner, run), self.clean_steps, "clean", 0)
        return lambda images, k, advance: self.ascend(images, trainable, owner, budget, run, k, advance)
