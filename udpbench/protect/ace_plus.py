"""ACE+: ACE that also moves the latents themselves to the pattern (Zheng et al., arXiv 2310.04687)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from udpbench.core.component import check_numbers
from udpbench.optim.target import mse
from udpbench.protect.ace import ACE


@dataclass(kw_only=True)
class ACEPlus(ACE):
    """Lower ``|output - z_T|^2 + latent_weight |z - z_T|^2``, both means.

    Args: those of ``ACE``, and
        latent_weight: of the latents' distance to the target's; 100 in the released code.
    """

    latent_weight: float = 100.0

    name: ClassVar[str] = "ace_plus"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self.name, least=0, latent_weight=self.latent_weight)

    def raised(self, z: Tensor, output: Tensor, truth: Tensor, target: Tensor) -> Tensor:
        return super().raised(z, output, truth, target) - self.latent_weight * mse(z, target)
