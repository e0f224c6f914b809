"""Latent diffusion models: any folder or hub repository shaped like Stable Diffusion."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udpbench.digest import folder_digest

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")


@dataclass(frozen=True)
class Cond:
    """Prompt embeddings of N prompts, ready for the UNet: (N, tokens, width)."""

    hidden: Tensor

    def take(self, index: Tensor | slice) -> Cond:
        """The embeddings at ``index`` only."""
        return Cond(self.hidden[index])

    def repeat(self, times: int) -> Cond:
        """Each embedding ``times`` times in a row."""
        return Cond(self.hidden.repeat_interleave(times, 0))


class LatentDiffusion:
    """A frozen latent diffusion model, cheap to name and loaded on first use.

    Pictures are NCHW float32 in [0,1] on this side; the model's own range [-1,1] and latent scaling exist only in
    here. Losses are computed in float32 whatever the model's dtype.
    """

    capabilities = frozenset({"latent", "text"})

    def __init__(
        self, path: str, name: str, revision: str | None = None, mirrors: tuple[str, ...] = (), dtype: str = "fp32"
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"model {name}: unknown dtype {dtype!r}; allowed are {', '.join(DTYPES)}")
        if path.startswith("pkg:"):  # weights that come with the package
            path = str(Path(__file__).parent / path.removeprefix("pkg:") / "weights" / "pipeline")
        self.name, self.path, self.revision, self.mirrors, self.dtype = name, path, revision, tuple(mirrors), dtype
        self.device = torch.device("cpu")

    # -- identity ------------------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, str]:
        """What names the weights in a key: digests of the parts of a local folder, or hub id and revision.

        Raises ValueError if neither a folder nor a pinned hub revision is given.
        """
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            missing = [p for p in ("model_index.json", *PARTS) if not (folder / p).exists()]
            if missing:
                raise ValueError(
                    f"model {self.name}: {folder} is no Stable-Diffusion-shaped folder: it lacks {', '.join(missing)}"
                )
            return {part: folder_digest(folder / part) for part in PARTS} | {"dtype": self.dtype}
        if self.path.count("/") != 1 or not self.revision:
            raise ValueError(
                f"model {self.name}: no folder {self.path!r}; "
                "give a Stable-Diffusion-shaped folder, or a hub id (owner/name) with its revision"
            )
        return {"hub": self.path, "revision": self.revision, "dtype": self.dtype}

    # -- loading -------------------------------------------------------------------------------------------------------

    def to(self, device: torch.device | str) -> LatentDiffusion:
        """Move the model (loading it if it was not)."""
        self.device = torch.device(device)
        self.pipe.to(self.device)
        return self

    @cached_property
    def pipe(self) -> StableDiffusionPipeline:
        """The diffusers pipeline: frozen, in evaluation mode, on ``self.device``."""
        from diffusers import StableDiffusionPipeline

        _quiet()
        for place in (self.path, *self.mirrors):
            try:
                pipe = StableDiffusionPipeline.from_pretrained(
                    str(Path(place).expanduser()) if Path(place).expanduser().is_dir() else place,
                    revision=self.revision if place == self.path else None,
                    safety_checker=None,
                    feature_extractor=None,
                    requires_safety_checker=False,
                )
                break
            except OSError as error:
                reason = str(error).strip().splitlines()[0]
        else:
            places = ", ".join((self.path, *self.mirrors))
            raise ValueError(
                f"model {self.name}: cannot be loaded from {places} ({reason}); "
                f"download it (hf download {self.path}) and say model=local model.path=DIR"
            )
        for part in (pipe.vae, pipe.unet, pipe.text_encoder):
            part.requires_grad_(False).eval()
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(self.device, DTYPES[self.dtype])

    def with_tuned(self, folder: Path) -> LatentDiffusion:
        """This model with the parts that a training stage saved in ``folder`` (``unet`` and perhaps
        ``text_encoder``)."""
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextModel

        tuned = copy.copy(self)
        parts = dict(self.pipe.components)
        dtype = DTYPES[self.dtype]
        parts["unet"] = (
            UNet2DConditionModel.from_pretrained(folder / "unet").to(self.device, dtype).requires_grad_(False).eval()
        )
        if (folder / "text_encoder").is_dir():
            encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
            parts["text_encoder"] = encoder.to(self.device, dtype).requires_grad_(False).eval()
        tuned.__dict__["pipe"] = type(self.pipe)(**parts, requires_safety_checker=False)
        tuned.pipe.set_progress_bar_config(disable=True)
        return tuned

    def fresh_unet(self, init: str, rng: torch.Generator) -> UNet2DConditionModel:
        """A trainable float32 copy of the UNet (``init="copy"``), or one of the same shape with fresh weights
        (``init="random"``)."""
        if init == "copy":
            return copy.deepcopy(self.pipe.unet).float().requires_grad_(True).train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=rng)))
            unet = type(self.pipe.unet).from_config(self.pipe.unet.config)
        return unet.to(self.device).train()

    # -- facts ---------------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Side in pixels of the pictures the model was made for."""
        return int(self.pipe.unet.config.sample_size) * self.pipe.vae_scale_factor

    @cached_property
    def alpha_bar(self) -> Tensor:
        """Cumulative product of 1 - beta of the forward process, (T,) float32 on the CPU."""
        return self.pipe.scheduler.alphas_cumprod.float().cpu()

    @property
    def prediction(self) -> str:
        """``epsilon`` or ``v_prediction``."""
        return self.pipe.scheduler.config.prediction_type

    # -- pictures and latents ------------------------------------------------------------------------------------------

    @property
    def multiple(self) -> int:
        """Sides of pictures are padded to a multiple of this, so that every level of the UNet divides evenly."""
        return self.pipe.vae_scale_factor * 2 ** (len(self.pipe.unet.config.block_out_channels) - 1)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation of the scaled latents of pictures ``x`` (NCHW [0,1]); differentiable.

        Sides that are no multiple of ``multiple`` are padded right and below with their last pixels.
        """
        vae = self.pipe.vae
        pad = [-side % self.multiple for side in (x.shape[-1], x.shape[-2])]
        if any(pad):
            x = F.pad(x, (0, pad[0], 0, pad[1]), mode="replicate")
        posterior = vae.encode((x * 2 - 1).to(vae.dtype)).latent_dist
        scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
        return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale

    def encode(self, x: Tensor) -> Tensor:
        """Posterior mean of the scaled latents of pictures ``x`` (NCHW [0,1]); differentiable."""
        return self.moments(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of scaled latents, NCHW float32, about [0,1] (not clamped); differentiable."""
        vae = self.pipe.vae
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return vae.decode((z / vae.config.scaling_factor + shift).to(vae.dtype)).sample.float() / 2 + 0.5

    def round_trip(self, x: Tensor) -> Tensor:
        """D(E(x)) without sampling, cropped to the size of ``x``; differentiable."""
        return self.decode(self.encode(x))[..., : x.shape[-2], : x.shape[-1]]

    def embed(self, prompts: list[str], encoder: nn.Module | None = None) -> Cond:
        """Prompt embeddings: last hidden states over the padded prompts; differentiable in ``encoder`` (None: the
        model's own)."""
        encoder, words = encoder or self.pipe.text_encoder, self.pipe.tokenizer
        tokens = words(
            prompts, padding="max_length", max_length=words.model_max_length, truncation=True, return_tensors="pt"
        )
        return Cond(encoder(tokens.input_ids.to(self.device))[0])

    # -- the denoising loss --------------------------------------------------------------------------------------------

    def noised(self, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """``sqrt(alpha_bar_t) z + sqrt(1 - alpha_bar_t) noise`` (Ho et al. 2020, eq. 4)."""
        a = self.alpha_bar.to(z.device)[t].view(-1, 1, 1, 1)
        return a.sqrt() * z + (1 - a).sqrt() * noise

    def loss(self, z: Tensor, cond: Cond, t: Tensor, noise: Tensor, unet: UNet2DConditionModel | None = None) -> Tensor:
        """Denoising loss of each of N latents: mean squared error of the model's prediction (Ho et al.

        2020, eq. 14).         z, noise: (N, C, h, w) scaled latents and standard normal noise; t: (N,) integer time
        steps. The target is the noise, or the         velocity for v-prediction models. ``unet`` may be another one
        than the model's own (a surrogate in training).
        """
        unet = unet or self.pipe.unet
        told = unet(self.noised(z, t, noise).to(unet.dtype), t, cond.hidden.to(unet.dtype)).sample.float()
        target = noise
        if self.prediction == "v_prediction":
            a = self.alpha_bar.to(z.device)[t].view(-1, 1, 1, 1)
            target = a.sqrt() * noise - (1 - a).sqrt() * z
        return (told - target).square().flatten(1).mean(1)


def _quiet() -> None:
    """The libraries' own progress bars and warnings would run into ours."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
