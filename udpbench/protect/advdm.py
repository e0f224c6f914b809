"""AdvDM: raise the denoising loss of a model that stays as it is (Liang et al., ICML 2023, arXiv 2302.04578)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.component import check_numbers
from udpbench.interfaces import Owner, Run
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.denoising import Objective, denoising_loss
from udpbench.optim.pgd import Ascent, Loss


@dataclass(kw_only=True)
class AdvDM(Ascent):
    """Projected ascent of the denoising loss; every step samples new time steps (uniform), noise and latents.

    Our choice: the owner's prompts (in the releases with Mist and Diff-Protect: "a painting" or "a photo").

    Args:
        steps: of ascent.
        samples: (t, noise, latent) samples per picture and step, in one forward pass; 1 in the released code.
        step_size: length of one step, of 255; None: an eighth of the budget.
        sample_latents: draw latents from the posterior (as the released code does) or use its mean.
        random_start: start from uniform noise within the budget, as the released code does.
    """

    steps: int
    samples: int = 1
    sample_latents: bool = True
    random_start: bool = True

    name: ClassVar[str] = "advdm"
    version = 2  # 2: the loss is of the picture alone, not of what it is padded with
    needs = frozenset({"denoise", "latent", "text"})

    def __post_init__(self) -> None:
        check_numbers(self.name, least=1, steps=self.steps, samples=self.samples)

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        loss, start = self.image_loss(surrogate, owner, run), self.random_start
        return self.ascended(owner, loss, budget, run, self.steps, at_random=start, samples=self.samples)

    def image_loss(self, model: LatentDiffusion, owner: Owner, run: Run) -> Loss:
        """What the pictures raise; each has samples of its own."""
        cond = model.embed(owner.prompts)
        rngs = [run.rng("advdm", name) for name in owner.names]
        drawn: dict[str, Any] = {"samples": self.samples, "sample_latents": self.sample_latents}
        return denoising_loss(model, cond, rngs, run, **drawn, objective=self.objective(model, owner))

    def objective(self, model: LatentDiffusion, owner: Owner) -> Objective | None:
        """The loss of latents; None: the model's denoising loss."""
        return None
