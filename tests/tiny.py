"""Pipelines with random weights, small enough for a test to train. They draw nothing: they only have the right shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from udpbench.models.shaped import random_pipeline

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
        "num_attention_heads": 2, "max_position_embeddings": 32,
    },
}  # fmt: skip


def save_tiny(folder: Path, seed: int = 0, prediction_type: str = "epsilon") -> Path:
    """Write a Stable-Diffusion-shaped pipeline of 16 px pictures (about 0.1 M parameters) to ``folder``."""
    random_pipeline(TINY, seed, prediction_type).save_pretrained(folder)
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
