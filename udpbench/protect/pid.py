"""PID: prompt-independent defence by the autoencoder's posterior (Li et al., ICML 2024, arXiv 2406.15305)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.component import check_choice, check_numbers
from udpbench.interfaces import Owner, Run
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.pgd import Ascent
from udpbench.optim.samples import normal
from udpbench.optim.target import mse

Moments = tuple[Tensor, Tensor]  # mean and standard deviation of the posterior, not scaled


def kl(clean: Moments, moved: Moments) -> Tensor:
    """KL(clean || moved) of the two Gaussians, a mean over the latents, (N,)."""
    (m, s), (n, r) = clean, moved
    return ((r / s).log() - 0.5 + (s.square() + (m - n).square()) / (2 * r.square())).flatten(1).mean(1)


# What is raised, of the moments of clean and of perturbed pictures; ``sample``, which draws, is in the class.
DISTANCES = {
    "add_log": lambda clean, moved: mse(clean[0], moved[0]) + 4 * mse(clean[1].log(), moved[1].log()),
    "add": lambda clean, moved: mse(clean[0], moved[0]) + mse(clean[1], moved[1]),
    "mean": lambda clean, moved: mse(clean[0], moved[0]),
    "std": lambda clean, moved: mse(clean[1], moved[1]),
    "kl": kl,
}


@dataclass(kw_only=True)
class PID(Ascent):
    """Raise the distance of the autoencoder's posterior to that of the clean picture; no UNet, no prompt.

    ``distance``, of mean mu and standard deviation sigma: ``add_log`` MSE(mu) + MSE(log sigma^2), the released default;
    ``add`` MSE(mu) + MSE(sigma); ``mean`` MSE(mu); ``std`` MSE(sigma), called var there; ``kl`` the mean of
    KL(clean || perturbed); ``sample`` the MSE of a latent drawn from each, called latent_vector there.
    Latents are not scaled, as there. At the clean picture the gradient is zero: the start is random. The released code
    writes its pictures before every 25th update, so that its last 25 never count; here all do.

    Args:
        steps: of ascent.
        distance: see above.
        step_size: length of one step, of 255; None: an eighth of the budget. (In the released code 1 whatever is said.)
    """

    steps: int
    distance: str = "add_log"

    needs = frozenset({"latent"})

    def __post_init__(self) -> None:
        check_choice("pid: unknown distance", self.distance, [*DISTANCES, "sample"])
        check_numbers("pid", least=1, steps=self.steps)

    @property
    def label(self) -> str:
        return "" if self.distance == "add_log" else f"pid_{self.distance}"

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        clean = [self.posterior(surrogate, x[None].to(run.device)) for x in owner.images]
        rngs = [run.rng("pid", name) for name in owner.names]

        def loss(x: Tensor, index: list[int]) -> Tensor:
            run.tally("vae_image", len(x))
            ours = (torch.cat([clean[i][0] for i in index]), torch.cat([clean[i][1] for i in index]))
            moved = self.posterior(surrogate, x)
            if self.distance != "sample":
                return DISTANCES[self.distance](ours, moved)
            drawn_by = [rngs[i] for i in index]
            return mse(drawn(ours, drawn_by), drawn(moved, drawn_by))

        return self.ascended(owner, loss, budget, run, self.steps, at_random=True)

    @staticmethod
    def posterior(model: LatentDiffusion, x: Tensor) -> Moments:
        """Mean and standard deviation of the unscaled latents of pictures ``x`` (NCHW [0,1])."""
        mean, std = model.moments(x)
        scale = model.pipe.vae.config.scaling_factor
        return mean / scale, std / scale


def drawn(moments: Moments, rngs: Sequence[torch.Generator]) -> Tensor:
    """A latent of each of N posteriors, of its own generator."""
    return moments[0] + moments[1] * normal(rngs, 1, moments[0])
