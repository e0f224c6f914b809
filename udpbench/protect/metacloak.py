"""MetaCloak: raise the loss of many stages of a training at once, under transformations (Liu et al., CVPR 2024, arXiv
2311.13127)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.component import check_numbers
from udpbench.interfaces import Owner, Run
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.denoising import Times
from udpbench.optim.pgd import Loss
from udpbench.optim.rounds import Rounds
from udpbench.optim.transforms import blur, flip
from udpbench.protect.fsmg import FSMG

STATE = "metacloak_rounds.ckpt"


@dataclass(kw_only=True)
class MetaCloak(FSMG):
    """A surrogate is trained on the pictures before they are protected; snapshots of that training are the pool. Each
    in turn goes on from where it was kept: the pictures raise its loss, averaged over transformations, then it is
    trained on them, and so on (the paper's algorithm 1); after its last ascent it is not, for no picture would learn of
    it (the released code trains it once more: its pictures are the same, its work is not).

    As in the released code, the transformation is a Gaussian blur, then a mirroring with probability 1/2. Its blur has
    a kernel of seven pixels (``radius`` 3) and a standard deviation from 0.1 to 2, at 512 px. Our choices are: one is
    drawn for each picture and step (there: one for all pictures), snapshots at equal distances from the first step to
    the last (there: step 0, then one before every 200th), pictures as large as they are (there: resized to squares of
    512 px), and their values: the released code encodes the subject's pictures with values from 0 to 255 in all of its
    trainings (in the ascent, and for class pictures, from -1 to 1), so that its snapshots never saw them as they are.

    Args:
        clean_steps, snapshots: length of the surrogate's training, and how many of its stages are the pool.
        trials, rounds: how often the pool is gone through, and rounds for each snapshot.
        image_steps: of ascent, in each round.
        model_steps: of the snapshot's training on the perturbed pictures, in each of its rounds but the last.
        sigma: smallest and largest standard deviation of the blur, in pixels.
        radius: of the blur's kernel, in pixels; None: three standard deviations.
    """

    snapshots: int
    trials: int
    rounds: int
    model_steps: int
    sigma: Sequence[float] = (0.1, 2.0)
    radius: int | None = None

    later: ClassVar[Mapping[str, Any]] = {**FSMG.later, "radius": None}
    name: ClassVar[str] = "metacloak"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self.name, least=1, snapshots=self.snapshots, trials=self.trials, rounds=self.rounds)
        check_numbers(self.name, least=0, model_steps=self.model_steps)
        if len(self.sigma) != 2 or not 0 <= self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"{self.name}: sigma must be two numbers >= 0, in order, given {self.sigma}")
        if self.radius is not None:
            check_numbers(self.name, least=1, radius=self.radius)

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        trainable = self.trainable(surrogate, run)
        train = self.trainer(trainable, owner, run)
        at = [round(i * self.clean_steps / max(1, self.snapshots - 1)) for i in range(self.snapshots)]
        kept = train(self.clean_set(trainable, owner, run), self.clean_steps, "clean", 0, at)
        stages = [kept[step] for step in at] * self.trials
        pool = Rounds(run, STATE, len(stages))
        images = pool.saved["images"] if pool.saved else list(owner.images)
        with run.log.bar("perturb", len(stages) * self.rounds * self.image_steps, "step") as advance:
            advance(pool.first * self.rounds * self.image_steps)
            for s in pool.left:
                trainable.load(stages[s])
                for k in range(s * self.rounds, (s + 1) * self.rounds):
                    images = self.ascend(images, trainable, owner, budget, run, k, advance)
                    if (k + 1) % self.rounds:  # after its last ascent the snapshot is thrown away
                        perturbed = self.training_set(trainable, images, owner.prompts, run)
                        train(perturbed, self.model_steps, "perturbed", k)
                pool.done(s, {"images": images})
        return images

    def image_loss(self, model: LatentDiffusion, owner: Owner, run: Run, k: int, times: Times | None = None) -> Loss:
        """The loss of round ``k``, of transformed pictures."""
        plain = super().image_loss(model, owner, run, k, times)
        rngs = [run.rng(self.name, "transform", k, name) for name in owner.names]

        def changed(x: Tensor, i: int) -> Tensor:
            return flip(blur(x, rngs[i], *self.sigma, radius=self.radius), rngs[i])

        def loss(x: Tensor, index: list[int]) -> Tensor:
            return plain(torch.stack([changed(one, i) for one, i in zip(x, index, strict=True)]), index)

        return loss
