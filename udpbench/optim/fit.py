"""The one training loop: victims, surrogates and the embedded models are all trained here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from udpbench.core.atomic import atomic_write
from udpbench.interfaces import Run
from udpbench.models.diffusion import own_generators
from udpbench.optim.training_set import TrainingSet


@dataclass(kw_only=True)
class FitSettings:
    """AdamW with fp32 master weights; ``dtype`` is that of the forward and backward passes (autocast)."""

    steps: int
    lr: float
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float = 1.0  # 0: no clipping
    warmup: int = 0
    decay: str = "constant"  # constant | cosine
    ema: float = (
        0.0  # decay of the moving average that replaces the weights at the end and at points of the curve; 0: none
    )
    dtype: str = "fp32"  # fp32 | bf16
    save_every: int = 0  # steps between checkpoints; 0: none

    def __post_init__(self) -> None:
        for name in ("steps", "lr", "weight_decay", "clip_norm", "warmup", "save_every"):
            if not (isinstance(value := vars(self)[name], int | float) and value >= 0):
                raise ValueError(f"fit: {name} must be a number >= 0, given {value!r}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"fit: ema must be >= 0 and < 1, given {self.ema}")
        if self.decay not in ("constant", "cosine"):
            raise ValueError(f"fit: unknown decay {self.decay!r}; allowed are constant, cosine")
        if self.dtype not in ("fp32", "bf16"):
            raise ValueError(f"fit: unknown dtype {self.dtype!r}; allowed are fp32, bf16")

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW as set here."""
        return torch.optim.AdamW(parameters, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)

    def rate(self, step: int) -> float:
        """Learning rate of ``step`` (0-based)."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        cool = 0.5 * (1 + math.cos(math.pi * step / self.steps)) if self.decay == "cosine" else 1.0
        return self.lr * warm * cool


def fit(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[int], Tensor],
    settings: FitSettings,
    run: Run,
    *,
    title: str = "train",
    checkpoint: Path | None = None,
    curve_steps: Sequence[int] = (),
    at_curve_step: Callable[[int], None] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    before: int = 0,
) -> None:
    """Train ``parameters`` in place for ``settings.steps`` steps of ``loss(step)``.

    ``loss`` must draw whatever it needs from generators that belong to ``step``: then a training that was killed and
    resumed from ``checkpoint`` ends in the same weights as one that was not. ``at_curve_step(k)`` is called after ``k``
    steps for every ``k`` in ``curve_steps`` (with the averaged weights in place if there is an EMA); those before a
    checkpoint are not called again. A given ``optimizer`` goes on with its moments (short, repeated trainings).
    ``before``: steps of earlier trainings that the logged loss curve goes on from.
    """
    parameters = list(parameters)
    optimizer = optimizer or settings.optimizer(parameters)
    average = [p.detach().clone() for p in parameters] if settings.ema else []
    start = _load(checkpoint, parameters, optimizer, average)
    with run.log.bar(title, settings.steps, "step") as advance, own_generators():
        advance(start)
        for step in range(start, settings.steps):
            # Dropout draws from torch's own generators.
            torch.manual_seed(run.rng(title, "dropout", before + step).initial_seed())
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step)
            with torch.autocast(parameters[0].device.type, torch.bfloat16, enabled=settings.dtype == "bf16"):
                value = loss(step)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            if settings.clip_norm:
                nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
            optimizer.step()
            _update_average(average, parameters, settings.ema, step)
            run.log.scalar(f"{title}/loss", value.detach(), before + step)
            advance(1)
            done = step + 1
            if done in curve_steps and at_curve_step is not None:
                with_average(parameters, average, partial(at_curve_step, done))
            if checkpoint and settings.save_every and done % settings.save_every == 0 and done < settings.steps:
                _save(checkpoint, done, parameters, optimizer, average)
    for p, a in zip(parameters, average, strict=False):
        p.data.copy_(a)


def weighted_loss(
    sets: Mapping[str, tuple[float, TrainingSet]], batch: int, rng: Callable[[str, int], torch.Generator]
) -> Callable[[int], Tensor]:
    """The loss of a training step over several sets of pictures, (weight, set) by name.

    With a subject's pictures and, weighted, class pictures it is the loss with prior preservation of DreamBooth (Ruiz
    et al. 2023, eq. 2). ``rng(name, step)``: the generator of a set's batch.
    """

    def loss(step: int) -> Tensor:
        parts = [weight * pictures.loss(batch, rng(name, step)) for name, (weight, pictures) in sets.items()]
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]

    return loss


def with_average(parameters: Sequence[nn.Parameter], average: Sequence[Tensor], do: Callable[[], None]) -> None:
    """Call ``do`` with the averaged weights in place of the parameters (or as they are, without an average)."""
    kept = [p.detach().clone() for p in parameters] if average else []
    for p, a in zip(parameters, average, strict=False):
        p.data.copy_(a)
    do()
    for p, k in zip(parameters, kept, strict=False):
        p.data.copy_(k)


@torch.no_grad()
def _update_average(average: list[Tensor], parameters: Sequence[nn.Parameter], ema: float, step: int) -> None:
    if average:
        decay = min(ema, (1 + step) / (10 + step))  # the usual warm-up of an EMA: the start is forgotten fast
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)


def _save(
    path: Path, step: int, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, average: list[Tensor]
) -> None:
    state = {
        "step": step,
        "parameters": [p.detach() for p in parameters],
        "optimizer": optimizer.state_dict(),
        "average": average,
    }
    save_state(path, state)


def _load(
    path: Path | None, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, average: list[Tensor]
) -> int:
    state = load_state(path)
    if state is None:
        return 0
    with torch.no_grad():
        for p, saved in zip(parameters, state["parameters"], strict=True):
            p.copy_(saved)
        for a, saved in zip(average, state["average"], strict=True):
            a.copy_(saved)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write what an interrupted piece of work needs to go on: whole or not at all."""
    with atomic_write(path) as beside:
        torch.save(state, beside)


def load_state(path: Path | None) -> dict[str, Any] | None:
    """What ``save_state`` wrote there, if anything; on the CPU, where optimizers want their counters: on a GPU each
    would be waited for in every step."""
    if path is None or not path.exists():
        return None
    return torch.load(path, map_location="cpu", weights_only=True)
