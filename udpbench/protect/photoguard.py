"""PhotoGuard's encoder attack: move a picture's latents to a target (Salman et al., ICML 2023, arXiv 2302.06588)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.component import check_numbers
from udpbench.interfaces import Owner, Run
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.pgd import Ascent, first_length, shrinking
from udpbench.optim.target import Targeted


@dataclass(kw_only=True)
class PhotoGuard(Targeted, Ascent):
    """Descend the L2 distance of the posterior mean to that of a target picture, or to zero (the released default).

    The denoiser is not used. Steps shrink linearly from a random start, as in the released notebooks: the k-th of n has
    1 - 0.99 k / n of the first one's length.

    Args:
        steps: of descent; 1,000 in the notebooks.
        step_size: length of the first step, of 255; None: a third of the budget (as 0.02 is of 0.06 there).
        target: file of the target picture; None: latents of zeros.
        random_start: start from uniform noise within the budget.
    """

    steps: int
    random_start: bool = True

    version = 3  # 3: latents of the picture alone; targets are resized
    needs = frozenset({"latent"})
    name = "photoguard"
    default = "zero"

    def __post_init__(self) -> None:
        check_numbers(self.name, least=1, steps=self.steps)

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        goals = {size: self._goal(surrogate, size, run.device) for size in {tuple(x.shape[-2:]) for x in owner.images}}

        def loss(x: Tensor, index: list[int]) -> Tensor:
            run.tally("vae_image", len(x))
            return -(surrogate.encode(x) - goals[tuple(x.shape[-2:])]).flatten(1).norm(dim=1)

        return self.ascended(owner, loss, budget, run, self.steps, at_random=self.random_start)

    def lengths(self, budget: Budget, n: int) -> list[float]:
        return shrinking(first_length(self.step_size, budget.eps, parts=3), n)

    def _goal(self, model: LatentDiffusion, size: tuple[int, ...], device: torch.device) -> Tensor:
        """Latents of the target for pictures of ``size`` (height, width); or zero."""
        picture = self.picture(size)
        return torch.zeros((), device=device) if picture is None else model.encode(picture.to(device))
