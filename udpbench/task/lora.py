"""LoRA: fine-tune low-rank additions to layers of the UNet (Hu et al., ICLR 2022), of subjects and of styles."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import nn

from udpbench.interfaces import Run
from udpbench.models.diffusion import initialised_by
from udpbench.optim.tuning import Trainable, Tuning

if TYPE_CHECKING:
    from udpbench.models.latent import LatentDiffusion

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LAYERS = {
    "attention": ATTENTION,
    # and what LyCORIS (Yeh et al., ICLR 2024) calls LoCon: convolutions and the rest of the transformer blocks
    "all": (
        *ATTENTION,
        *("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
        *("conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj"),
    ),
}
KOHYA = "kohya.safetensors"


@dataclass(kw_only=True)
class Lora(Tuning):
    """Weights W + (alpha / rank) B A in layers of the UNet, A and B trained, W frozen.

    What is saved is the format of diffusers (``lora/pytorch_lora_weights.safetensors``, peft's names) and, under
    ``lora/kohya.safetensors``, the names that AUTOMATIC1111 and ComfyUI load; in both the factor alpha / rank is
    multiplied into B, so that a loader that takes alpha = rank is right. The text encoder is left as it is.

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
        if self.rank < 1 or (self.alpha is not None and self.alpha <= 0):
            raise ValueError(f"lora: rank must be >= 1 and alpha > 0, given {self.rank} and {self.alpha}")
        if self.layers not in LAYERS:
            raise ValueError(f"lora: unknown layers {self.layers!r}; allowed are {', '.join(LAYERS)}")

    def trainable(self, victim: LatentDiffusion, run: Run) -> Trainable:
        """The victim with additions to its UNet: A drawn with the run's seed, B starting at 0."""
        from diffusers.training_utils import cast_training_params
        from peft import LoraConfig

        unet: Any = copy.deepcopy(victim.pipe.unet).train()
        which = list(LAYERS[self.layers])
        settings: Any = {"r": self.rank, "lora_alpha": self.alpha or self.rank, "target_modules": which}
        with initialised_by(run.rng("init")):
            unet.add_adapter(LoraConfig(init_lora_weights="gaussian", **settings))
        cast_training_params(unet, dtype=torch.float32)
        if self.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        weights = [p for p in unet.parameters() if p.requires_grad]
        return Trainable(victim.having(unet=unet), weights, lambda folder: self._save(unet, folder / "lora"))

    def _save(self, unet: nn.Module, folder: Path) -> None:
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import convert_state_dict_to_kohya
        from peft.utils import get_peft_model_state_dict

        scale = (self.alpha or self.rank) / self.rank
        layers = {
            name: (value * scale if ".lora_B." in name else value).detach().float().cpu().contiguous()
            for name, value in get_peft_model_state_dict(unet).items()
        }
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
        named = convert_state_dict_to_kohya({f"unet.{name}": value for name, value in layers.items()})
        save_file({name: value.contiguous() for name, value in named.items()}, folder / KOHYA)
