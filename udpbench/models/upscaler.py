"""Diffusion models that enlarge pictures: any folder or hub repository shaped like Stable Diffusion's x4 upscaler."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from udpbench.core.component import check_numbers
from udpbench.models.diffusion import Diffusion
from udpbench.models.folder import INDEX, UNUSED
from udpbench.models.headers import read_json
from udpbench.models.latent import LatentDiffusion
from udpbench.models.sample import make_solver

OLD_FACTOR = 0.08333  # of an autoencoder whose configuration is from before there was a scaling_factor, as in diffusers


class Upscaler(LatentDiffusion):
    """A latent model whose UNet sees, beside its latents, the small picture itself under some noise (Rombach et al.
    2022, section 4.4; Ho et al. 2022, "Cascaded Diffusion Models"): a latent for each of its pixels, so it enlarges by
    the autoencoder's factor."""

    shape = "Stable-Diffusion-upscaler-shaped"
    option = "sd_x4"
    pipelines = ("StableDiffusionUpscalePipeline",)
    parts = {**LatentDiffusion.parts, "low_res_scheduler": Diffusion.parts["scheduler"]}
    pipeline_options = {}
    wants_classes = True  # the level of that noise
    capabilities = frozenset({"text", "upscale"})  # type: ignore[assignment]

    @cached_property
    def pipe(self) -> Any:
        """A StableDiffusionUpscalePipeline: frozen, in evaluation mode, on ``self.device``."""
        from diffusers import AutoencoderKL

        pipe = self.load(**dict.fromkeys(UNUSED))
        # Its constructor writes the public model's factor over whatever the autoencoder's own is.
        config = AutoencoderKL.load_config(self.folder / "vae")  # type: ignore[operator]
        pipe.vae.register_to_config(scaling_factor=config.get("scaling_factor", OLD_FACTOR))
        return pipe

    def assembled(self, kind: Any, **parts: Any) -> Any:
        own = self.pipe.vae.config.scaling_factor  # which every such pipeline's constructor writes over
        pipe = super().assembled(kind, **parts)
        pipe.vae.register_to_config(scaling_factor=own)
        return pipe

    @property
    def factor(self) -> int:
        """How many times longer the sides become."""
        return self.pipe.vae_scale_factor

    def check_request(self, noise_level: int, prompts: Sequence[str]) -> None:
        """ValueError in one line if ``enlarged`` would not take this, as far as that is known of a model that is not
        loaded: a noise level beyond the model's, a prompt longer than its text encoder takes."""
        if folder := self.folder:
            most = read_json(folder / INDEX).get("max_noise_level", 350)  # diffusers' own
            check_numbers(f"model {self.name}", most=most, noise_level=noise_level)
        if tokenizer := self.tokenizer:
            tokenizer.check([], prompts)

    @torch.no_grad()
    def enlarged(
        self, x: Tensor, prompts: Sequence[str], negative: str, rngs: Sequence[torch.Generator],
        *, steps: int, guidance: float, noise_level: int, solver: str | None = None,
    ) -> Tensor:  # fmt: skip
        """N pictures (NCHW [0,1]) with sides ``factor`` times as long, in [0,1]; what is drawn for one is from its own
        generator. ``solver``: as of ``make_solver``; None: the model's own.

        ``noise_level``: time step of the noise that the model sees ``x`` under, of ``low_res_scheduler``. Sides that
        the pipeline would cut to a multiple of the autoencoder's are padded for it.
        """
        height, width = (side * self.factor for side in x.shape[-2:])
        pipe = self.pipe
        if solver:
            pipe = self.assembled(type(pipe), scheduler=make_solver(solver, pipe.scheduler.config))
        made = pipe(
            prompt=list(prompts), negative_prompt=[negative] * len(x), image=self.padded(x), generator=list(rngs),
            num_inference_steps=steps, guidance_scale=guidance, noise_level=noise_level, output_type="pt",
        ).images  # fmt: skip
        return made[..., :height, :width].float().clamp(0, 1)
