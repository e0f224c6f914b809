"""Mist v2: the released tool that follows ACE (psyker-team/mist-v2, 2023; no paper of its own)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from udpbench.core.component import check_choice, check_numbers
from udpbench.optim.target import mse
from udpbench.protect.ace import ACE

MODES = ("lunet", "fused", "anti-db")


@dataclass(kw_only=True)
class MistV2(ACE):
    """ACE's loop with the tool's modes and numbers.

    ``mode``: ``lunet``, its default, is ACE's objective. ``anti-db`` raises the denoising loss. ``fused`` is *not*
    ACE+: it raises ``-sum(output * truth)``, which sets the prediction against what it should be, and, by a sign that
    is the other way round in ACE, ``+ latent_weight |z - z_T|^2``: as released the latents are pushed *away* from the
    target. ``fused_to_target`` false is that; true pulls them to it, as ACE+ does and as was likely meant. Time steps
    are drawn from all, the latents of the ascent are the posterior's mean (ACE's path for little memory). The text
    encoder stays as it is, as there by default. Our choice: the owner's prompts (there: "a picture" for all pictures,
    with quality tags before it in training).

    Args: those of ``ACE``, and
        mode: lunet | fused | anti-db.
        latent_weight: of the latents' distance to the target's, in ``fused`` only.
        fused_to_target: sign of the latents' term in ``fused``.
    """

    first_time: int = 0
    mode: str = "lunet"
    latent_weight: float = 100.0
    fused_to_target: bool = False

    name: ClassVar[str] = "mist_v2"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self.name, least=0, latent_weight=self.latent_weight)
        check_choice(f"{self.name}: unknown mode", self.mode, MODES)

    @property
    def label(self) -> str:
        return "" if self.mode == "lunet" else f"mist_v2_{self.mode}"

    def raised(self, z: Tensor, output: Tensor, truth: Tensor, target: Tensor) -> Tensor:
        if self.mode == "lunet":
            return super().raised(z, output, truth, target)
        if self.mode == "anti-db":
            return mse(output, truth)
        latents = self.latent_weight * mse(z, target)
        return -(output * truth).flatten(1).sum(1) + (-latents if self.fused_to_target else latents)
