"""Generation: prompts and seeds in, pictures out, one generator per picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from udpbench.types import Run

if TYPE_CHECKING:
    from udpbench.models.latent import LatentDiffusion

SOLVERS = ("dpmpp", "ddim")


def sample(
    model: LatentDiffusion,
    prompts: Sequence[str],
    keys: Sequence[object],
    run: Run,
    *,
    steps: int,
    guidance: float,
    solver: str = "dpmpp",
    negative_prompt: str = "",
) -> Iterator[Tensor]:
    """Yield pictures, (n, 3, H, W) float32 [0,1] with n <= ``run.batch``: one per prompt, in order.

    Picture ``i`` starts from noise of its own generator ``run.rng("sample", keys[i])``, so neither batch size nor the
    other prompts change what it shows. Both solvers are deterministic after that: DPM-Solver++(2M) (Lu et al. 2022)
    and DDIM (Song et al. 2021, eta 0).
    """
    pipe = type(model.pipe)(
        **{**model.pipe.components, "scheduler": make_solver(solver, model.pipe.scheduler.config)},
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    channels, side = pipe.unet.config.in_channels, pipe.unet.config.sample_size
    for first in range(0, len(prompts), run.batch):
        part = slice(first, first + run.batch)
        noise = torch.stack([torch.randn(channels, side, side, generator=run.rng("sample", k)) for k in keys[part]])
        with torch.inference_mode():
            made = pipe(
                prompt=list(prompts[part]),
                negative_prompt=[negative_prompt] * len(prompts[part]),
                latents=noise.to(model.device, pipe.unet.dtype),
                num_inference_steps=steps,
                guidance_scale=guidance,
                output_type="pt",
            ).images
        yield made.float().cpu()


def make_solver(name: str, config: dict) -> object:
    """A diffusers scheduler that samples the model whose training scheduler has ``config``.

    Raises ValueError on an unknown name.
    """
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    if name == "dpmpp":
        return DPMSolverMultistepScheduler.from_config(config, final_sigmas_type="zero", use_karras_sigmas=True)
    if name == "ddim":
        return DDIMScheduler.from_config(config)
    raise ValueError(f"solver: unknown name {name!r}; allowed are {', '.join(SOLVERS)}")
