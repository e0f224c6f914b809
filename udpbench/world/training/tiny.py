"""A complete pipeline with random weights, small enough for a test to train.

It draws nothing: it only has the right shape.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from udpbench.world.training import build

SIZE = 16


def _text_encoder(
    words: CLIPTokenizer, width: int, layers: int, heads: int, tokens: int = build.MAX_TOKENS, vocabulary: int = 0
) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary or len(words),
            hidden_size=width,
            intermediate_size=width * (4 if vocabulary else 2),
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=tokens,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.eos_token_id,
        )
    )


def save_tiny(folder: Path, seed: int = 0, prediction_type: str = "epsilon") -> Path:
    """Write a Stable-Diffusion-shaped pipeline of 16 px pictures (about 0.1 M parameters) to ``folder``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words = build.tokenizer(folder / "tokenizer")
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
        text = _text_encoder(words, width=16, layers=1, heads=2)
        pipe = build.assemble(vae, unet, text, words, prediction_type)
    pipe.save_pretrained(folder)
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


def save_sd15_shaped(folder: Path, seed: int = 0) -> Path:
    """A pipeline of Stable Diffusion 1.5's shape (1.07 billion parameters) with random weights, in bf16: for timing,
    not for pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words = build.tokenizer(folder / "tokenizer")
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
        text = _text_encoder(words, width=768, layers=12, heads=12, tokens=77, vocabulary=49408)
        pipe = build.assemble(vae, unet, text, words)
    pipe.to(dtype=torch.bfloat16).save_pretrained(folder)
    return folder
