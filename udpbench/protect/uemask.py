"""UEMask: a multiplicative mask instead of noise (released code 103410/UEMask; its paper could not be read)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.component import check_numbers
from udpbench.interfaces import Owner, Run
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.pgd import Box, first_length, pgd_through
from udpbench.protect.advdm import AdvDM


@dataclass(kw_only=True)
class UEMask(AdvDM):
    """Raise ``L(m x) - l1_weight mean |1 - m|`` over masks ``m`` of the picture's shape, within [1 - strength, 1].

    As in the released code the mask multiplies the picture on its [-1,1] scale: it moves every value towards grey, by
    up to ``strength`` of its distance from grey, and a value at grey not at all. (That is no darkening.) The code's
    weight is 1e-7 of a sum over 3 x 512 x 512 values: 0.0786 of a mean. Our choices are: the budget, on which the
    masked picture is projected (a strength of .15 moves nothing by more than 19.2 of 255, so ``budget.eps=19.2`` leaves
    it alone), and the owner's prompts (there: "a photo of a person").

    Args: those of ``AdvDM``, but
        step_size: length of one step of the mask; None: an eighth of ``strength``. .005 in the released code.
        random_start: of the mask, uniform within its bound; the released code starts at 1.
        strength: bound on 1 - m.
        l1_weight: of the mean of 1 - m.
    """

    random_start: bool = False
    strength: float = 0.15
    l1_weight: float = 1e-7 * 3 * 512 * 512

    name = "uemask"
    version = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self.name, above=0, most=1, strength=self.strength)
        check_numbers(self.name, least=0, l1_weight=self.l1_weight)

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        clean = [x.to(run.device) for x in owner.images]
        ones = [torch.ones_like(x) for x in clean]
        masks = [self._start(x, run.rng("start", name)) for x, name in zip(ones, owner.names, strict=True)]

        def masked(m: Tensor, index: list[int]) -> Tensor:
            x = torch.stack([clean[i] for i in index])
            return budget.project(0.5 + (x - 0.5) * m, x)

        def sparse(m: Tensor) -> Tensor:
            return -self.l1_weight * (1 - m).abs().flatten(1).mean(1)

        loss, most = self.image_loss(surrogate, owner, run), run.grad_batch // self.samples
        steps = [first_length(self.step_size, self.strength)] * self.steps
        bound = Box(self.strength, 0)
        return pgd_through(masked, masks, loss, bound, run, steps=steps, most=most, origin=ones, beside=sparse)

    def _start(self, ones: Tensor, rng: torch.Generator) -> Tensor:
        if not self.random_start:
            return ones
        return ones - self.strength * torch.rand(ones.shape, generator=rng).to(ones.device)
