"""Pipelines with random weights, small enough for a test to train. They draw nothing: they only have the right shape."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, StableDiffusionUpscalePipeline, UNet2DModel
from safetensors.torch import load_file, save_file

from udpbench.models.perceptual import Perceptual
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


def save_tiny_upscaler(folder: Path, seed: int = 0) -> Path:
    """Write an upscaler-shaped pipeline to ``folder``, of twice the sides: its autoencoder halves them."""
    unet = {**TINY["unet"], "in_channels": 7, "num_class_embeds": 1000}
    parts = random_pipeline({**TINY, "unet": unet}, seed, "v_prediction").components
    pipe = StableDiffusionUpscalePipeline(
        **{name: parts[name] for name in ("vae", "unet", "text_encoder", "tokenizer", "scheduler")},
        low_res_scheduler=DDPMScheduler(), max_noise_level=350,
    )  # fmt: skip
    pipe.vae.register_to_config(scaling_factor=0.5)
    pipe.save_pretrained(folder)
    return folder


class SquaredDistance(Perceptual):
    """Stands for LPIPS: mean square of the difference, (N,), differentiable, on [0,1]."""

    def maps(self, x):
        return [x]

    def between(self, ours, theirs):
        return (ours[0] - theirs[0]).square().flatten(1).mean(1)


# Parts of names, in diffusers' layout and in the original one; of a UNet and an autoencoder of two levels.
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0", "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0", "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    **{f"up_blocks.0.{part}.{j}": f"output_blocks.{j}.{k}" for j in (0, 1) for k, part in enumerate(("resnets", "attentions"))},
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    **{f"up_blocks.1.resnets.{j}": f"output_blocks.{2 + j}.0" for j in (0, 1)},
}  # fmt: skip
VAE = {
    r"down_blocks\.(\d)\.resnets\.": r"down.\1.block.", r"down_blocks\.(\d)\.downsamplers\.0": r"down.\1.downsample",
    r"up_blocks\.0\.resnets\.": "up.1.block.", r"up_blocks\.1\.resnets\.": "up.0.block.",
    r"up_blocks\.0\.upsamplers\.0": "up.1.upsample", r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2", "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut",
}  # fmt: skip


def save_original(folder: Path, file: Path) -> Path:
    """Write the weights of the tiny pipeline in ``folder`` as one checkpoint in Stable Diffusion's original layout."""

    def unet(key: str) -> str:
        old = max((part for part in UNET if key.startswith(f"{part}.")), key=len)
        rest = key.removeprefix(old)
        if "resnets" in old:
            name = rest.split(".")[1]
            rest = rest.replace(name, RESNET[name])
        return f"model.diffusion_model.{UNET[old]}{rest}"

    def vae(key: str) -> str:
        for old, new in VAE.items():
            key = re.sub(old, new, key)
        return f"first_stage_model.{key}"

    def text(key: str) -> str:
        return f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"

    whole = {}
    for part, rename in {"unet": unet, "vae": vae, "text_encoder": text}.items():
        (weights,) = (folder / part).glob("*.safetensors")
        whole |= {rename(key): value for key, value in load_file(weights).items()}
    if file.suffix == ".ckpt":
        torch.save({"state_dict": whole, "global_step": 1}, file)
    else:
        save_file(whole, file)
    return file
