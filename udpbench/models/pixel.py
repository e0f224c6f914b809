"""Diffusion models of pixels: any folder or hub repository shaped like a DDPM."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from udpbench.models.diffusion import Cond, Diffusion

if TYPE_CHECKING:
    from diffusers import DDPMPipeline


class PixelDiffusion(Diffusion):
    """A model that denoises pictures themselves, with nothing to tell it what to draw (Ho et al., NeurIPS 2020)."""

    capabilities: ClassVar[frozenset[str]] = frozenset({"denoise", "pixel"})
    shape: ClassVar[str] = "DDPM-shaped"
    option: ClassVar[str] = "pixel"
    parts: ClassVar[tuple[str, ...]] = ("unet", "scheduler")

    @cached_property
    def pipe(self) -> DDPMPipeline:
        """The diffusers pipeline: frozen, in evaluation mode, on ``self.device``."""
        from diffusers import DDPMPipeline

        return self.load(DDPMPipeline)

    @property
    def size(self) -> int:
        """Side in pixels of the pictures the model was made for."""
        return int(self.pipe.unet.config.sample_size)

    def encode(self, x: Tensor) -> Tensor:
        """Pictures ``x`` (NCHW [0,1]) in [-1,1], padded right and below to sides the UNet can halve."""
        return self.padded(x) * 2 - 1

    def decode(self, z: Tensor) -> Tensor:
        """Back to [0,1]."""
        return z / 2 + 0.5

    def embed(self, prompts: list[str]) -> Cond:
        """Nothing: the model takes no text."""
        return Cond(torch.zeros(len(prompts), 0, 0, device=self.device))

    def predict(self, unet: Any, noisy: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """What ``unet`` makes of N noisy pictures at time steps ``t``, float32; without the variance that some models
        predict, too."""
        return unet(noisy.to(unet.dtype), t).sample[:, : noisy.shape[1]].float()
