"""Architectures of the embedded models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from udpbench.models.micro.judge import WEIGHTS  # noqa
from udpbench.world import renderer
from udpbench.world.training import pictures


@dataclass(frozen=True)
class Design:
    """One of the embedded models: the sizes of its parts, and what makes it another model than the first."""

    borrows: str = ""  # the model whose autoencoder, text encoder and tokenizer it uses
    vae_widths: tuple[int, ...] = (16, 32, 64)
    latents: int = 8  # channels
    text_width: int = 128
    unet_widths: tuple[int, ...] = (32, 64, 128)
    photographs: bool = True  # whether the autoencoder's training pictures hold crops of photographs
    world: str = "world"  # names the pretraining pictures: another name, other pictures

    @property
    def unet_channels(self) -> int:
        """Channels of the latents that the UNet sees."""
        return DESIGNS[self.borrows].unet_channels if self.borrows else self.latents

    @property
    def prompt_width(self) -> int:
        """Width of the prompt embeddings that the UNet sees."""
        return DESIGNS[self.borrows].prompt_width if self.borrows else self.text_width


DESIGNS = {
    "micro": Design(),
    # The same autoencoder and text encoder under another UNet, trained on other pictures: a grey box.
    "micro_b": Design(borrows="micro", unet_widths=(32, 64, 64), world="world of micro_b"),
    # No weights and no pictures in common, an autoencoder from another training mix: a black box.
    "micro_c": Design(
        vae_widths=(24, 32, 48),
        latents=6,
        text_width=64,
        unet_widths=(48, 64),
        photographs=False,
        world="world of micro_c",
    ),
}


def autoencoder(design: Design = DESIGNS["micro"]) -> AutoencoderKL:
    """64 px RGB to latents at 16 px and back; the first model's has 0.66 M parameters."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=design.latents,
        block_out_channels=design.vae_widths,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=pictures.SIZE,
        mid_block_add_attention=False,
    )


RARE_TOKENS = ("sks", "zwx", "ohwx", "qvl")  # words that name nothing: pretraining puts them into captions at random
MAX_TOKENS = 32


def tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges spell the words of the world, so each is one token; any other word falls apart
    into letters."""
    names = (
        *renderer.SHAPES,
        *renderer.COLORS,
        *renderer.TEXTURES,
        *renderer.SCENES,
        *RARE_TOKENS,
        "a photo of a picture style",
    )
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
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS)


def _spell(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding of ``word``: the earliest merge that applies is applied first."""
    parts = [*word[:-1], word[-1] + "</w>"]
    while pairs := [p for p in zip(parts, parts[1:], strict=False) if p in merges]:
        best = min(pairs, key=merges.index)
        i = list(zip(parts, parts[1:], strict=False)).index(best)
        parts[i : i + 2] = ["".join(best)]
    return parts


def text_encoder(
    words: CLIPTokenizer,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    inner: int = 512,
    tokens: int = MAX_TOKENS,
    vocabulary: int | None = None,
) -> CLIPTextModel:
    """A CLIP text model for the tokenizer ``words``, of random weights; as it is: the embedded model's, 0.5 M
    parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary or len(words),
            hidden_size=width,
            intermediate_size=inner,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=tokens,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.eos_token_id,
        )
    )


def unet(design: Design = DESIGNS["micro"]) -> UNet2DConditionModel:
    """16 px latents, a thin first level, cross-attention on the lower ones; the first model's has 4.4 M parameters.

    The prompt reaches the network through cross-attention and, pooled, beside the time step (as in DeepFloyd IF),
    which is learned in far fewer steps.
    """
    lower = len(design.unet_widths) - 1
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=design.unet_channels,
        out_channels=design.unet_channels,
        block_out_channels=design.unet_widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * lower),
        up_block_types=(*("CrossAttnUpBlock2D",) * lower, "UpBlock2D"),
        cross_attention_dim=design.prompt_width,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=8,
    )


def scheduler(prediction: str = "epsilon") -> DDIMScheduler:
    """Stable Diffusion's noise schedule; ``prediction`` is ``epsilon`` or ``v_prediction``."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


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
