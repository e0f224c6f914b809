"""Training of the judges, for developers (part of ``python -m experiments.embedded_models.train``)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.embedded_models import pictures
from experiments.embedded_models.measure import measure_judge, measure_style_judge
from udpbench.interfaces import Run
from udpbench.models.micro.judge import Judge, make_judge
from udpbench.models.networks import initialised_by
from udpbench.optim.fit import FitSettings, fit
from udpbench.world import renderer


def train_judge(work: Path, steps: int, run: Run) -> None:
    """The classifier of the world's attributes, with a head that tells pictures from garbage, calibrated on garbage
    of its own."""

    def batch(truth: renderer.Scenery, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.cat([pictures.worn(renderer.render(truth), rng), pictures.garbage(16, rng)])
        return x, vars(truth)

    _train("judge", work, steps, run, batch, pictures.garbage, measure_judge)


def train_style_judge(work: Path, steps: int, run: Run) -> None:
    """The classifier of styles, shapes and scenes, trained like the other judge on renderings in every style and in
    none; its garbage comes in every style, too."""

    def batch(truth: renderer.Scenery, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x, style = pictures.in_styles(renderer.render(truth), rng)
        return torch.cat([pictures.worn(x, rng), garbage(16, rng)]), {**vars(truth), "style": style}

    def garbage(n: int, rng: torch.Generator) -> Tensor:
        return pictures.in_styles(pictures.garbage(n, rng), rng)[0]

    _train("style_judge", work, steps, run, batch, garbage, measure_style_judge)


def _train(
    name: str,
    work: Path,
    steps: int,
    run: Run,
    batch: Callable[[renderer.Scenery, torch.Generator], tuple[Tensor, dict[str, Tensor]]],
    garbage: Callable[[int, torch.Generator], Tensor],
    measured: Callable[[Judge], dict[str, float]],
) -> None:
    """``batch``: 64 scenes to their pictures, 16 garbage ones behind, and the classes of the 64 by attribute."""
    with initialised_by(run.rng("weights")):
        judge = make_judge(name)

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
