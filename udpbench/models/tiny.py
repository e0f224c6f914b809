"""A complete pipeline with random weights, small enough for a test to train.

It draws nothing: it only has the right shape.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from udpbench.models.micro import build

SIZE = 16


def save_tiny(folder: Path, seed: int = 0, prediction_type: str = "epsilon") -> Path:
    """Write a Stable-Diffusion-shaped pipeline of 16 px pictures (about 0.1 M parameters) to ``folder``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words = build.tokenizer(folder / "tokenizer")
        text = CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=32,
            projection_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=build.MAX_TOKENS,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.eos_token_id,
        )
        vae = AutoencoderKL(
            latent_channels=4,
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            sample_size=SIZE,
            mid_block_add_attention=False,
        )
        unet = UNet2DConditionModel(
            sample_size=SIZE // 2,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        )
        pipe = build.assemble(vae, unet, CLIPTextModel(text), words)
    pipe.scheduler.register_to_config(prediction_type=prediction_type)
    pipe.save_pretrained(folder)
    return folder


def save_sd15_shaped(folder: Path, seed: int = 0) -> Path:
    """A pipeline of Stable Diffusion 1.5's shape (1.07 billion parameters) with random weights, in bf16: for timing,
    not for pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words = build.tokenizer(folder / "tokenizer")
        text = CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            projection_dim=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=77,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.eos_token_id,
        )
        vae = AutoencoderKL(
            latent_channels=4,
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
            scaling_factor=0.18215,
        )
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # the defaults are Stable Diffusion's
        pipe = build.assemble(vae, unet, CLIPTextModel(text), words)
    pipe.to(dtype=torch.bfloat16).save_pretrained(folder)
    return folder
