"""Training of the embedded upscaler, for developers (part of the command
``python -m experiments.embedded_models.train``)."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionUpscalePipeline, UNet2DConditionModel
from torch import Tensor

from experiments.embedded_models import build, pictures
from udpbench.core.pixels import resize
from udpbench.interfaces import Run
from udpbench.models.diffusion import noised, velocity
from udpbench.models.latent import LatentDiffusion
from udpbench.models.networks import initialised_by
from udpbench.optim.fit import FitSettings, fit
from udpbench.world import renderer

LEVELS = 350  # of the noise on small pictures, of 1,000, as of Stable Diffusion's upscaler


def train_upscaler(work: Path, steps: int, run: Run) -> None:
    """From 16 px to 64 in the latents of micro's autoencoder, told captions by its text encoder; both stay as they are.
    The UNet begins with micro_b's weights.

    It sees whole pictures of 64 px, and crops of 64 px of larger renderings, which is what it paints where a picture of
    64 px is enlarged, and natural pictures and colours of all kinds.
    """
    with initialised_by(run.rng("weights")):
        unet = build.upscaler_unet()
    lender = LatentDiffusion("pkg:micro_b", "micro_b")
    begin_with(unet, lender.pipe.unet)
    alpha_bar, small_alpha_bar = build.scheduler().alphas_cumprod, build.pixel_scheduler().alphas_cumprod

    def loss(step: int) -> Tensor:
        rng = run.rng("upscaler", step)
        x, said = enlargements(step, rng)
        with torch.no_grad():
            z, hidden = lender.moments(x)[0], lender.embed(said).hidden
        t, level = times(len(x), rng), levels(len(x), rng)
        small = resize(x, pictures.SIZE // 4) * 2 - 1
        small = noised(small_alpha_bar, small, level, torch.randn(small.shape, generator=rng))
        noise = torch.randn(z.shape, generator=rng)
        seen = torch.cat([noised(alpha_bar, z, t, noise), small], 1)
        told = unet(seen, t, hidden, class_labels=level).sample
        return F.mse_loss(told.float(), velocity(alpha_bar, z, t, noise))

    settings = FitSettings(
        steps=steps, lr=1e-3, warmup=50, decay="cosine", dtype="bf16", save_every=50, ema=0.99, weight_decay=0.01
    )
    fit(list(unet.parameters()), loss, settings, run, title="upscaler", checkpoint=work / "upscaler.ckpt")
    torch.save(unet.state_dict(), work / "upscaler.pt")


@torch.no_grad()
def begin_with(unet: UNet2DConditionModel, other: UNet2DConditionModel) -> None:
    """The weights of ``other``, which takes latents alone; those for the small picture and its noise begin at zero."""
    weights = dict(other.state_dict())
    wider = torch.zeros_like(unet.conv_in.weight)
    wider[:, : other.config.in_channels] = weights["conv_in.weight"]
    level = torch.zeros_like(unet.class_embedding.weight)
    unet.load_state_dict(weights | {"conv_in.weight": wider, "class_embedding.weight": level})


def times(n: int, rng: torch.Generator) -> Tensor:
    """Time steps of ``n`` pictures: half of them the last one, where nothing tells what is to be painted but the small
    picture, the others the more often the later.

    Drawn evenly, a batch is mostly about what micro_b can do already: 150 steps from the same weights on then leave the
    error of the latents that are told at the last time step as it is (0.138), and these bring it down to 0.104.
    """
    t = (1000 * torch.rand(n, generator=rng).sqrt()).long().clamp(max=999)
    return torch.where(torch.rand(n, generator=rng) < 0.5, 999, t)


def levels(n: int, rng: torch.Generator) -> Tensor:
    """Levels of the noise on ``n`` small pictures, low ones more often: above, less can be seen and learnt."""
    return ((LEVELS + 1) * torch.rand(n, generator=rng).square()).long().clamp(max=LEVELS)


# Of the pictures of eight steps: renderings so many times as large as is seen of them; 0: natural pictures and colours.
KINDS = (1, 1, 2, 1, 4, 1, 1, 0)


def enlargements(step: int, rng: torch.Generator, n: int = 16) -> tuple[Tensor, list[str]]:
    """``n`` pictures of 64 px, NCHW [0,1], and their captions, half of them empty."""
    larger, size = KINDS[step % len(KINDS)], pictures.SIZE
    if not larger:
        return pictures.autoencoder_batch(n, rng), [""] * n
    truth = renderer.draw(n if larger < 4 else n // 4, rng)
    x, said = renderer.render(truth, larger * size), renderer.captions(truth, rng, drop=0.25)
    each = n // len(x)
    top, left = torch.randint((larger - 1) * size + 1, (2, n), generator=rng).tolist()
    crops = [x[k // each, :, top[k] : top[k] + size, left[k] : left[k] + size] for k in range(n)]
    return torch.stack(crops), ["" if k % 2 else said[k // each] for k in range(n)]


def export_upscaler(work: Path) -> None:
    """The upscaler-shaped folder, in half precision, with the very files of micro's autoencoder, text encoder and
    tokenizer, and the log of its training. Its sampler begins at the last time step, however few steps it takes."""
    unet, lender, out = build.upscaler_unet(), LatentDiffusion("pkg:micro", "micro"), build.WEIGHTS / "micro_x4"
    unet.load_state_dict(torch.load(work / "upscaler.pt", weights_only=True))
    parts = {name: getattr(lender.pipe, name) for name in ("vae", "text_encoder", "tokenizer")}
    scheduler = build.scheduler("v_prediction")
    scheduler.register_to_config(timestep_spacing="trailing")
    StableDiffusionUpscalePipeline(
        **parts, unet=unet.half(), scheduler=scheduler, low_res_scheduler=build.pixel_scheduler(),
        max_noise_level=LEVELS,
    ).save_pretrained(out)  # fmt: skip
    for name in parts:
        shutil.rmtree(out / name)
        shutil.copytree(Path(lender.path) / name, out / name)
    kept = build.WEIGHTS / "logs" / "micro_x4"
    kept.mkdir(parents=True, exist_ok=True)
    if (work / "upscaler.log").exists():
        shutil.copy(work / "upscaler.log", kept)
