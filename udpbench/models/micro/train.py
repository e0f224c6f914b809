"""Train the embedded models: ``python -m udpbench.models.micro.train {vae,judge,style_judge,unet,export,measure}``.

Run in this order, the six commands rebuild everything in ``weights/``. Each training keeps a checkpoint in
``--work`` and goes on from it when the same command is given again. Nothing is read but the renderer and pictures
that scikit-learn and scikit-image ship.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from udpbench.data import renderer
from udpbench.models.diffusion import noised, velocity
from udpbench.models.micro import build, pictures
from udpbench.models.micro.judge import Judge, style_judge
from udpbench.task.fit import FitSettings, fit
from udpbench.types import Log, Run

SEED = 20261122
BATCH = 64
PREDICTION = "v_prediction"
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
        with self.path.open("a") as f:
            f.write(text + "\n")


def reconstruction_loss(got: Tensor, want: Tensor) -> Tensor:
    """L1 + L1 of the gradients + MSE, in model range."""
    l1 = (got - want).abs().mean()
    dx = (got.diff(dim=-1) - want.diff(dim=-1)).abs().mean()
    dy = (got.diff(dim=-2) - want.diff(dim=-2)).abs().mean()
    return l1 + 0.5 * (dx + dy) + 2 * F.mse_loss(got, want)


def train_vae(work: Path, steps: int) -> None:
    """The autoencoder, on the world, on the world in other colours, and on natural pictures."""
    run = Run(SEED, log=Lines(work / "vae.log"))
    torch.manual_seed(SEED)
    vae = build.autoencoder()

    def loss(step: int) -> Tensor:
        rng = run.rng("vae", step)
        x = pictures.autoencoder_batch(16, rng) * 2 - 1
        posterior = vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=rng)
        return reconstruction_loss(vae.decode(z).sample.float(), x) + 1e-4 * posterior.kl().mean() / z[0].numel()

    settings = FitSettings(
        steps=steps, lr=2e-3, warmup=100, decay="cosine", dtype="bf16", save_every=250, ema=0.995, weight_decay=0.0
    )
    fit(list(vae.parameters()), loss, settings, run, title="vae", checkpoint=work / "vae.ckpt")
    torch.save(vae.state_dict(), work / "vae.pt")
    run.log.say(json.dumps(build.measure_vae(vae)))


def train_judge(work: Path, steps: int) -> None:
    """The classifier of the world's attributes, with a head that tells pictures from garbage, calibrated on garbage
    of its own."""

    def batch(truth: renderer.Scenery, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.cat([pictures.worn(renderer.render(truth), rng), pictures.garbage(16, rng)])
        return x, vars(truth)

    _train_judge("judge", work, steps, Judge, batch, pictures.garbage, build.measure_judge)


def train_style_judge(work: Path, steps: int) -> None:
    """The classifier of styles, shapes and scenes, trained like the other judge on renderings in every style and in
    none; its garbage comes in every style, too."""

    def batch(truth: renderer.Scenery, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x, style = pictures.in_styles(renderer.render(truth), rng)
        return torch.cat([pictures.worn(x, rng), garbage(16, rng)]), {**vars(truth), "style": style}

    def garbage(n: int, rng: torch.Generator) -> Tensor:
        return pictures.in_styles(pictures.garbage(n, rng), rng)[0]

    _train_judge("style_judge", work, steps, style_judge, batch, garbage, build.measure_style_judge)


def _train_judge(
    name: str,
    work: Path,
    steps: int,
    make: Callable[[], Judge],
    batch: Callable[[renderer.Scenery, torch.Generator], tuple[Tensor, dict[str, Tensor]]],
    garbage: Callable[[int, torch.Generator], Tensor],
    measured: Callable[[Judge], dict[str, float]],
) -> None:
    """``batch``: 64 scenes to their pictures, 16 garbage ones behind, and the classes of the 64 by attribute."""
    run = Run(SEED, log=Lines(work / f"{name}.log"))
    torch.manual_seed(SEED)
    judge = make()

    def loss(step: int) -> Tensor:
        rng = run.rng(name, step)
        x, labels = batch(renderer.draw(64, rng) if step % 4 else every_combination(64, rng), rng)
        logits = judge(x)
        real = logits.pop("real").float()
        told = sum(F.cross_entropy(value[:64].float(), labels[k]) for k, value in logits.items())
        return told + F.binary_cross_entropy_with_logits(real, (torch.arange(80) < 64).float())

    settings = FitSettings(
        steps=steps, lr=1e-3, warmup=100, decay="cosine", dtype="bf16", save_every=250, ema=0.998, weight_decay=0.01
    )
    fit(list(judge.parameters()), loss, settings, run, title=name, checkpoint=work / f"{name}.ckpt")
    calibrate(judge, garbage(1024, run.rng("garbage")))
    torch.save(judge.state_dict(), work / f"{name}.pt")
    run.log.say(json.dumps(measured(judge)))


def every_combination(n: int, rng: torch.Generator) -> renderer.Scenery:
    """Pictures of the whole world, held-out combinations too: the judge must be able to read the subjects it
    judges."""
    s = renderer.draw(n, rng)
    color = torch.randint(len(renderer.COLORS), (n,), generator=rng)
    second = (color + torch.randint(1, len(renderer.COLORS), (n,), generator=rng)) % len(renderer.COLORS)
    return replace(s, shape=torch.randint(len(renderer.SHAPES), (n,), generator=rng), color=color, second=second)


@torch.no_grad()
def calibrate(judge: Judge, garbage: Tensor) -> None:
    """Set the threshold of the last logit so that 99 % of ``garbage`` falls under it; pictures of the world must stay
    above (measured)."""
    real = judge(garbage)["real"]
    judge.threshold.fill_(float(real.quantile(0.99)))


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
def latents(work: Path, n: int, run: Run) -> tuple[Tensor, renderer.Scenery]:
    """Latents of ``n`` pictures of the pretraining world and their truth; kept in ``work`` so that a resumed training
    has them."""
    file = work / "latents.pt"
    truth = renderer.draw(n, run.rng("world"))
    if not file.exists():
        vae = build.autoencoder()
        vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True))
        vae.eval()
        normalise(vae, truth.take(slice(0, 1024)))
        torch.save(vae.state_dict(), work / "vae_normal.pt")
        parts = [truth.take(slice(i, i + 128)) for i in range(0, n, 128)]
        torch.save(torch.cat([vae.encode(renderer.render(p) * 2 - 1).latent_dist.mean for p in parts]), file)
    return torch.load(file, weights_only=True), truth


def train_unet(work: Path, steps: int) -> None:
    """UNet and text encoder together, on latents of the pretraining world, one caption in ten empty (for guidance).

    The network predicts v (Salimans & Ho, 2022, appendix D): unlike the noise, v weighs the early steps of sampling,
    where class, colours and scene are decided, enough for a training of minutes to learn them.
    """
    run = Run(SEED, DEVICE, log=Lines(work / "unet.log"))
    z, truth = latents(work, 32768, run)
    torch.manual_seed(SEED)
    words = build.tokenizer(work / "tokenizer")
    text, unet = build.text_encoder(words).to(DEVICE), build.unet().to(DEVICE)
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
    fit([*unet.parameters(), *text.parameters()], loss, settings, run, title="unet", checkpoint=work / "unet.ckpt")
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


def measure(work: Path) -> None:
    """What the exported models can do, as JSON: see build.measure_*; kept beside the weights."""
    from udpbench.metrics.judge import load_judge
    from udpbench.metrics.style_judge import load_style_judge
    from udpbench.models.latent import LatentDiffusion

    cpu = torch.device("cpu")
    model, judge = LatentDiffusion("pkg:micro", "micro"), load_judge(cpu)

    def trip(x: Tensor) -> Tensor:
        return model.round_trip(x).clamp(0, 1)

    found = {
        "autoencoder": build.measure_vae(model.pipe.vae),
        "judge": build.measure_judge(judge),
        "judge_after_round_trip": build.measure_judge(judge, trip),
        "prompts": build.measure_prompts(model, judge),
    }
    if (build.WEIGHTS / "style_judge").is_dir():
        of_styles = load_style_judge(cpu)
        found["style_judge"] = build.measure_style_judge(of_styles)
        found["style_judge_after_round_trip"] = build.measure_style_judge(of_styles, trip)
    text = json.dumps(found, indent=1)
    (build.WEIGHTS / "measured.json").write_text(text + "\n")
    Lines(work / "measure.log").say(text)


def export(work: Path) -> None:
    """Write ``weights/``: the pipeline folder and the judges in half precision, and the logs of their trainings."""
    half = torch.float16
    for name in ("judge", "style_judge"):
        if (work / f"{name}.pt").exists():
            (build.WEIGHTS / name).mkdir(parents=True, exist_ok=True)
            judge = {k: v.to(half) for k, v in torch.load(work / f"{name}.pt", weights_only=True).items()}
            save_file(judge, build.WEIGHTS / name / f"{name}.safetensors")
    if (work / "unet.pt").exists():
        vae, unet, words = build.autoencoder(), build.unet(), build.tokenizer(work / "tokenizer")
        text = build.text_encoder(words)
        vae.load_state_dict(torch.load(work / "vae_normal.pt", weights_only=True))
        vae.register_to_config(scaling_factor=1.0)  # the latents have unit variance, see normalise
        tuned = torch.load(work / "unet.pt", weights_only=True)
        unet.load_state_dict(tuned["unet"])
        text.load_state_dict(tuned["text"])
        build.assemble(vae, unet, text, words, PREDICTION).to(dtype=half).save_pretrained(build.WEIGHTS / "pipeline")
    for log in work.glob("*.log"):
        shutil.copy(log, build.WEIGHTS / log.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["vae", "judge", "style_judge", "unet", "export", "measure"])
    parser.add_argument("--work", type=Path, default=Path("outputs/micro"), help="checkpoints and logs")
    parser.add_argument("--steps", type=int, default=0, help="of the training")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.what == "export":
        export(args.work)
    elif args.what == "measure":
        measure(args.work)
    elif args.steps < 1:
        parser.error("say how long: --steps N")
    else:
        {
            "vae": train_vae,
            "judge": train_judge,
            "style_judge": train_style_judge,
            "unet": train_unet,
        }[args.what](args.work, args.steps)


if __name__ == "__main__":
    main()
