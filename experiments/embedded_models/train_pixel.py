"""Training of the embedded model of pixels, for developers (part of the command
``python -m experiments.embedded_models.train``)."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline
from torch import Tensor

from experiments.embedded_models import build, pictures
from udpbench.interfaces import Run
from udpbench.models.diffusion import noised, velocity
from udpbench.models.networks import initialised_by
from udpbench.optim.fit import FitSettings, fit

CROP = 32  # pixels


def train_pixel(work: Path, steps: int, run: Run) -> None:
    """An unconditional DDPM at 64 px, on what the autoencoder was trained on: the world, the world in other colours,
    photographs and dead leaves. It predicts v, as the other embedded models do.

    Every other step sees four whole pictures at all time steps, the others sixteen crops at the first quarter of them,
    which purifications use and where a few pixels tell enough: as much work, for four times as many.
    """
    with initialised_by(run.rng("weights")):
        unet = build.pixel_unet().to(memory_format=torch.channels_last)
    alpha_bar = build.pixel_scheduler().alphas_cumprod

    def loss(step: int) -> Tensor:
        rng = run.rng("pixel", step)
        x = pictures.autoencoder_batch(16, rng) * 2 - 1
        t = torch.randint(250, (16,), generator=rng)
        if step % 2:
            top, left = torch.randint(pictures.SIZE - CROP + 1, (2,), generator=rng).tolist()
            x = x[:, :, top : top + CROP, left : left + CROP]
        else:
            x, t = x[torch.randperm(16, generator=rng)[:4]], torch.randint(1000, (4,), generator=rng)
        noise = torch.randn(x.shape, generator=rng)
        noisy = noised(alpha_bar, x, t, noise).contiguous(memory_format=torch.channels_last)
        return F.mse_loss(unet(noisy, t).sample.float(), velocity(alpha_bar, x, t, noise))

    settings = FitSettings(
        steps=steps, lr=2e-3, warmup=50, decay="cosine", dtype="bf16", save_every=50, ema=0.99, weight_decay=0.01
    )
    fit(list(unet.parameters()), loss, settings, run, title="pixel", checkpoint=work / "pixel.ckpt")
    torch.save(unet.state_dict(), work / "pixel.pt")


def export_pixel(work: Path) -> None:
    """The DDPM-shaped folder, in half precision, and the log of its training."""
    unet = build.pixel_unet()
    unet.load_state_dict(torch.load(work / "pixel.pt", weights_only=True))
    DDPMPipeline(unet.half(), build.pixel_scheduler()).save_pretrained(build.WEIGHTS / "micro_pixel")
    kept = build.WEIGHTS / "logs" / "micro_pixel"
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copy(work / "pixel.log", kept)
