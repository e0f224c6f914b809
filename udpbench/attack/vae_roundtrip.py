"""Through an autoencoder and back: the cheapest regeneration, strong where it is not the one that was attacked.

Zhao et al., NeurIPS 2024 ("Invisible Image Watermarks Are Provably Removable Using Generative AI").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from udpbench.core.component import check_numbers
from udpbench.interfaces import Attack, Run
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.pgd import chunks


@dataclass(kw_only=True)
class VaeRoundtrip(Attack):
    """``D(E(x))``, with the posterior's mean, ``times`` times. Another autoencoder: ``model@purifier=...``."""

    times: int

    needs = frozenset({"latent"})

    def __post_init__(self) -> None:
        check_numbers("attack vae_roundtrip", least=1, times=self.times)

    @property
    def label(self) -> str:
        return f"vae_roundtrip_{self.times}"

    def purify(
        self, images: Sequence[Tensor], names: Sequence[str], prompts: Sequence[str], model: LatentDiffusion, run: Run
    ) -> list[Tensor]:
        out = list(images)
        for index in chunks(images, run.batch):
            x = torch.stack([images[i] for i in index]).to(run.device)
            with torch.no_grad():
                for _ in range(self.times):
                    x = model.round_trip(x).clamp(0, 1)
            run.tally("vae_image", self.times * len(x))
            for i, made in zip(index, x.cpu(), strict=True):
                out[i] = made
        return out
