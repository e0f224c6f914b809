"""The owner who expects IMPRESS: a protection that also keeps the autoencoder consistent (Cao et al., NeurIPS 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.component import check_numbers
from udpbench.interfaces import Owner, Run
from udpbench.models.latent import LatentDiffusion, inconsistency
from udpbench.protect.wrapper import Wrapper


@dataclass(kw_only=True)
class Consistent(Wrapper):
    """Ascend ``L(x) - beta * mean |x - D(E(x))|^2``, pixels in [-1,1], where ``L`` is what ``inner`` ascends.

    IMPRESS recognises protected pictures by their reconstruction error, which this protection keeps low. The paper's:
    the idea. The released code's: Glaze inside, the mean of squares, the posterior mean, the gradient through both
    sides, and ``beta`` 30 (beside a mean square of unscaled latents, with a note that it needs tuning). Our choices:
    the term goes to any protection that heeds ``Run.penalty``, and ``beta`` is in the units of its ``L``. So with
    Glaze inside, whose latents are scaled here, the released 30 is 30 times the square of the model's latent scale
    (0.995 of Stable Diffusion); beside a denoising loss no scale comes in.

    Args:
        beta: weight of the consistency, at least 0.
    """

    beta: float

    what: ClassVar[str] = "the consistency"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers("consistent", least=0, beta=self.beta)
        self.needs = self.inner.needs | {"latent"}

    @property
    def label(self) -> str:
        """Name with what is inside and the weight."""
        return f"{super().label}_{self.beta:g}"

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        heeded = False

        def penalty(x: Tensor) -> Tensor:
            nonlocal heeded
            heeded = True
            run.tally("vae_image", len(x))
            return self.beta * inconsistency(x, surrogate)

        made = self.inner.protect(owner, budget, surrogate, replace(run, penalty=penalty))
        self.refuse_unless(heeded)
        return made
