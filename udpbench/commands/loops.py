"""The hot loops, each beside a plain loop written straight from the equations (``python -m udpbench bench``).

Both sides of a ratio run in the same process with the same model, dtype, batch and attention kernel, in turns, each at
two lengths: the difference is what a step takes, the rest is what a call takes once. The medians of the repeats count.
Seconds are the clock's on a GPU and the processor's on a CPU, which other work on the machine changes far less.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from udpbench.attack.impress import Impress
from udpbench.commands import released
from udpbench.core.budget import Linf
from udpbench.core.folders import numbered, write_pictures
from udpbench.core.images import list_images, read
from udpbench.core.pixels import resize
from udpbench.interfaces import Owner, Run, Thief
from udpbench.models.efficientnet import load_published
from udpbench.models.features import EfficientNetLite0
from udpbench.models.latent import LatentDiffusion
from udpbench.models.sample import make_solver, sample
from udpbench.protect.photoguard import PhotoGuard
from udpbench.protect.udp import EUDP
from udpbench.task.dreambooth import DreamBooth

Loop = Callable[[], object]
PROMPT = "a photo of a sks ball"
CLASS_PROMPT = "a photo of a ball"


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
    """``steps`` image steps of EUDP on ``n`` pictures, one sample each, against a frozen surrogate."""
    x = pictures(n, model.size)
    owner = Owner(list(x), [f"{i}" for i in range(n)], [PROMPT] * n)
    method = EUDP(rounds=1, model_steps=0, image_steps=steps, lr=1e-4, batch=1, samples=1)
    unet = model.fresh_unet("copy", run.rng("bench")).requires_grad_(False)
    hidden = model.embed([PROMPT] * n).hidden

    def plain() -> Tensor:
        clean = y = x.to(run.device)
        for _ in range(steps):
            y = y.detach().requires_grad_(True)
            z = model.pipe.vae.encode((y * 2 - 1).to(model.pipe.vae.dtype)).latent_dist.mean.float()
            z = z * model.pipe.vae.config.scaling_factor
            (gradient,) = torch.autograd.grad(noise_loss(model, unet, z, hidden), y)
            y = (y + gradient.sign() / 255).clamp(clean - 8 / 255, clean + 8 / 255).clamp(0, 1)
        return y

    return lambda: method.protect(owner, Linf(eps=8), model, run), plain


def impress(model: LatentDiffusion, run: Run, n: int, steps: int) -> tuple[Loop, Loop]:
    """``steps`` iterations of IMPRESS on ``n`` pictures."""
    x, names = pictures(n, model.size), [f"{i}" for i in range(n)]
    method = Impress(iterations=steps, lr=0.01, alpha=0.1, distance_budget=0.1, start_noise=0.05, perceptual="lite1")
    distance = released.published_distance(run.device)

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


def photoguard(model: LatentDiffusion, run: Run, n: int, steps: int) -> tuple[Loop, Loop]:
    """``steps`` steps of PhotoGuard's encoder attack on ``n`` pictures."""
    x = pictures(n, model.size)
    owner = Owner(list(x), [f"{i}" for i in range(n)], [PROMPT] * n)
    method = PhotoGuard(steps=steps)

    def plain() -> Tensor:
        clean = y = x.to(run.device)
        for _ in range(steps):
            y = y.detach().requires_grad_(True)
            mean = model.pipe.vae.encode((y * 2 - 1).to(model.pipe.vae.dtype)).latent_dist.mean
            (gradient,) = torch.autograd.grad(mean.float().flatten(1).norm(dim=1).sum(), y)
            y = (y - gradient.sign() / 255).clamp(clean - 8 / 255, clean + 8 / 255).clamp(0, 1)
        return y

    return lambda: method.protect(owner, Linf(eps=8), model, run), plain


def dreambooth(model: LatentDiffusion, run: Run, n: int, steps: int, prior: bool = False) -> tuple[Loop, Loop]:
    """``steps`` steps of DreamBooth, batch ``n``, cached latents and embeddings, AdamW on float32 weights.

    ``prior``: with as many class pictures in each step, and the text encoder in training.
    """
    further = {"prior_weight": 1.0, "prior_images": n, "train_text_encoder": True} if prior else {}
    settings = {"batch": n, "pictures": 1, "sample_steps": 1, "guidance": 1.0, "save_every": 0, **further}
    task = DreamBooth(steps=steps, lr=1e-5, **settings)  # type: ignore[arg-type]
    x, prompts = pictures(2 * n if prior else n, model.size), [PROMPT] * n + [CLASS_PROMPT] * (n if prior else 0)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            source, others = Path(folder) / "train", Path(folder) / "class"
            write_pictures(source, numbered(x[:n]), [PROMPT] * n)
            if prior:
                write_pictures(others, numbered(x[n:]), [CLASS_PROMPT] * n)
            task.train(source, Path(folder) / "out", model, run, Thief(class_images=others if prior else None))

    def plain() -> None:
        unet, text = model.fresh_unet("copy", run.rng("bench")), copy.deepcopy(model.pipe.text_encoder)
        text = text.float().requires_grad_(prior)
        parameters = [*unet.parameters(), *(text.parameters() if prior else ())]
        adam = torch.optim.AdamW(parameters, lr=1e-5)
        with torch.no_grad():
            z, known = model.encode(x.to(run.device)), model.embed(prompts, text).hidden
        for _ in range(steps):
            adam.zero_grad()
            noise_loss(model, unet, z, model.embed(prompts, text).hidden if prior else known).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            adam.step()
        with tempfile.TemporaryDirectory() as folder:
            unet.save_pretrained(folder)  # both sides end with the model on disk

    return ours, plain


def dreambooth_prior(model: LatentDiffusion, run: Run, n: int, steps: int) -> tuple[Loop, Loop]:
    """``dreambooth`` with class pictures and text encoder."""
    return dreambooth(model, run, n, steps, prior=True)


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
    """EfficientNet-Lite0 features of ``n`` pictures of each of ``steps`` sizes on disk, ``n`` at a time."""
    keep = tempfile.TemporaryDirectory()
    extractor, run = EfficientNetLite0(size=released.FEATURES), replace(run, batch=n)
    source = [Path(keep.name) / "pictures"]
    sized = [picture for k in range(steps) for picture in pictures(n, model.size + k % 5)]
    write_pictures(source[0], numbered(sized))
    network = load_published("lite0").to(run.device)

    def ours() -> Tensor:
        # A new name each time: features of a finished folder are remembered.
        source.append(source[-1].rename(Path(keep.name) / f"pictures-{len(source)}"))
        return extractor.extract(source[-1], run)

    def plain() -> Tensor:
        found, paths = [], list_images(source[-1])
        with torch.inference_mode():
            for first in range(0, len(paths), n):
                read_ones = [resize(read(path)[None], extractor.size) for path in paths[first : first + n]]
                found.append(network(torch.cat(read_ones).to(run.device)))
        return torch.cat(found)

    return ours, plain


_ALL = (perturb, photoguard, impress, dreambooth, dreambooth_prior, generate, features)
LOOPS = {loop.__name__: loop for loop in _ALL}


def timed(loop: Loop, device: torch.device) -> float:
    """Seconds of one call: on a GPU, which has nothing to do before and after it, the clock's; else the processor's, of
    all threads."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    loop()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def compare(
    name: str, model: LatentDiffusion, run: Run, n: int, steps: int, repeats: int, code: Path | None = None
) -> dict[str, Any]:
    """Time one loop, its plain form and, with the folder ``code`` of clones, what others released (see
    ``commands/released.py``); in turns, at ``steps`` and at three times as many.

    ``ratio``: how many times as fast a step is as the plain one (``released_ratio``, ``equal_ratio``, ``aspl_ratio``:
    as the others); ``call_ratio`` and so on: the same of calls of ``steps`` steps. Seconds of a step (features: of
    ``n`` pictures) and of what a call takes beside its steps.
    """
    with tempfile.TemporaryDirectory() as folder:
        short, long = (_sides(name, model, run, n, length, code, Path(folder)) for length in (steps, 3 * steps))
        for loop in short.values():
            timed(loop, run.device)  # warm-up
        found: dict[str, list[tuple[float, float]]] = {side: [] for side in short}
        for side in list(short) * repeats:
            found[side].append((timed(short[side], run.device), timed(long[side], run.device)))
    row: dict[str, Any] = {"loop": name, "model": model.name, "batch": n}
    whole = {side: statistics.median(a for a, _ in pairs) for side, pairs in found.items()}
    for side, pairs in found.items():
        each = [(b - a) / (2 * steps) for a, b in pairs]
        row[f"{side}seconds_per_step"] = statistics.median(each)
        row[f"{side}seconds_per_call"] = statistics.median(a - steps * s for (a, _), s in zip(pairs, each, strict=True))
    for side in list(found)[1:]:
        called = side.removeprefix("plain_")
        row[f"{called}ratio"] = row[f"{side}seconds_per_step"] / row["seconds_per_step"]
        row[f"{called}call_ratio"] = whole[side] / whole[""]
    return row


def _sides(
    name: str, model: LatentDiffusion, run: Run, n: int, steps: int, code: Path | None, folder: Path
) -> dict[str, Loop]:
    """Ours, the plain one and the released ones, by what their numbers begin with."""
    ours, plain = LOOPS[name](model, run, n, steps)
    sides: dict[str, Loop] = {"": ours, "plain_": plain}
    if code:
        room = folder / f"{steps}"
        work = released.Work(code, model, pictures(n, model.size), (PROMPT, CLASS_PROMPT), steps, room)
        sides |= {f"{side}_": loop for side, loop in released.SIDES[name](work).items()}
    return sides
