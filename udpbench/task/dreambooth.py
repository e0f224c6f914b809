"""DreamBooth: fine-tune the whole UNet (and, if asked, the text encoder) on a few pictures of a subject.

Ruiz et al., CVPR 2023. The same training on the captioned pictures of an artist is the style mimicry of IMPRESS (Cao
et al., NeurIPS 2023), there without class pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from udpbench.interfaces import Run
from udpbench.models.diffusion import trainable_copy
from udpbench.optim.tuning import Trainable, Tuning

if TYPE_CHECKING:
    from udpbench.models.latent import LatentDiffusion


@dataclass(kw_only=True)
class DreamBooth(Tuning):
    """Full fine-tuning; ``train_text_encoder``: of the text encoder, too."""

    train_text_encoder: bool = False

    name: ClassVar[str] = "dreambooth"

    def trainable(self, victim: LatentDiffusion, run: Run) -> Trainable:
        """The victim with a trainable UNet and, if asked, text encoder."""
        parts: dict[str, Any] = {"unet": victim.fresh_unet("copy", run.rng("init"))}
        if self.gradient_checkpointing:
            parts["unet"].enable_gradient_checkpointing()
        if self.train_text_encoder:
            parts["text_encoder"] = trainable_copy(victim.pipe.text_encoder)
            if self.gradient_checkpointing:
                parts["text_encoder"].gradient_checkpointing_enable()

        def save(folder: Path) -> None:
            for name, module in parts.items():
                module.save_pretrained(folder / name)

        weights = [p for module in parts.values() for p in module.parameters()]
        return Trainable(victim.having(**parts), weights, save, text=self.train_text_encoder)
