"""DreamBooth: fine-tune the whole UNet (and, if asked, the text encoder) on a few pictures of a subject.

Ruiz et al., CVPR 2023. The same training on the captioned pictures of an artist is the style mimicry of IMPRESS (Cao
et al., NeurIPS 2023), there without class pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from udpbench.interfaces import Run
from udpbench.models.diffusion import Trainable
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.tuning import Tuning


@dataclass(kw_only=True)
class DreamBooth(Tuning):
    """Full fine-tuning; ``train_text_encoder``: of the text encoder, too."""

    train_text_encoder: bool = False

    name: ClassVar[str] = "dreambooth"

    def trainable(self, victim: LatentDiffusion, run: Run) -> Trainable:
        return victim.trainable(
            run.rng("init"),
            text_encoder=self.train_text_encoder,
            gradient_checkpointing=self.gradient_checkpointing,
        )
