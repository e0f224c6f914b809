"""Train the embedded models: ``python -m experiments.embedded_models.train WHAT``.

WHAT: vae, judge, style_judge, unet, pixel, upscaler, export, measure.

For developers of the embedded models: users get the weights. Run in this order, the six commands rebuild
``weights/micro`` and the judges; with ``--model micro_b`` (which borrows micro's autoencoder and text encoder) or
``--model micro_c``, vae, unet, export and measure rebuild that model; with ``--model micro_pixel``, pixel, export and
measure; with ``--model micro_x4``, upscaler, export and measure. Each training keeps a checkpoint in ``--work``
and goes on from it when the same command is given again. Nothing is read but the renderer and pictures that
scikit-learn and scikit-image ship.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from experiments.embedded_models import build, pictures
from experiments.embedded_models.measure import (
    measure_judge,
    measure_pixel,
    measure_prompts,
    measure_style_judge,
    measure_upscaler,
    measure_vae,
)
from experiments.embedded_models.train_judge import train_judge, train_style_judge
from experiments.embedded_models.train_pixel import export_pixel, train_pixel
from experiments.embedded_models.train_upscaler import export_upscaler, train_upscaler
from udpbench.interfaces import Log, Run
from udpbench.models.diffusion import noised, velocity
from udpbench.models.latent import LatentDiffusion
from udpbench.models.micro.judge import Judge, load_judge
from udpbench.models.networks import initialised_by
from udpbench.models.pixel import PixelDiffusion
from udpbench.models.upscaler import Upscaler
from udpbench.optim.fit import FitSettings, fit
from udpbench.world import renderer

SEED = 20261122
BATCH = 64
PICTURES = 32768  # of the pretraining world that the UNet sees
NORMALISED_BY = 1024  # pictures of it, by whose latents those of the autoencoder are normalised
TRAININGS = ("vae", "judge", "style_judge", "unet", "pixel", "upscaler")
PREDICTION = "v_prediction"
# The models that are no pipelines for text alone: their one training, and what writes them.
OTHERS = {"micro_pixel": ("pixel", export_pixel), "micro_x4": ("upscaler", export_upscaler)}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # of the UNet's training, the longest


class Lines(Log):
    """A line now and then, to the log file that is kept beside the weights."""

    def __init__(self, path: Path, every: int = 100) -> None:
        self.path, self.every, self.start = path, every, time.time()
        self.sum: Tensor | float = 0.0

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "it") -> Iterator:
        yield lambda n: None

    def scalar(self, name: str, value: Tensor | float, step: int) -> None:
        self.sum = self.sum + value
        if (step + 1) % self.every == 0:
            self.say(
                f"{name} step {step + 1} mean {float(self.sum) / self.every:.5f} seconds {time.time() - self.start:.0f}"
            )
            self.sum = 0.0

    def say(self, text: str) -> None:
        print(text, flush=True)
        with self.path.open("a", encoding="utf-8") as f:
            f.write(text + "\n")


def reconstruction_loss(got: Tensor, want: Tensor) -> Tensor:
    """L1 + L1 of the gradients + MSE, in model range."""
    l1 = (got - want).abs().mean()
    dx = (got.diff(dim=-1) - want.diff(dim=-1)).abs().mean()
    dy = (got.diff(dim=-2) - want.diff(dim=-2)).abs().mean()
    return l1 + 0.5 * (dx + dy) + 2 * F.mse_loss(got, want)


def train_vae(work: Path, steps: int, run: Run, model: str) -> None:
    """The autoencoder, on the world, on the world in other colours, and on natural pictures; latents are normalised at
    the end."""
    design = build.DESIGNS[model]
    with initialised_by(run.rng("weights")):
        vae = build.autoencoder(model)

    def loss(step: int) -> Tensor:
        rng = run.rng("vae", step)
        x = pictures.autoencoder_batch(16, rng, design.photographs) * 2 - 1
        posterior = vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=rng)
        return reconstruction_loss(vae.decode(z).sample.float(), x) + 1e-4 * posterior.kl().mean() / z[0].numel()

    settings = FitSettings(
        steps=steps, lr=2e-3, warmup=100, decay="cosine", dtype="bf16", save_every=250, ema=0.995, weight_decay=0.0
    )
    fit(list(vae.parameters()), loss, settings, run, title="vae", checkpoint=work / "vae.ckpt")
    vae.eval()
    normalise(vae, renderer.draw(NORMALISED_BY, run.rng(design.world)))
    torch.save(vae.state_dict(), work / "vae.pt")
    run.log.say(json.dumps(measure_vae(vae)))


@torch.no_grad()
def normalise(vae: AutoencoderKL, truth: renderer.Scenery) -> None:
    """Give every latent channel mean 0 and variance 1 over pictures, by changing the 1 x 1 convolutions around the
    latents.

    What is decoded stays the same. Without this, channels differ ninefold in size, and the small ones, which hold
    colour, drown in the noise of diffusion at all but its last steps.
    """
    z = vae.encode(renderer.render(truth) * 2 - 1).latent_dist.mean
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    n, inner, outer = len(mean), vae.quant_conv, vae.post_quant_conv
    inner.weight[:n] /= std.view(-1, 1, 1, 1)
    inner.bias[:n] = (inner.bias[:n] - mean) / std
    inner.bias[n:] -= 2 * std.log()  # of the log-variances
    outer.bias += torch.einsum("oihw,i->o", outer.weight, mean)
    outer.weight *= std.view(1, -1, 1, 1)


@torch.no_grad()
def latents(work: Path, vae: AutoencoderKL, truth: renderer.Scenery) -> Tensor:
    """Latents of the pictures of ``truth``; kept in ``work`` so that a resumed training has them."""
    file = work / "latents.pt"
    if not file.exists():
        parts = [truth.take(slice(i, i + 128)) for i in range(0, len(truth), 128)]
        torch.save(torch.cat([vae.encode(renderer.render(p) * 2 - 1).latent_dist.mean for p in parts]), file)
    return torch.load(file, weights_only=True)


def parts(work: Path, model: str, run: Run) -> dict[str, Any]:
    """The model's parts before the UNet's training: its own autoencoder from ``work``, a fresh text encoder and a fresh
    UNet, or what it borrows and a fresh UNet."""
    design = build.DESIGNS[model]
    with initialised_by(run.rng("weights")):
        unet = build.unet(model)
        if design.borrows:
            pipe = LatentDiffusion(f"pkg:{design.borrows}", design.borrows).pipe
            return {"vae": pipe.vae, "text": pipe.text_encoder, "words": pipe.tokenizer, "unet": unet}
        words, vae = build.tokenizer(work / "tokenizer"), build.autoencoder(model)
        text = build.text_encoder(model)
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True))
    return {"vae": vae.eval(), "text": text, "words": words, "unet": unet}


def train_unet(work: Path, steps: int, run: Run, model: str) -> None:
    """UNet and text encoder together (a borrowed text encoder stays as it is), on latents of the pretraining world,
    one caption in ten empty (for guidance).

    The network predicts v (Salimans & Ho, 2022, appendix D): unlike the noise, v weighs the early steps of sampling,
    where class, colours and scene are decided, enough for a training of minutes to learn them.
    """
    has, design = parts(work, model, run), build.DESIGNS[model]
    truth = renderer.draw(PICTURES, run.rng(design.world))
    z = latents(work, has["vae"], truth)
    text, unet, words = has["text"].to(DEVICE), has["unet"].to(DEVICE), has["words"]
    alpha_bar = build.scheduler().alphas_cumprod

    def loss(step: int) -> Tensor:
        rng = run.rng("unet", step)
        i = torch.randint(len(z), (BATCH,), generator=rng)
        said = captions(truth.take(i), rng)
        tokens = words(said, padding="max_length", max_length=build.MAX_TOKENS, truncation=True, return_tensors="pt")
        t, noise = torch.randint(1000, (BATCH,), generator=rng), torch.randn(z[i].shape, generator=rng)
        noisy = noised(alpha_bar, z[i], t, noise).to(DEVICE)
        told = unet(noisy, t.to(DEVICE), text(tokens.input_ids.to(DEVICE))[0]).sample
        return F.mse_loss(told.float(), velocity(alpha_bar, z[i], t, noise).to(DEVICE))

    settings = FitSettings(
        steps=steps, lr=1e-3, warmup=200, decay="cosine", dtype="bf16", save_every=250, ema=0.999, weight_decay=0.01
    )
    learning = [*unet.parameters(), *(() if design.borrows else text.parameters())]
    fit(learning, loss, settings, run, title="unet", checkpoint=work / "unet.ckpt")
    torch.save({"unet": unet.cpu().state_dict(), "text": text.cpu().state_dict()}, work / "unet.pt")


def captions(truth: renderer.Scenery, rng: torch.Generator) -> list[str]:
    """Captions of the pretraining world: one in ten empty, one in six with a rare token that means nothing."""
    said = renderer.captions(truth, rng, drop=0.25)
    dice, which = (
        torch.rand(len(said), generator=rng),
        torch.randint(len(build.RARE_TOKENS), (len(said),), generator=rng),
    )
    for k, text in enumerate(said):
        if dice[k] < 0.1:
            said[k] = ""
        elif dice[k] < 0.27:
            said[k] = text.replace("a photo of a ", f"a photo of a {build.RARE_TOKENS[which[k]]} ")
    return said


def measure(run: Run, model: str) -> None:
    """What the exported models can do, as JSON: see measure.py; kept beside the weights."""
    file = build.WEIGHTS / "measured.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    found = _measured(model)
    file.write_text(json.dumps(known | {model: found}, indent=1) + "\n", encoding="utf-8")
    run.log.say(json.dumps(found))


def _measured(model: str) -> dict[str, Any]:
    if model == "micro_pixel":
        return measure_pixel(PixelDiffusion(f"pkg:{model}", model))
    if model == "micro_x4":
        return measure_upscaler(Upscaler(f"pkg:{model}", model))
    diffusion, judge = LatentDiffusion(f"pkg:{model}", model), load_judge("judge", torch.device("cpu"))
    found = {"autoencoder": measure_vae(diffusion.pipe.vae), "prompts": measure_prompts(diffusion, judge)}
    if model == "micro":
        found |= _measured_judges(judge, lambda x: diffusion.round_trip(x).clamp(0, 1))
    return found


def _measured_judges(judge: Judge, trip: Callable[[Tensor], Tensor]) -> dict[str, dict[str, float]]:
    of_styles = load_judge("style_judge", torch.device("cpu"))
    return {
        "judge": measure_judge(judge),
        "judge_after_round_trip": measure_judge(judge, trip),
        "style_judge": measure_style_judge(of_styles),
        "style_judge_after_round_trip": measure_style_judge(of_styles, trip),
    }


def export(work: Path, run: Run, model: str) -> None:
    """Write to ``weights/``: the pipeline folder and, with the first model, the judges in half precision, and the logs
    of their trainings."""
    if model in OTHERS:
        OTHERS[model][1](work)
        return
    if model == "micro":
        for name in ("judge", "style_judge"):
            judge = {k: v.half() for k, v in torch.load(work / f"{name}.pt", weights_only=True).items()}
            (build.WEIGHTS / name).mkdir(parents=True, exist_ok=True)
            save_file(judge, build.WEIGHTS / name / f"{name}.safetensors")
    has, tuned = parts(work, model, run), torch.load(work / "unet.pt", weights_only=True)
    has["unet"].load_state_dict(tuned["unet"])
    has["text"].load_state_dict(tuned["text"])
    has["vae"].register_to_config(scaling_factor=1.0)  # the latents have unit variance, see normalise
    pipe = build.assemble(has["vae"], has["unet"], has["text"], has["words"], PREDICTION)
    pipe.to(dtype=torch.float16).save_pretrained(build.WEIGHTS / model)
    if lender := build.DESIGNS[model].borrows:  # the very files, so that digests tell that they are the same
        for part in ("vae", "text_encoder", "tokenizer"):
            shutil.rmtree(build.WEIGHTS / model / part)
            shutil.copytree(Path(LatentDiffusion(f"pkg:{lender}", lender).path) / part, build.WEIGHTS / model / part)
    (build.WEIGHTS / "logs" / model).mkdir(parents=True, exist_ok=True)
    for name in TRAININGS:
        if (work / f"{name}.log").exists():
            shutil.copy(work / f"{name}.log", build.WEIGHTS / "logs" / model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[*TRAININGS, "export", "measure"])
    parser.add_argument("--model", choices=[*build.DESIGNS, *OTHERS], default="micro")
    parser.add_argument("--work", type=Path, help="checkpoints and logs (default: outputs/MODEL)")
    parser.add_argument("--steps", type=int, default=0, help="of the training")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = args.work or Path("outputs") / args.model
    work.mkdir(parents=True, exist_ok=True)
    run = Run(SEED, DEVICE, log=Lines(work / f"{args.what}.log"))
    if args.what in TRAININGS and args.steps < 1:
        parser.error("say how long: --steps N")
    others = [training for training, _ in OTHERS.values()]
    own = [OTHERS[args.model][0]] if args.model in OTHERS else [name for name in TRAININGS if name not in others]
    if args.what in TRAININGS and args.what not in own:
        parser.error(f"{args.what} is no training of {args.model}")
    lender = "" if args.model in OTHERS else build.DESIGNS[args.model].borrows
    if args.what == "vae" and lender:
        parser.error(f"{args.model} has no autoencoder of its own: it uses {lender}'s")
    work_on: dict[str, Callable[[], None]] = {
        "vae": lambda: train_vae(work, args.steps, run, args.model),
        "unet": lambda: train_unet(work, args.steps, run, args.model),
        "judge": lambda: train_judge(work, args.steps, run),
        "style_judge": lambda: train_style_judge(work, args.steps, run),
        "pixel": lambda: train_pixel(work, args.steps, run),
        "upscaler": lambda: train_upscaler(work, args.steps, run),
        "export": lambda: export(work, run, args.model),
        "measure": lambda: measure(run, args.model),
    }
    work_on[args.what]()


if __name__ == "__main__":
    main()
