"""LoRA: fine-tune low-rank additions to layers of the UNet (Hu et al., ICLR 2022), of subjects and of styles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from udpbench.interfaces import Run
from udpbench.models import lora
from udpbench.models.diffusion import Trainable
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.tuning import Tuning


@dataclass(kw_only=True)
class Lora(Tuning):
    """Low-rank additions to the UNet; the text encoder stays as it is.

    Saved under peft's names (diffusers) and, in ``lora/kohya.safetensors``, under those that AUTOMATIC1111 and ComfyUI
    load.

    Args:
        rank: of the additions.
        alpha: their weight is ``alpha / rank``; None: ``rank``.
        layers: ``attention``, as in the usual scripts, or ``all``: the convolutions, too, which draw the fine detail.
    """

    rank: int
    alpha: float | None = None
    layers: str = "attention"

    name: ClassVar[str] = "lora"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.additions = lora.Lora(self.rank, self.alpha, self.layers)

    def trainable(self, victim: LatentDiffusion, run: Run) -> Trainable:
        return victim.trainable(
            run.rng("init"), lora=self.additions, gradient_checkpointing=self.gradient_checkpointing
        )
