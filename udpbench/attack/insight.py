"""INSIGHT: make a picture look to the model like its photograph (An et al., USENIX Security 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from udpbench.attack.impress import Impress
from udpbench.attack.members import check_purifies
from udpbench.core.component import check_numbers
from udpbench.core.memory import queued
from udpbench.interfaces import Attack, Run
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.samples import normal, uniform_times
from udpbench.optim.target import mse


@dataclass(kw_only=True)
class Insight(Impress):
    """Minimise, over the picture x, with z = E(x), p the photograph and x' the protected picture

    ``encoder |z - E(p)|^2 + unet |eps(z_t, t) - eps(E(p)_t, t)|^2 + consistency |x - D(z)|^2
    + alpha max(dist(x, x') - distance_budget, 0) - away encoder |z - E(x')|^2``,

    squares being means, t and noise drawn anew in each step and the same on both sides. The optimisation is IMPRESS's.
    A photograph of a screen removes what of a perturbation is too fine for it; the authors take and align one by hand,
    here ``photo`` emulates it, or (``attack=folder``) takes real ones from a folder.

    The released code's: the terms, its run script's weights, the prompt "a painting". Its command line without options
    is another attack, signed steps within 16/255 with other weights, which is not offered. Our choices: posterior
    means, IMPRESS's ``size_correct`` over all terms.

    Args: those of ``Impress`` (``precision`` is fp32), and
        photo: the attack that makes the photographs.
        encoder, unet, consistency, away: weights.
        prompt: of the UNet's term.
    """

    photo: Attack
    encoder: float
    unet: float
    consistency: float
    away: float
    prompt: str

    name = "insight"
    needs = frozenset({"denoise", "latent", "text"})

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = {name: vars(self)[name] for name in ("encoder", "unet", "consistency", "away")}
        check_numbers("attack insight", least=0, **weights)
        if not isinstance(self.photo, Attack) or self.photo.needs:
            raise ValueError("attack insight: photo must be an attack without a model, e.g. screen_camera or folder")
        check_purifies("attack insight: photo", self.photo.known_as, self.photo)
        if self.precision != "fp32":
            raise ValueError(f"attack insight: precision must be fp32, given {self.precision!r}")

    def check(self) -> None:
        super().check()
        self.photo.check()

    def on_clean(self) -> Insight | None:
        """With photographs of the clean pictures; None if there are none."""
        photo = self.photo.on_clean()
        return replace(self, photo=photo) if photo else None

    def model_prompts(self) -> list[str]:
        return [self.prompt]

    def aims(
        self, protected: Tensor, names: Sequence[str], model: LatentDiffusion, run: Run
    ) -> Callable[[Tensor, int], Tensor]:
        photos = self.photo.purify(list(protected.cpu()), names, [""] * len(names), None, run)
        rngs = [run.rng("insight", name) for name in names]
        seen, avoided = model.encode(torch.stack(photos).to(protected.device)), model.encode(protected)
        cond = model.embed([self.prompt] * len(names))

        def aim(y: Tensor, step: int) -> Tensor:
            x = (y + 1) / 2
            z = model.encode(x)
            back = model.decode(z)[..., : x.shape[-2], : x.shape[-1]]  # without what it was padded with
            total = self.consistency * (2 * (back - x)).square().flatten(1).mean(1)
            total = total + self.encoder * (mse(z, seen) - self.away * mse(z, avoided))
            if self.unet:
                t, noise = queued(uniform_times(rngs, 1, len(model.alpha_bar)), z.device), normal(rngs, 1, z)
                outputs = [model.predict(model.noised(v, t, noise), t, cond) for v in (z, seen)]
                total = total + self.unet * mse(*outputs)
                run.tally("unet_purify", 2 * len(z))
            return self.scale(y) * total

        return aim
