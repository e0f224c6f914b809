"""Latent diffusion models: any folder or hub repository shaped like Stable Diffusion."""

from __future__ import annotations

import copy
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from udpbench.models.diffusion import DTYPES, Cond, Diffusion, Trainable, trainable_copy
from udpbench.models.lora import LORA, Lora, add_lora, save_lora

EMBEDDING = "learned_embeds.safetensors"  # diffusers' name


class LatentDiffusion(Diffusion):
    """A model that denoises the latents of an autoencoder, told what to draw by a text."""

    shape = "Stable-Diffusion-shaped"
    option = "local"
    parts = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
    pipeline_options = {"requires_safety_checker": False}

    @cached_property
    def capabilities(self) -> frozenset[str]:
        """``latent``, ``text`` and, if the UNet takes latents and nothing beside them, ``denoise``; of a model on a
        hub, whose files are not read before they are needed, that is assumed."""
        unet, vae = (Path(self.path).expanduser() / part / "config.json" for part in ("unet", "vae"))
        if unet.is_file() and vae.is_file():
            takes, gives = (json.loads(file.read_text()) for file in (unet, vae))
            if takes.get("in_channels", 4) != gives.get("latent_channels", 4):
                return frozenset({"latent", "text"})
        return frozenset({"denoise", "latent", "text"})

    @cached_property
    def pipe(self) -> Any:
        """A StableDiffusionPipeline: frozen, in evaluation mode, on ``self.device``."""
        from diffusers import StableDiffusionPipeline

        return self.load(StableDiffusionPipeline, safety_checker=None, feature_extractor=None, **self.pipeline_options)

    def with_tuned(self, folder: Path) -> LatentDiffusion:
        """This model with what a training stage saved in ``folder``: any of ``unet``, ``text_encoder``, ``lora``,
        ``embedding``.

        If all weights of a part were trained, the model is float32: bfloat16 would round the small steps of a
        fine-tuning back to the weights it started from.
        """
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextModel

        kinds = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
        found = {name: kind.from_pretrained(folder / name) for name, kind in kinds.items() if (folder / name).is_dir()}
        dtype = torch.float32 if found else DTYPES[self.dtype]
        if dtype != DTYPES[self.dtype]:
            found |= {k: copy.deepcopy(getattr(self.pipe, k)) for k in ("vae", *kinds) if k not in found}
        if (folder / "lora").is_dir() or (folder / "embedding").is_dir():  # they are written into copies
            found |= {k: copy.deepcopy(getattr(self.pipe, k)) for k in (*kinds, "tokenizer")}
        tuned = self.having(**found)
        if (folder / "lora").is_dir():
            tuned.pipe.load_lora_weights(folder / "lora", weight_name=LORA)
        if (folder / "embedding").is_dir():
            tuned.pipe.load_textual_inversion(folder / "embedding", weight_name=EMBEDDING)
        for part in (tuned.pipe.vae, tuned.pipe.unet, tuned.pipe.text_encoder):
            part.to(self.device, dtype).requires_grad_(False).eval()
        return tuned

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
    def multiple(self) -> int:
        """Sides of pictures are padded to a multiple of this, so that every level of the UNet divides evenly."""
        return self.pipe.vae_scale_factor * super().multiple

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation of the scaled latents of pictures ``x`` (NCHW [0,1]); differentiable.

        Sides that are no multiple of ``multiple`` are padded right and below with their last pixels.
        """
        vae = self.pipe.vae
        posterior = vae.encode((self.padded(x) * 2 - 1).to(vae.dtype)).latent_dist
        scale, shift = vae.config.scaling_factor, vae.config.get("shift_factor") or 0.0
        return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale

    def encode(self, x: Tensor) -> Tensor:
        """Posterior mean of the scaled latents of pictures ``x`` (NCHW [0,1]); differentiable."""
        return self.moments(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of scaled latents, NCHW float32, about [0,1] (not clamped); differentiable."""
        vae = self.pipe.vae
        shift = vae.config.get("shift_factor") or 0.0
        return vae.decode((z / vae.config.scaling_factor + shift).to(vae.dtype)).sample.float() / 2 + 0.5

    def round_trip(self, x: Tensor) -> Tensor:
        """D(E(x)) without sampling, cropped to the size of ``x``; differentiable."""
        return self.decode(self.encode(x))[..., : x.shape[-2], : x.shape[-1]]

    def embed(self, prompts: list[str], encoder: nn.Module | None = None) -> Cond:
        """Prompt embeddings: last hidden states over the padded prompts; differentiable in ``encoder`` (None: the
        model's own). Words of several learned tokens are spelled out, as the pipeline does."""
        encoder, words = encoder or self.pipe.text_encoder, self.pipe.tokenizer
        said, most = self.pipe.maybe_convert_prompt(prompts, words), words.model_max_length
        tokens = words(said, padding="max_length", max_length=most, truncation=True, return_tensors="pt")
        return Cond(encoder(tokens.input_ids.to(self.device))[0])

    def predict(self, unet: Any, noisy: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """What ``unet`` makes of N noisy latents at time steps ``t``, float32."""
        return unet(noisy.to(unet.dtype), t, cond.hidden.to(unet.dtype)).sample.float()


def inconsistency(x: Tensor, model: LatentDiffusion) -> Tensor:
    """``mean |x - D(E(x))|^2`` of each of N pictures (NCHW [0,1]), on the [-1,1] scale, (N,); differentiable."""
    return (2 * (model.round_trip(x) - x)).square().flatten(1).mean(1)
