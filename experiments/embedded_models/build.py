"""Architectures of the embedded models, for those who train them anew: the config.json files beside their weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from udpbench.models.micro import judge
from udpbench.world import renderer

WEIGHTS = judge.WEIGHTS  # where train.py writes


@dataclass(frozen=True)
class Design:
    """How one of the embedded models is trained, beside its architecture."""

    borrows: str = ""  # the model whose autoencoder, text encoder and tokenizer it uses
    photographs: bool = True  # whether the autoencoder's training pictures hold crops of photographs
    world: str = "world"  # names the pretraining pictures: another name, other pictures


DESIGNS = {
    "micro": Design(),
    # The same autoencoder and text encoder under another UNet, trained on other pictures: a grey box.
    "micro_b": Design(borrows="micro", world="world of micro_b"),
    # No weights and no pictures in common, an autoencoder from another training mix: a black box.
    "micro_c": Design(photographs=False, world="world of micro_c"),
}


def _config(model: str, part: str) -> dict[str, Any]:
    """Of a part of an embedded model as it was exported."""
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    return json.loads((judge.WEIGHTS / model / part / name).read_text(encoding="utf-8"))


def autoencoder(model: str) -> AutoencoderKL:
    """64 px RGB to latents at 16 px and back, of random weights; micro's has 0.66 M parameters."""
    return AutoencoderKL.from_config(_config(model, "vae"))


def text_encoder(model: str) -> CLIPTextModel:
    """A CLIP text model of random float32 weights; micro's has 0.5 M parameters."""
    return CLIPTextModel(CLIPTextConfig(**_config(model, "text_encoder") | {"dtype": "float32"}))


def unet(model: str) -> UNet2DConditionModel:
    """16 px latents, a thin first level, cross-attention on the lower ones, of random weights; micro's has 4.4 M
    parameters.

    The prompt reaches the network through cross-attention and, pooled, beside the time step (as in DeepFloyd IF),
    which is learned in far fewer steps.
    """
    return UNet2DConditionModel.from_config(_config(model, "unet"))


def scheduler(prediction: str = "epsilon") -> DDIMScheduler:
    """Stable Diffusion's noise schedule; ``prediction`` is ``epsilon`` or ``v_prediction``."""
    return DDIMScheduler.from_config(_config("micro", "scheduler"), prediction_type=prediction)


RARE_TOKENS = ("sks", "zwx", "ohwx", "qvl")  # words that name nothing: pretraining puts them into captions at random
MAX_TOKENS = 32


def tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges spell the words of the world, so each is one token; any other word falls apart
    into letters."""
    named = (renderer.SHAPES, renderer.COLORS, renderer.TEXTURES, renderer.SCENES, RARE_TOKENS)
    names = [*sum(named, ()), "a photo of a picture style"]
    words = sorted({w for name in names for w in name.split()})
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    vocabulary = [*letters, *(c + "</w>" for c in letters)]
    merges: list[tuple[str, str]] = []
    for word in words:
        # Merges of earlier words may apply first: what they leave is joined by new, later merges.
        parts = _spell(word, merges)
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            vocabulary.append(parts[0])
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocabulary)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n", encoding="utf-8")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS)


def _spell(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding of ``word``: the earliest merge that applies is applied first."""
    parts = [*word[:-1], word[-1] + "</w>"]
    while pairs := [p for p in zip(parts, parts[1:], strict=False) if p in merges]:
        best = min(pairs, key=merges.index)
        i = list(zip(parts, parts[1:], strict=False)).index(best)
        parts[i : i + 2] = ["".join(best)]
    return parts


def assemble(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    words: CLIPTokenizer,
    prediction: str = "epsilon",
) -> StableDiffusionPipeline:
    """The parts as one pipeline, with Stable Diffusion's noise schedule."""
    return StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text,
        tokenizer=words,
        scheduler=scheduler(prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def pixel_unet() -> UNet2DModel:
    """64 px pictures, thin levels, attention on the lowest, of random weights: 1.8 M parameters."""
    return UNet2DModel.from_config(_config("micro_pixel", "unet"))


def pixel_scheduler() -> DDPMScheduler:
    """DDPM's linear noise schedule of 1,000 steps; the network predicts v."""
    return DDPMScheduler.from_config(_config("micro_pixel", "scheduler"))


def upscaler_unet() -> UNet2DConditionModel:
    """micro_b's UNet, beside its latents told the small picture and the level of its noise; 2 M parameters, those that
    are new at random."""
    return UNet2DConditionModel.from_config(_config("micro_x4", "unet"))
