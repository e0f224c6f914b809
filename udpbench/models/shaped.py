"""Stable-Diffusion-shaped pipelines with random weights, for timing and tests. They draw nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from udpbench.models.micro.judge import WEIGHTS

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

# A model for 256 px that a CPU can train: the levels and blocks of Stable Diffusion, 17 million parameters.
SMALL: dict[str, dict[str, Any]] = {
    "vae": {**SD15["vae"], "block_out_channels": (16, 32, 64, 64), "norm_num_groups": 8, "sample_size": 256},
    "unet": {
        "sample_size": 32, "cross_attention_dim": 64, "block_out_channels": (32, 64, 128, 128), "norm_num_groups": 8,
    },
    "text": {
        "hidden_size": 64, "intermediate_size": 256, "projection_dim": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "max_position_embeddings": 77,
    },
}  # fmt: skip


def random_pipeline(shape: Mapping[str, Mapping[str, Any]], seed: int = 0, prediction: str = "epsilon") -> Any:
    """A pipeline whose parts have the settings ``shape`` (of vae, unet, text), float32, with the embedded model's
    tokenizer and Stable Diffusion's noise schedule; ``SD15`` has 1.07 billion parameters."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = CLIPTokenizer.from_pretrained(WEIGHTS / "micro" / "tokenizer")
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.eos_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae, unet = AutoencoderKL(**shape["vae"]), UNet2DConditionModel(**shape["unet"])
        text = CLIPTextModel(CLIPTextConfig(**{"vocab_size": len(words), **ids, **shape["text"]}))
    scheduler = DDIMScheduler.from_pretrained(WEIGHTS / "micro" / "scheduler", prediction_type=prediction)
    parts = {"vae": vae, "unet": unet, "text_encoder": text, "tokenizer": words, "scheduler": scheduler}
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
