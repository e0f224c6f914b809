"""CAT: adapt the autoencoder to the protected pictures, then train (Peng et al., ICML 2025, arXiv 2502.07225)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from udpbench.core.component import check_choice, check_numbers
from udpbench.core.memory import queued
from udpbench.interfaces import Attack, Run
from udpbench.models.diffusion import Diffusion
from udpbench.models.latent import LatentDiffusion, inconsistency
from udpbench.models.networks import initialised_by
from udpbench.optim.fit import FitSettings, fit

SIDES = {"encoder": "encoder", "decoder": "decoder", "both": "(encoder|decoder)"}
STATE = "cat.ckpt"
LAYERS = r"\..*\.(conv|conv1|conv2|to_q|to_k|to_v|to_out\.0)"


@dataclass(kw_only=True)
class Cat(FitSettings, Attack):
    """Train low-rank additions to the autoencoder on ``mean |x - D(E(x))|^2`` of the pictures that reach the thief, in
    [-1,1]; everything after that, the training and the generation, has the adapted autoencoder. The pictures stay as
    they are.

    Released: additions of alpha = rank, with Gaussian start, to convolutions and attention of encoder, decoder or both.
    Our choice: the posterior's mean, as everywhere here.

    Args: those of ``FitSettings``, and
        rank: of the additions.
        side: ``encoder``, ``decoder`` or ``both``.
        batch: pictures in a step.
    """

    rank: int
    side: str
    batch: int

    places: ClassVar[tuple[str, ...]] = ("save_every",)
    needs = frozenset[str]()  # what it adapts is the victim's, not the purifier's

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers("attack cat", least=1, steps=self.steps, rank=self.rank, batch=self.batch)
        check_choice("attack cat: unknown side", self.side, SIDES)

    def check_victim(self, victim: Diffusion) -> None:
        if "latent" not in victim.capabilities:
            raise ValueError(f"attack cat: adapts an autoencoder, which victim {victim.name} lacks")

    def adapt(self, victim: LatentDiffusion, images: Sequence[Tensor], run: Run) -> LatentDiffusion:
        """``victim`` with the adapted autoencoder, in float32."""
        from peft import LoraConfig, get_peft_model

        vae = copy.deepcopy(victim.pipe.vae).float()
        layers = SIDES[self.side] + LAYERS
        kind = LoraConfig(r=self.rank, lora_alpha=self.rank, init_lora_weights="gaussian", target_modules=layers)
        with initialised_by(run.rng("cat", "init")):
            additions = get_peft_model(vae, kind)
        model, pictures = victim.having(vae=vae), torch.stack(list(images))

        def loss(step: int) -> Tensor:
            index = torch.randint(len(pictures), (self.batch,), generator=run.rng("cat", step))
            run.tally("vae_train", self.batch)
            return inconsistency(queued(pictures[index], run.device), model).mean()

        trained = [p for p in additions.parameters() if p.requires_grad]
        fit(trained, loss, self, run, title="adapt", checkpoint=run.scratch and run.scratch / STATE)
        merged = additions.merge_and_unload().requires_grad_(False).eval()
        return victim.having(vae=merged)
