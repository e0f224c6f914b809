"""Generation: prompts and seeds in, pictures out, one generator per picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from udpbench.core.images import at_once
from udpbench.interfaces import Run
from udpbench.models.latent import LatentDiffusion
from udpbench.models.networks import dtype_of
from udpbench.models.pixel import PixelDiffusion

SOLVERS = ("dpmpp", "ddim")
PIXEL_SOLVERS = ("ddpm", "ddim", "dpmpp")
# What makes diffusers' solver DPM-Solver++(2M): a folder's own scheduler may be another of its kind, even one that
# draws noise, or space its steps in a way that excludes Karras's.
DPMPP_2M = {
    "algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "final_sigmas_type": "zero",
    "use_exponential_sigmas": False, "use_beta_sigmas": False, "use_lu_lambdas": False,
}  # fmt: skip


def sample(
    model: LatentDiffusion, prompts: Sequence[str], keys: Sequence[object], run: Run,
    *, steps: int, guidance: float, solver: str = "dpmpp", further: dict[str, Any] | None = None,
) -> Iterator[Tensor]:  # fmt: skip
    """Yield pictures, (n, 3, H, W) float32 [0,1], ``at_once`` of ``run.batch``: one per prompt, in order.

    Picture ``i`` starts from noise of its own generator ``run.rng("sample", keys[i])``, so neither batch size nor the
    other prompts change what it shows. Both solvers are deterministic after that: DPM-Solver++(2M) (Lu et al. 2022)
    and DDIM (Song et al. 2021, eta 0). ``further``: other arguments of the pipeline, such as a negative prompt.
    """
    pipe = model.assembled(type(model.pipe), scheduler=make_solver(solver, model.pipe.scheduler.config))
    channels, side = pipe.unet.config.in_channels, pipe.unet.config.sample_size
    n = at_once(run.batch, model.size, model.size)
    for first in range(0, len(prompts), n):
        part = slice(first, first + n)
        noise = torch.stack([torch.randn(channels, side, side, generator=run.rng("sample", k)) for k in keys[part]])
        settings = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "pt"}
        for name, value in (further or {}).items():  # a text stands for the same text for each picture
            settings[name] = [value] * len(noise) if isinstance(value, str) else value
        latents = noise.to(model.device, dtype_of(pipe.unet))
        with torch.inference_mode():
            made = pipe(prompt=list(prompts[part]), latents=latents, **settings).images
        yield made.float().cpu()


def sample_pixels(
    model: PixelDiffusion, keys: Sequence[object], run: Run, *, steps: int, solver: str = "ddpm"
) -> Iterator[Tensor]:
    """Yield pictures of a model without text: as ``sample``, one per key.

    ``ddpm`` is ancestral sampling (Ho et al. 2020, algorithm 2), over ``steps`` of the T time steps; the others are
    deterministic. All noise of a picture is from its own generator ``run.rng("sample", key)``.
    """
    scheduler, unet = make_solver(solver, model.pipe.scheduler.config), model.pipe.unet
    shape = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    n = at_once(run.batch, model.size, model.size)
    for first in range(0, len(keys), n):
        rngs = [run.rng("sample", key) for key in keys[first : first + n]]
        x = torch.stack([torch.randn(shape, generator=g) for g in rngs]).to(model.device)
        scheduler.set_timesteps(steps)
        with torch.inference_mode():
            for t in scheduler.timesteps:
                output = unet(x.to(dtype_of(unet)), t).sample[:, : x.shape[1]].float()
                x = scheduler.step(output, t, x, generator=rngs).prev_sample
            yield model.decode(x).clamp(0, 1).cpu()


def editing_pipeline(model: LatentDiffusion, kind: type, solver: str, **parts: Any) -> Any:
    """A diffusers pipeline that starts from pictures, of class ``kind``, of the model's parts or others in their place.

    Latents are not bounded, whatever the folder's scheduler says or leaves to DDIM's default: diffusers' img2img sees
    to that itself, its inpainting does not.
    """
    scheduler = make_solver(solver, model.pipe.scheduler.config, karras=False)
    scheduler.register_to_config(clip_sample=False)
    return model.assembled(kind, scheduler=scheduler, **parts)


def make_solver(name: str, config: dict, karras: bool = True) -> Any:
    """A diffusers scheduler that samples the model whose own scheduler has ``config``: of that come the noise schedule,
    the prediction and where time steps begin, not the solver.

    ``karras``: DPM-Solver++ spaces its steps as Karras et al. (2022) do; not where a fraction of the steps must be
    that fraction of the schedule.

    Raises ValueError on an unknown name.
    """
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

    if name == "dpmpp":
        return DPMSolverMultistepScheduler.from_config(config, **DPMPP_2M, use_karras_sigmas=karras)
    if name == "ddim":
        return DDIMScheduler.from_config(config)
    if name == "ddpm":  # a variance that the model predicts, too, is not used: the smaller fixed one is
        fixed = {"variance_type": "fixed_small"} if str(config.get("variance_type")).startswith("learned") else {}
        return DDPMScheduler.from_config(config, **fixed)
    raise ValueError(f"solver: unknown name {name!r}; allowed are {', '.join(PIXEL_SOLVERS)}")
