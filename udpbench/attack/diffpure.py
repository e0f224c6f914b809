"""DiffPure: noise of a diffusion model of pixels drowns the perturbation, the model takes the noise away.

Nie et al., ICML 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from udpbench.attack.each import in_batches
from udpbench.core.component import check_choice, check_numbers
from udpbench.core.pixels import reduced, resize
from udpbench.interfaces import Attack, Images, Run, Texts
from udpbench.models.pixel import PixelDiffusion
from udpbench.models.reverse import SAMPLERS, reverse
from udpbench.optim.samples import normal


@dataclass(kw_only=True)
class PixelPurifier(Attack):
    """Purifications that noise pictures to a time step of a model of pixels and denoise them.

    Args:
        t: time steps of noise.
        sampler: ``ddpm``: ancestral sampling (Ho et al. 2020, algorithm 2); ``sde``: Euler's steps of the reverse SDE,
            DiffPure's own; ``ode``: of the probability flow. They end in different pictures.
        steps: of the way back, spread evenly; None: one for each time step.
    """

    t: int
    sampler: str
    steps: int | None = None

    name: ClassVar[str]  # in messages
    needs = frozenset({"denoise", "pixel"})

    def __post_init__(self) -> None:
        check_numbers(f"attack {self.name}", least=1, t=self.t)
        check_choice(f"attack {self.name}: unknown sampler", self.sampler, SAMPLERS)
        if self.steps is not None:
            check_numbers(f"attack {self.name}", least=1, most=self.most_steps, steps=self.steps)

    def check_model(self, model: PixelDiffusion) -> None:
        model.check_steps(f"attack {self.label}", t=self.t)

    @property
    def most_steps(self) -> float:
        """How many steps back there can be: as many as time steps of noise."""
        return self.t

    def level(self, model: PixelDiffusion) -> int:
        """How many time steps of noise are added."""
        return self.t

    def noise_at(self, indices: Sequence[int]) -> int:
        """The time step, from 0, whose noise is added, where the way back goes through ``indices``."""
        return indices[0]

    def there_and_back(self, x: Tensor, rngs: Sequence[torch.Generator], model: PixelDiffusion, run: Run) -> Tensor:
        """N pictures (NCHW [0,1]) noised and denoised; all that is drawn for one is from its own generator."""
        t = self.level(model)
        indices = torch.linspace(t - 1, 0, min(t, self.steps or t)).round().int().tolist()
        run.tally("unet_purify", len(indices) * len(x))
        with torch.no_grad():
            z = model.encode(x)
            added = torch.full((len(z),), self.noise_at(indices), device=z.device)
            z = model.noised(z, added, normal(rngs, 1, z))
            z = reverse(model, z, model.embed([""] * len(z)), indices, self.sampler, lambda: normal(rngs, 1, z))
            return model.decode(z).clamp(0, 1)


@dataclass(kw_only=True)
class DiffPure(PixelPurifier):
    """``x_t = sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) noise`` (eq. 4), then back from t to 0 (eq. 6).

    Pictures whose shorter side is longer than the model's are reduced to it and enlarged afterwards: what that alone
    does, ``attack=resize`` with the same scale shows. The variance that some models predict is not used.

    Args: those of ``PixelPurifier``; t, of the model's own time steps (1,000 mostly), is 150 against ImageNet pictures
    at 4/255 in the paper, 100 (``ddpm``) where it was used against protections (GrIDPure, BlurGuard).
    """

    name: ClassVar[str] = "diffpure"
    called = "diffpure_{sampler}_{t}"

    def purify(self, images: Images, names: Texts, prompts: Texts, model: PixelDiffusion, run: Run) -> list[Tensor]:
        def pure(index: list[int]) -> Tensor:
            rngs = [run.rng("diffpure", names[i]) for i in index]
            small = torch.stack([reduced(images[i], model.size) for i in index]).to(run.device)
            _, height, width = images[index[0]].shape
            return resize(self.denoised(small, rngs, model, run).cpu(), (height, width))

        return in_batches(images, run, self.label, pure)

    def denoised(self, x: Tensor, rngs: Sequence[torch.Generator], model: PixelDiffusion, run: Run) -> Tensor:
        """What it makes of N pictures of the model's size."""
        return self.there_and_back(x, rngs, model, run)
