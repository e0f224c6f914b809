"""Ensemble: one perturbation against several surrogates (Liu et al., ICLR 2017, arXiv 1611.02770)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.interfaces import Log, Owner, Run
from udpbench.optim.several import Agree, Several, lockstep
from udpbench.protect.wrapper import Wrapper


@dataclass(kw_only=True)
class Ensemble(Several, Wrapper):
    """Ascend the mean of ``L_m(x)`` over several models m, where ``L`` is what ``inner`` ascends.

    The protections under all models (with surrogates of their own, if they train any) go together step by step, on the
    same random numbers, and each picture moves along the mean of their gradients. The paper's: a mean over models,
    there of their class probabilities. Our choices are: the mean of the losses, equal weights, class pictures by the
    cell's surrogate, and that an interrupted attempt begins anew.
    """

    what: ClassVar[str] = "the other models"

    def protect(self, owner: Owner, budget: Budget, surrogate: Any, run: Run) -> list[Tensor]:
        heeded = False

        def under(model: Any, log: Log) -> Callable[[Agree], list[Tensor]]:
            def work(agree: Agree) -> list[Tensor]:
                def averaged(gradient: Tensor) -> Tensor:
                    nonlocal heeded
                    heeded = True
                    return agree(gradient)

                inner = replace(run, log=log, gradient_hook=averaged, scratch=None)
                return self.inner.protect(owner, budget, model, inner)

            return work

        first, *further = self.models(surrogate, run)
        made = lockstep([under(first, run.log), *(under(model, Log()) for model in further)])
        self.refuse_unless(heeded)
        return [torch.stack(each).mean(0) for each in zip(*made, strict=True)]
