"""ASPL: alternating surrogate and perturbation learning (Anti-DreamBooth; Van Le et al., ICCV 2023, arXiv
2303.15433)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.component import check_numbers
from udpbench.interfaces import Advance, Owner, Run
from udpbench.models.diffusion import Trainable
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.rounds import Rounds
from udpbench.protect.fsmg import FSMG

STATE = "aspl.ckpt"
Turn = Callable[[list[Tensor], int, Advance], list[Tensor]]


@dataclass(kw_only=True)
class ASPL(FSMG):
    """In each round a copy of the surrogate is trained on clean pictures, the pictures raise that copy's loss, and the
    surrogate itself is trained on the perturbed pictures (the paper's section 4.2); after the last ascent it is not,
    for no picture would learn of it (the released code trains it once more: its pictures are the same, its work is
    not).

    Our choices beside those of ``FSMG`` are: pictures of a batch are drawn at random (in the released code: in order,
    so that a short training sees the first ones only), and gradients are clipped (there they are not: what should clip
    them is handed an iterator that is used up).

    Args:
        rounds: of the alternation.
        clean_steps: of the copy's training on clean pictures, in each round.
        image_steps: of ascent, in each round.
        model_steps: of the surrogate's training on the perturbed pictures, in each round but the last.
        forgets: the clean pictures teach a copy, which is thrown away after each ascent; False: the surrogate itself,
            as in the released script for LoRA, which means to copy and does not.
    """

    rounds: int
    model_steps: int
    forgets: bool = True

    later: ClassVar[Mapping[str, Any]] = {**FSMG.later, "forgets": True}

    name: ClassVar[str] = "aspl"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self.name, least=1, rounds=self.rounds)
        check_numbers(self.name, least=0, model_steps=self.model_steps)

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        trainable = self.trainable(surrogate, run)
        turn = self.turns(trainable, surrogate, owner, budget, run)
        rounds, images = Rounds(run, STATE, self.rounds), list(owner.images)
        if saved := rounds.saved:
            trainable.load(saved["weights"])
            images = saved["images"]
        with run.log.bar("perturb", self.rounds * self.image_steps, "step") as advance:
            advance(rounds.first * self.image_steps)
            for k in rounds.left:
                images = turn(images, k, advance)
                rounds.done(k, {"weights": trainable.weights(), "images": images})
        return images

    def turns(self, trainable: Trainable, surrogate: LatentDiffusion, owner: Owner, budget: Budget, run: Run) -> Turn:
        """``turn(images, k, advance)``: round ``k`` under one surrogate; what it makes of the pictures."""
        train, clean = self.trainer(trainable, owner, run), self.clean_set(trainable, owner, run)
        times = self.times(surrogate, owner, budget, run)

        def turn(images: list[Tensor], k: int, advance: Advance) -> list[Tensor]:
            with self.aside(trainable):
                train(clean, self.clean_steps, "clean", k)
                images = self.ascend(images, trainable, owner, budget, run, k, advance, times)
            if k + 1 < self.rounds:  # after the last ascent nobody asks the surrogate again
                train(self.training_set(trainable, images, owner.prompts, run), self.model_steps, "perturbed", k)
            return images

        return turn

    def aside(self, trainable: Trainable) -> AbstractContextManager[None]:
        """Within the block it is the copy that is trained, if there is one."""
        return trainable.restored() if self.forgets else nullcontext()
