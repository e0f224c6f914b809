"""The thief tries several purifications and keeps, of each picture, what looks purest to him."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from udpbench.attack.members import Members, check_purifies, own_run, purified
from udpbench.core.component import check_choice
from udpbench.interfaces import Images, Run, Texts
from udpbench.models.diffusion import Diffusion
from udpbench.models.latent import LatentDiffusion, inconsistency
from udpbench.optim.samples import normal, uniform_times

SAMPLES = 16  # Monte Carlo samples of the denoising loss


def _inconsistency(x: Tensor, prompt: str, model: LatentDiffusion, rng: torch.Generator) -> Tensor:
    return inconsistency(x, model)


def _denoising(x: Tensor, prompt: str, model: Diffusion, rng: torch.Generator) -> Tensor:
    z, cond = model.encode(x), model.embed([prompt])
    t, noise = uniform_times([rng], SAMPLES, len(model.alpha_bar)).to(x.device), normal([rng], SAMPLES, z)
    return model.loss(z.repeat_interleave(SAMPLES, 0), cond.repeat(SAMPLES), t, noise).mean(0, keepdim=True)


# score -> a picture (1CHW), its prompt, the model and a generator -> (1,), and what it needs of the model
SCORES: dict[str, tuple[Callable[[Tensor, str, Diffusion, torch.Generator], Tensor], frozenset[str]]] = {
    "inconsistency": (_inconsistency, frozenset({"latent"})),  # type: ignore[dict-item]
    "denoising": (_denoising, frozenset({"denoise"})),
}


@dataclass(kw_only=True)
class BestOf(Members):
    """Of each picture, the member's result with the lowest ``score``: the purifier's inconsistency ``mean |x -
    D(E(x))|^2`` (what IMPRESS tells protected pictures by) or its denoising loss (what AdvDM raises), over 16 samples
    of noise and time that are the same for all members.

    Our own: a thief without clean pictures chooses by what he can measure before any training. It costs all members
    and a score of each result. The worst case for the owner over attacks is another thing: it takes a victim for each.

    Args:
        score: ``inconsistency`` or ``denoising``.
    """

    score: str

    name = "best_of"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(f"attack {self.name}: unknown score", self.score, SCORES)
        self.needs = self.needs | SCORES[self.score][1]
        for name, member in self.members.items():
            check_purifies("attack best_of: members", name, member)

    @property
    def label(self) -> str:
        return self.title or f"best_of_{self.joined('|')}"

    def purify(self, images: Images, names: Texts, prompts: Texts, model: Diffusion, run: Run) -> list[Tensor]:
        best, least = list(images), [float("inf")] * len(images)
        measure = SCORES[self.score][0]
        for k, member in enumerate(self.ordered):
            for i, x in enumerate(purified(member, images, names, prompts, model, own_run(run, k))):
                with torch.no_grad():
                    value = float(measure(x[None].to(run.device), prompts[i], model, run.rng("best_of", names[i])))
                if self.score == "denoising":
                    run.tally("unet_purify", SAMPLES)
                if not math.isfinite(value):
                    raise ValueError(f"attack best_of: the {self.score} of {names[i]} is {value}")
                if value < least[i]:
                    best[i], least[i] = x, value
        return best
