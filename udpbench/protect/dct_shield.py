"""DCT-Shield: perturb the quantised coefficients of JPEG (Bala et al., ICCV 2025, arXiv 2504.17894)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.component import check_choice, check_numbers
from udpbench.core.jpeg import coefficients, decoded, quantisation
from udpbench.core.pixels import is_grey
from udpbench.interfaces import Owner, Run
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.pgd import Ascent, Box, by_size, first_length, pgd_through, run_of

CHANNELS = {"all": (1.0, 1.0, 1.0), "luma": (1.0, 0.0, 0.0)}


@dataclass(kw_only=True)
class DCTShield(Ascent):
    """Lower ``||E(decode(alpha + delta))||``, ``alpha`` the quantised JPEG coefficients of the picture and ``delta``
    within +-``coefficient_eps`` of them: the perturbation outlives JPEG of that quality and better ones.

    Its budget is in quantisation steps, each of another size in pixels, so ``budget.eps`` is not used: what the change
    is in 1/255 is measured on the saved picture, the rounding of ``alpha`` included. The k-th of n steps has length
    ``(1 - k / n) step_size``. The pictures must stay PNG. The paper's: all of this. Our choices are: chroma as large as
    luma (4:4:4), the posterior's mean, no chroma for grey pictures.

    Args:
        iterations: of descent; 1,000 in the paper.
        quality: of the JPEG; 95 in the paper, 85 with ``channels`` luma.
        coefficient_eps: bound on the change of a coefficient, in quantisation steps; 1 in the paper.
        step_size: length of the first step, in quantisation steps; None: an eighth of ``coefficient_eps``. 0.1 in the
            paper.
        channels: all | luma.
    """

    iterations: int
    quality: int = 95
    coefficient_eps: float = 1.0
    channels: str = "all"

    needs = frozenset({"latent"})
    keeps_budget = False

    def __post_init__(self) -> None:
        check_choice("dct_shield: unknown channels", self.channels, CHANNELS)
        check_numbers("dct_shield", least=1, iterations=self.iterations)
        check_numbers("dct_shield", least=1, most=100, quality=self.quality)
        check_numbers("dct_shield", above=0, coefficient_eps=self.coefficient_eps)

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        made: list[Tensor] = list(owner.images)
        for index in by_size(owner.images):  # coefficients are as many for several sizes
            protected = self._of_one_size([owner.images[i] for i in index], surrogate, run_of(run, index))
            for i, x in zip(index, protected, strict=True):
                made[i] = x
        return made

    def _of_one_size(self, images: Sequence[Tensor], surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        steps = quantisation(self.quality).to(run.device)
        clean = [x[None].to(run.device) for x in images]
        alpha = [coefficients(x, steps)[0] for x in clean]
        kept = torch.tensor(CHANNELS[self.channels], device=run.device).view(1, 3, 1, 1)
        luma = torch.tensor(CHANNELS["luma"], device=run.device).view(1, 3, 1, 1)
        moves = [torch.where(is_grey(x), luma, kept) for x in clean]

        def make(c: Tensor, index: list[int]) -> Tensor:
            start, free = torch.stack([alpha[i] for i in index]), torch.cat([moves[i] for i in index])
            height, width = images[0].shape[-2:]
            return decoded(start + (c - start) * free, steps, height, width)

        def loss(x: Tensor, index: list[int]) -> Tensor:
            run.tally("vae_image", len(x))
            return -surrogate.encode(x).flatten(1).norm(dim=1)

        first = first_length(self.step_size, self.coefficient_eps)
        bound, n = Box(self.coefficient_eps, self.coefficient_eps), self.iterations
        lengths = [first * (1 - k / n) for k in range(n)]
        return pgd_through(make, alpha, loss, bound, run, steps=lengths, most=run.grad_batch)
