"""Through an autoencoder and back: the cheapest regeneration, strong where it is not the one that was attacked.

Zhao et al., NeurIPS 2024 ("Invisible Image Watermarks Are Provably Removable Using Generative AI").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from udpbench.attack.each import in_batches
from udpbench.core.component import check_numbers
from udpbench.interfaces import Attack, Images, Run, Texts
from udpbench.models.latent import LatentDiffusion


@dataclass(kw_only=True)
class VaeRoundtrip(Attack):
    """``D(E(x))``, with the posterior's mean, ``times`` times. Another autoencoder: ``model@purifier=...``."""

    times: int

    needs = frozenset({"latent"})
    called = "vae_roundtrip_{times}"

    def __post_init__(self) -> None:
        check_numbers("attack vae_roundtrip", least=1, times=self.times)

    def purify(self, images: Images, names: Texts, prompts: Texts, model: LatentDiffusion, run: Run) -> list[Tensor]:
        def pure(index: list[int]) -> Tensor:
            x = torch.stack([images[i] for i in index]).to(run.device)
            for _ in range(self.times):
                x = model.round_trip(x).clamp(0, 1)
            run.tally("vae_purify", self.times * len(x))
            return x.cpu()

        with torch.no_grad():
            return in_batches(images, run, self.label, pure)
