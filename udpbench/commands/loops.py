"""The hot loops, each beside a plain loop written straight from the equations (``python -m udpbench bench``).

Both sides of a ratio run in the same process with the same model, dtype, batch and attention kernel, in turns, and
the median of the repeats counts.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from udpbench.attack.impress import Impress
from udpbench.core.budget import Linf
from udpbench.core.folders import numbered, write_pictures
from udpbench.core.images import list_images, read, resize
from udpbench.interfaces import Owner, Run, Thief
from udpbench.models.features import EfficientNetLite0
from udpbench.models.latent import LatentDiffusion
from udpbench.models.perceptual import PerceptualLite1
from udpbench.models.sample import make_solver, sample
from udpbench.protect.udp import EUDP
from udpbench.task.dreambooth import DreamBooth

Loop = Callable[[], object]
PROMPT = "a photo of a sks ball"


def pictures(n: int, size: int) -> Tensor:
    """``n`` smooth random pictures, NCHW [0,1]."""
    noise = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, (size, size), mode="bicubic").clamp(0, 1)


def noise_loss(model: LatentDiffusion, unet: Any, z: Tensor, hidden: Tensor) -> Tensor:
    """The denoising loss of latents at random times."""
    t, noise = torch.randint(1000, (len(z),), device=z.device), torch.randn_like(z)
    noisy = model.pipe.scheduler.add_noise(z, noise, t)
    return F.mse_loss(unet(noisy.to(unet.dtype), t, hidden.to(unet.dtype)).sample.float(), noise)


def perturb(model: LatentDiffusion, run: Run, n: int, steps: int) -> tuple[Loop, Loop]:
    """``steps`` image steps of EUDP on ``n`` pictures, two samples each, against a frozen surrogate."""
    x = pictures(n, model.size)
    owner = Owner(list(x), [f"{i}" for i in range(n)], [PROMPT] * n)
    method = EUDP(rounds=1, model_steps=0, image_steps=steps, lr=1e-4, batch=1, samples=2)
    unet = model.fresh_unet("copy", run.rng("bench")).requires_grad_(False)
    hidden = model.embed([PROMPT] * n).hidden.repeat_interleave(2, 0)

    def plain() -> Tensor:
        clean = y = x.to(run.device)
        for _ in range(steps):
            y = y.detach().requires_grad_(True)
            z = model.pipe.vae.encode((y * 2 - 1).to(model.pipe.vae.dtype)).latent_dist.mean.float()
            z = (z * model.pipe.vae.config.scaling_factor).repeat_interleave(2, 0)
            (gradient,) = torch.autograd.grad(noise_loss(model, unet, z, hidden), y)
            y = (y + gradient.sign() / 255).clamp(clean - 8 / 255, clean + 8 / 255).clamp(0, 1)
        return y

    return lambda: method.protect(owner, Linf(eps=8), model, run), plain


def impress(model: LatentDiffusion, run: Run, n: int, steps: int) -> tuple[Loop, Loop]:
    """``steps`` iterations of IMPRESS on ``n`` pictures."""
    x, names = pictures(n, model.size), [f"{i}" for i in range(n)]
    method = Impress(iterations=steps, lr=0.01, alpha=0.1, distance_budget=0.1, start_noise=0.05, perceptual="lite1")
    distance = PerceptualLite1().to(run.device).eval().requires_grad_(False)

    def plain() -> Tensor:
        protected = x.to(run.device) * 2 - 1
        y = (protected + 0.05 * torch.randn_like(protected)).clamp(-1, 1).requires_grad_(True)
        adam = torch.optim.Adam([y], lr=0.01, eps=1e-5)
        for _ in range(steps):
            back = model.pipe.vae(y.to(model.pipe.vae.dtype)).sample.float()
            far = distance((y + 1) / 2, (protected + 1) / 2)
            loss = n * F.mse_loss(back, y) + 0.1 * (far - 0.1).clamp(min=0).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                y.clamp_(-1, 1)
        return y

    return lambda: method.purify(list(x), names, [PROMPT] * n, model, run), plain


def dreambooth(model: LatentDiffusion, run: Run, n: int, steps: int) -> tuple[Loop, Loop]:
    """``steps`` steps of DreamBooth, batch ``n``, cached latents and embeddings, AdamW on float32 weights."""
    task = DreamBooth(steps=steps, lr=1e-5, batch=n, pictures=1, sample_steps=1, guidance=1.0, save_every=0)
    x = pictures(n, model.size)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "train"
            write_pictures(source, numbered(x), [PROMPT] * n)
            task.train(source, Path(folder) / "out", model, run, Thief())

    def plain() -> None:
        unet = model.fresh_unet("copy", run.rng("bench"))
        adam = torch.optim.AdamW(unet.parameters(), lr=1e-5)
        with torch.no_grad():
            z, hidden = model.encode(x.to(run.device)), model.embed([PROMPT] * n).hidden.float()
        for _ in range(steps):
            adam.zero_grad()
            noise_loss(model, unet, z, hidden).backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            adam.step()
        with tempfile.TemporaryDirectory() as folder:
            unet.save_pretrained(folder)  # both sides end with the model on disk

    return ours, plain


def generate(model: LatentDiffusion, run: Run, n: int, steps: int) -> tuple[Loop, Loop]:
    """``n`` pictures in ``steps`` solver steps with guidance."""

    def plain() -> object:
        pipe = type(model.pipe)(**model.pipe.components, requires_safety_checker=False)
        pipe.scheduler = make_solver("dpmpp", model.pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        side = pipe.unet.config.sample_size
        noise = torch.randn(n, pipe.unet.config.in_channels, side, side, device=run.device, dtype=pipe.unet.dtype)
        return pipe([PROMPT] * n, latents=noise, num_inference_steps=steps, guidance_scale=2.0, output_type="pt")

    return lambda: list(sample(model, [PROMPT] * n, range(n), run, steps=steps, guidance=2.0)), plain


def features(model: LatentDiffusion, run: Run, n: int, steps: int) -> tuple[Loop, Loop]:
    """EfficientNet-Lite0 features of ``n`` pictures on disk, loading the network included in ours."""
    keep = tempfile.TemporaryDirectory()
    extractor = EfficientNetLite0(size=64)
    source = [Path(keep.name) / "pictures"]
    write_pictures(source[0], numbered(pictures(n, model.size)))
    network = extractor.network(run.device)

    def ours() -> Tensor:
        # A new name each time: features of a finished folder are remembered.
        source.append(source[-1].rename(Path(keep.name) / f"pictures-{len(source)}"))
        return extractor.of(source[-1], run)

    def plain() -> Tensor:
        x = torch.stack([read(path) for path in list_images(source[-1])]).to(run.device)
        with torch.inference_mode():
            return network(resize(x, 64))

    return ours, plain


LOOPS = {loop.__name__: loop for loop in (perturb, impress, dreambooth, generate, features)}
OF_PICTURES = ("generate", "features")  # whose speed counts pictures; that of the others counts steps


def timed(loop: Loop, device: torch.device) -> float:
    """Seconds of one call; the device has nothing to do before and after it."""
    start = time.perf_counter()
    loop()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def compare(name: str, model: LatentDiffusion, run: Run, n: int, steps: int, repeats: int) -> dict[str, Any]:
    """Time one loop and its plain form in turns."""
    n = 200 if name == "features" else n  # the pictures of an arm
    ours, plain = LOOPS[name](model, run, n, steps)
    timed(ours, run.device), timed(plain, run.device)  # warm-up
    pairs = [(timed(ours, run.device), timed(plain, run.device)) for _ in range(repeats)]
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    unit, done = ("pictures", n) if name in OF_PICTURES else ("steps", steps)
    speeds = {f"{unit}_per_second": done / a, f"plain_{unit}_per_second": done / b}
    return {"loop": name, "model": model.name, "batch": n, **speeds, "ratio": b / a}
