"""Complete pipelines with random weights, for developers: one small enough for a test to train, one to time.

They draw nothing: they only have the right shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMPipeline,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from udpbench.world.training import build

SIZE = 16
TINY: dict[str, dict[str, Any]] = {
    "vae": {
        "latent_channels": 4, "block_out_channels": (8, 8), "norm_num_groups": 4, "sample_size": SIZE,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
        "mid_block_add_attention": False,
    },
    "unet": {
        "sample_size": SIZE // 2, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "layers_per_block": 1, "norm_num_groups": 4,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 16, "attention_head_dim": 2,
    },
    "text": {
        "hidden_size": 16, "intermediate_size": 32, "projection_dim": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": build.MAX_TOKENS,
    },
}  # fmt: skip
SD15: dict[str, dict[str, Any]] = {
    "vae": {
        "latent_channels": 4, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "scaling_factor": 0.18215,
    },
    "unet": {"sample_size": 64, "cross_attention_dim": 768},  # the defaults are Stable Diffusion's
    "text": {
        "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 77, "vocab_size": 49408,
    },
}  # fmt: skip


def _pipeline(shape: dict[str, dict[str, Any]], folder: Path, seed: int, prediction: str) -> StableDiffusionPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words = build.tokenizer(folder / "tokenizer")
        vae, unet = AutoencoderKL(**shape["vae"]), UNet2DConditionModel(**shape["unet"])
        ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
        text = CLIPTextConfig(**{"vocab_size": len(words), "pad_token_id": words.eos_token_id, **ends, **shape["text"]})
        return build.assemble(vae, unet, CLIPTextModel(text), words, prediction)


def save_tiny(folder: Path, seed: int = 0, prediction_type: str = "epsilon") -> Path:
    """Write a Stable-Diffusion-shaped pipeline of 16 px pictures (about 0.1 M parameters) to ``folder``."""
    _pipeline(TINY, folder, seed, prediction_type).save_pretrained(folder)
    return folder


def save_sd15_shaped(folder: Path, seed: int = 0) -> Path:
    """A pipeline of Stable Diffusion 1.5's shape (1.07 billion parameters) with random weights, in bf16: for timing,
    not for pictures."""
    _pipeline(SD15, folder, seed, "epsilon").to(dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def save_tiny_pixel(folder: Path, seed: int = 0) -> Path:
    """Write a DDPM-shaped pipeline of 16 px pictures (about 0.1 M parameters) to ``folder``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DModel(
            sample_size=SIZE,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=8,
            norm_num_groups=4,
        )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    return folder
