"""Latent diffusion models: any folder or hub repository shaped like Stable Diffusion."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from udpbench.core.memory import queued
from udpbench.models.diffusion import Cond, Diffusion, Trainable
from udpbench.models.folder import UNUSED
from udpbench.models.headers import read_json
from udpbench.models.lora import LORA, Lora, add_lora, save_lora
from udpbench.models.networks import dtype_of, sharing_copy, trainable_copy
from udpbench.models.pretrained import DTYPES
from udpbench.models.strips import sparingly
from udpbench.models.tokenizer import Tokenizer, read_tokenizer

MASKED_CHANNELS = 9  # of an inpainting UNet: its latents, a mask, the masked picture's latents
EMBEDDING = "learned_embeds.safetensors"  # diffusers' name


class LatentDiffusion(Diffusion):
    """A model that denoises the latents of an autoencoder, conditioned on a text."""

    shape = "Stable-Diffusion-shaped"
    option = "local"
    pipelines = tuple(f"StableDiffusion{kind}Pipeline" for kind in ("", "Img2Img", "Inpaint"))
    parts = {
        "vae": ("diffusers.AutoencoderKL",),
        "unet": ("diffusers.UNet2DConditionModel",),
        "text_encoder": ("transformers.CLIPTextModel",),
        "tokenizer": ("transformers.CLIPTokenizer", "transformers.CLIPTokenizerFast"),
        **Diffusion.parts,
    }
    pipeline_options = {"requires_safety_checker": False}

    @cached_property
    def capabilities(self) -> frozenset[str]:
        """``latent``, ``text`` and, by what its UNet takes, ``denoise`` and ``inpaint`` (latents and nothing beside
        them) or ``inpaint`` (a mask and the masked picture, too); of a model on a hub, whose files are not read before
        they are needed, the former is assumed."""
        offered = {"latent", "text"}
        if not (folder := self.folder):
            return frozenset(offered | {"denoise", "inpaint"})
        takes, gives = (read_json(folder / part / "config.json") for part in ("unet", "vae"))
        if (channels := takes.get("in_channels", 4)) == gives.get("latent_channels", 4):
            return frozenset(offered | {"denoise", "inpaint"})
        return frozenset(offered | ({"inpaint"} if channels == MASKED_CHANNELS else set()))

    @property
    def takes_masks(self) -> bool:
        """Whether the UNet is given a mask and the masked picture's latents beside what it denoises."""
        return bool(self.pipe.unet.config.in_channels != self.pipe.vae.config.latent_channels)

    @classmethod
    def unsupported(cls, configs: Mapping[str, Any]) -> Iterator[str]:
        yield from super().unsupported(configs)
        unet, vae, text = configs["unet"], configs["vae"], configs["text_encoder"]
        if unet.addition_embed_type not in (None, "text"):
            kind = f"{unet.addition_embed_type!r} (as SDXL has)"
            yield f"its UNet has an addition_embed_type {kind}, which is not supported"
        if unet.encoder_hid_dim_type not in (None, "text_proj"):
            yield f"its UNet has an encoder_hid_dim_type {unet.encoder_hid_dim_type!r}, which is not supported"
        if unet.time_cond_proj_dim is not None:  # its pipelines would ignore guidance and negative prompts
            yield "its UNet has a time_cond_proj_dim (guidance was distilled into it), which is not supported"
        if unet.out_channels != vae.latent_channels:
            gives = f"{unet.out_channels} channels for {vae.latent_channels} of the latents"
            yield f"its UNet predicts {gives}; a learned variance is not supported"
        elif str(variance := configs["scheduler"].get("variance_type")).startswith("learned"):
            yield f"its scheduler has the variance_type {variance!r}; a learned variance is not supported"
        if not (isinstance(scale := vae.scaling_factor, int | float) and 0 < scale < inf):
            yield f"its autoencoder's scaling_factor must be a number above 0, it is {scale!r}"
        if vae.shift_factor or vae.latents_mean or vae.latents_std:
            yield "its autoencoder shifts its latents (shift_factor, latents_mean), which is not supported"
        reads = unet.encoder_hid_dim or unet.cross_attention_dim
        if isinstance(reads, int) and reads != text.hidden_size:
            yield f"its UNet reads texts of width {reads}, its text encoder writes {text.hidden_size}"

    @cached_property
    def pipe(self) -> Any:
        """A StableDiffusionPipeline: frozen, in evaluation mode, on ``self.device``."""
        pipe = self.load(**dict.fromkeys(UNUSED), **self.pipeline_options)
        sparingly(pipe.vae)
        return pipe

    @property
    def networks(self) -> list[nn.Module]:
        return [self.pipe.unet, self.pipe.vae.encoder, self.pipe.vae.decoder]

    @property
    def tokenizer(self) -> Tokenizer | None:
        if "pipe" in vars(self):
            return Tokenizer(self.pipe.tokenizer)
        return read_tokenizer(folder, self.embedded) if (folder := self.folder) else None

    def with_tuned(self, folder: Path) -> LatentDiffusion:
        """This model with what a training stage saved in ``folder``: any of ``vae``, ``unet``, ``text_encoder``,
        ``lora``, ``embedding``.

        If all weights of a part were trained, the model is float32: bfloat16 would round the small steps of a
        fine-tuning back to the weights it started from.
        """
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel

        kinds = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
        found = {name: kind.from_pretrained(folder / name) for name, kind in kinds.items() if (folder / name).is_dir()}
        dtype = torch.float32 if found else DTYPES[self.dtype]
        if dtype != DTYPES[self.dtype]:
            found |= {k: copy.deepcopy(getattr(self.pipe, k)) for k in kinds if k not in found}
        if (folder / "lora").is_dir() and "unet" not in found:  # additions are put into a copy
            found["unet"] = sharing_copy(self.pipe.unet)
        if (folder / "embedding").is_dir():
            written = [k for k in ("text_encoder", "tokenizer") if k not in found]
            found |= {k: copy.deepcopy(getattr(self.pipe, k)) for k in written}
        tuned = self.having(**found)
        if (folder / "lora").is_dir():
            tuned.pipe.load_lora_weights(folder / "lora", weight_name=LORA)
        if (folder / "embedding").is_dir():
            tuned.pipe.load_textual_inversion(folder / "embedding", weight_name=EMBEDDING)
        for part in (tuned.pipe.vae, tuned.pipe.unet, tuned.pipe.text_encoder):
            part.to(self.device, dtype).requires_grad_(False).eval()
        return tuned

    def parts_unlike(self, other: LatentDiffusion) -> dict[str, Any]:
        """Name -> what of autoencoder, UNet and text encoder has other weights than in ``other``."""
        mine = {name: getattr(self.pipe, name) for name in ("vae", "unet", "text_encoder")}
        return {name: part for name, part in mine.items() if not _same_weights(part, getattr(other.pipe, name))}

    def trainable(
        self,
        rng: torch.Generator,
        init: str = "copy",
        *,
        text_encoder: bool = False,
        lora: Lora | None = None,
        gradient_checkpointing: bool = False,
    ) -> Trainable:
        """The model with a trainable UNet, or with low-rank additions to its own (``lora``), and with
        ``text_encoder`` a trainable text encoder; ``gradient_checkpointing``: less memory, more time."""
        parts: dict[str, Any] = {"unet": add_lora(self.pipe.unet, lora, rng) if lora else self.fresh_unet(init, rng)}
        if gradient_checkpointing:
            parts["unet"].enable_gradient_checkpointing()
        if text_encoder:
            parts["text_encoder"] = trainable_copy(self.pipe.text_encoder)
            if gradient_checkpointing:
                with warnings.catch_warnings(action="ignore"):  # newer versions call it activation_checkpointing_enable
                    parts["text_encoder"].gradient_checkpointing_enable()

        def save(folder: Path) -> None:
            if lora:
                save_lora(parts["unet"], lora, folder / "lora")
            for name, module in parts.items():
                if not (lora and name == "unet"):
                    module.save_pretrained(folder / name)

        weights = [p for module in parts.values() for p in module.parameters() if p.requires_grad]
        return Trainable(self.having(**parts), weights, save, text=text_encoder)

    @property
    def size(self) -> int:
        """Side in pixels of the pictures the model was made for."""
        return int(self.pipe.unet.config.sample_size) * self.pipe.vae_scale_factor

    @property
    def known_size(self) -> int | None:  # type: ignore[override]  # read when asked
        """``size``, read without the model; None: it is not on this machine yet, or does not say."""
        if not (folder := self.folder):
            return None
        unet, vae = (read_json(folder / part / "config.json") for part in ("unet", "vae"))
        side = unet.get("sample_size")
        return side * 2 ** (len(vae.get("block_out_channels", [64])) - 1) if isinstance(side, int) else None

    @property
    def multiple(self) -> int:
        """Pixels that a latent stands for in height and width; the UNet takes latents of any size."""
        return self.pipe.vae_scale_factor

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation of the scaled latents of pictures ``x`` (NCHW [0,1]); differentiable.

        There is a latent for every ``multiple`` pixels, also for the last ones of a side that is no multiple, which are
        padded with the last pixel: latents without any pixel of the picture there are none.
        """
        vae = self.pipe.vae
        posterior = vae.encode((self.padded(x) * 2 - 1).to(dtype_of(vae))).latent_dist
        scale = vae.config.scaling_factor
        return posterior.mean.float() * scale, posterior.std.float() * scale

    def encode(self, x: Tensor) -> Tensor:
        """Posterior mean of the scaled latents of pictures ``x`` (NCHW [0,1]); differentiable."""
        return self.moments(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of scaled latents, NCHW float32, about [0,1] (not clamped); differentiable."""
        vae = self.pipe.vae
        return vae.decode((z / vae.config.scaling_factor).to(dtype_of(vae))).sample.float() / 2 + 0.5

    def round_trip(self, x: Tensor) -> Tensor:
        """D(E(x)) without sampling, cropped to the size of ``x``; differentiable."""
        return self.decode(self.encode(x))[..., : x.shape[-2], : x.shape[-1]]

    def embed(self, prompts: list[str], encoder: nn.Module | None = None) -> Cond:
        """Prompt embeddings: last hidden states over the padded prompts; differentiable in ``encoder`` (None: the
        model's own). Words of several learned tokens are spelled out, as the pipeline does."""
        encoder, tokenizer = encoder or self.pipe.text_encoder, self.pipe.tokenizer
        said, most = self.pipe.maybe_convert_prompt(prompts, tokenizer), tokenizer.model_max_length
        tokens = tokenizer(said, padding="max_length", max_length=most, truncation=True, return_tensors="pt")
        return Cond(encoder(queued(tokens.input_ids, self.device))[0])

    def predict(self, noisy: Tensor, t: Tensor, cond: Cond) -> Tensor:
        unet = self.pipe.unet
        dtype = dtype_of(unet)
        return unet(noisy.to(dtype), t, cond.hidden.to(dtype)).sample.float()


def _same_weights(one: nn.Module, two: nn.Module) -> bool:
    ours, theirs = one.state_dict(), two.state_dict()
    return one is two or (ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours))


def inconsistency(x: Tensor, model: LatentDiffusion) -> Tensor:
    """``mean |x - D(E(x))|^2`` of each of N pictures (NCHW [0,1]), on the [-1,1] scale, (N,); differentiable."""
    return (2 * (model.round_trip(x) - x)).square().flatten(1).mean(1)
