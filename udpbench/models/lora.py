"""Low-rank additions to the layers of a UNet (Hu et al., ICLR 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from udpbench.core.component import check_choice
from udpbench.models.networks import initialised_by, sharing_copy

LORA = "pytorch_lora_weights.safetensors"  # diffusers' name
KOHYA = "kohya.safetensors"  # the same under the names that AUTOMATIC1111 and ComfyUI load
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LAYERS = {
    "attention": ATTENTION,
    "ace": (*ATTENTION, "ff.net.0.proj"),  # what ACE's and Mist v2's released code adds to
    # and what LyCORIS (Yeh et al., ICLR 2024) calls LoCon: convolutions and the rest of the transformer blocks
    "all": (
        *ATTENTION,
        *("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
        *("conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj"),
    ),
}


@dataclass(frozen=True)
class Lora:
    """Additions of ``rank`` to ``layers`` (a key of ``LAYERS``), weighted by ``alpha / rank`` (alpha None: by 1)."""

    rank: int
    alpha: float | None = None
    layers: str = "attention"

    def __post_init__(self) -> None:
        if self.rank < 1 or (self.alpha is not None and self.alpha <= 0):
            raise ValueError(f"lora: rank must be >= 1 and alpha > 0, given {self.rank} and {self.alpha}")
        check_choice("lora: unknown layers", self.layers, LAYERS)


def add_lora(unet: nn.Module, lora: Lora, rng: torch.Generator) -> Any:
    """``unet`` with trainable float32 additions in a copy that shares its weights: A drawn from ``rng``, B starting at
    0."""
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    copied: Any = sharing_copy(unet).train()
    settings: Any = {"r": lora.rank, "lora_alpha": lora.alpha or lora.rank, "target_modules": list(LAYERS[lora.layers])}
    with initialised_by(rng):
        copied.add_adapter(LoraConfig(init_lora_weights="gaussian", **settings))
    cast_training_params(copied, dtype=torch.float32)
    return copied


def save_lora(unet: nn.Module, lora: Lora, folder: Path) -> None:
    """Write the additions under peft's and under kohya's names; in both the weight alpha / rank is multiplied into B,
    so that a loader that takes alpha = rank is right."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_kohya
    from peft.utils import get_peft_model_state_dict

    scale = (lora.alpha or lora.rank) / lora.rank
    layers = {
        name: (value * scale if ".lora_B." in name else value).detach().float().cpu().contiguous()
        for name, value in get_peft_model_state_dict(unet).items()
    }
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    named = convert_state_dict_to_kohya({f"unet.{name}": value for name, value in layers.items()})
    save_file({name: value.contiguous() for name, value in named.items()}, folder / KOHYA)
