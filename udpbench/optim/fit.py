"""The one training loop: victims, surrogates and the embedded models are all trained here."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor, nn

from udpbench.core.atomic import atomic_write
from udpbench.core.component import check_choice
from udpbench.core.memory import full_memory
from udpbench.interfaces import Log, Run
from udpbench.models.networks import own_generators
from udpbench.optim.training_set import TrainingSet, losses_of

EMA_DECAYS: dict[str, Callable[[int], float]] = {
    "ratio": lambda step: (1 + step) / (10 + step),
    "power": lambda step: 1 - (1 + step) ** -0.75,
}
# What zipfile, zlib and torch raise on broken files.
BROKEN = (BadZipFile, RuntimeError, EOFError, UnpicklingError, ValueError, LookupError, NotImplementedError, zlib.error)


@dataclass(kw_only=True)
class FitSettings:
    """AdamW with float32 master weights, a schedule and an average of the weights.

    Args:
        steps, lr, weight_decay, betas, eps: of AdamW.
        clip_norm: largest norm of the gradient; 0: no clipping.
        warmup: steps over which the rate rises linearly to ``lr``.
        decay: of the rate after them: ``constant``, or ``cosine``, to 0 at the end.
        ema: decay of the moving average that replaces the weights at the end and at points of the curve; 0: none.
        ema_warmup: how that decay rises to ``ema`` over the steps k = 0, 1, ...: ``ratio`` (1 + k) / (10 + k), which
            diffusers' EMAModel and train_text_to_image.py have but for k = 0; ``power`` 1 - (1 + k)^(-3/4), as in its
            train_unconditional.py.
        dtype: of the forward and backward passes (autocast): fp32 | bf16.
        save_every: steps between checkpoints; 0: none.
    """

    steps: int
    lr: float
    weight_decay: float = 1e-2
    betas: Sequence[float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float = 1.0
    warmup: int = 0
    decay: str = "constant"
    ema: float = 0.0
    ema_warmup: str = "ratio"
    dtype: str = "fp32"
    save_every: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "lr", "weight_decay", "clip_norm", "warmup", "save_every"):
            if not (isinstance(value := vars(self)[name], int | float) and value >= 0):
                raise ValueError(f"fit: {name} must be a number >= 0, given {value!r}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"fit: ema must be >= 0 and < 1, given {self.ema}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"fit: betas must be two numbers >= 0 and < 1, given {self.betas}")
        check_choice("fit: unknown decay", self.decay, ("constant", "cosine"))
        check_choice("fit: unknown ema_warmup", self.ema_warmup, EMA_DECAYS)
        check_choice("fit: unknown dtype", self.dtype, ("fp32", "bf16"))

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW as set here, in one kernel where there is one: it differs from the others by rounding."""
        parameters, betas = list(parameters), (self.betas[0], self.betas[1])
        settings: dict[str, Any] = {"lr": self.lr, "betas": betas, "eps": self.eps, "weight_decay": self.weight_decay}
        return torch.optim.AdamW(parameters, fused=parameters[0].device.type in ("cpu", "cuda"), **settings)

    def rate(self, step: int) -> float:
        """Learning rate of ``step`` (0-based).

        As diffusers' schedules, but for the warm-up, which is a step ahead of theirs: their first step has rate 0.
        """
        if step < self.warmup:
            return self.lr * ((step + 1) / self.warmup)
        if self.decay == "constant":
            return self.lr
        return self.lr * (0.5 * (1 + math.cos(math.pi * (step - self.warmup) / (self.steps - self.warmup))))

    def ema_decay(self, step: int) -> float:
        """Decay of the average in ``step`` (0-based)."""
        return min(self.ema, EMA_DECAYS[self.ema_warmup](step))


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
    look: bool = True,
) -> None:
    """Train ``parameters`` in place for ``settings.steps`` steps of ``loss(step)``.

    ``loss`` must draw whatever it needs from generators that belong to ``step``: then a training that was killed and
    resumed from ``checkpoint`` ends in the same weights as one that was not. ``at_curve_step(k)`` is called after ``k``
    steps for every ``k`` in ``curve_steps`` (with the averaged weights in place if there is an EMA); those before a
    checkpoint are not called again. A given ``optimizer`` goes on with its moments (short, repeated trainings).
    ``before``: steps of earlier trainings that the logged loss curve goes on from. ``look``: at the weights after the
    last step; False where the next training goes on with them.

    Raises ValueError in one line if a loss, a gradient or a weight is not finite, before anything of it is saved: on a
    CPU at the step of the loss, elsewhere at the next checkpoint or point of the curve, for the device is not waited
    for. Weights are looked at where they are kept: those that are not finite have such a loss in the step after.
    """
    parameters = list(parameters)
    optimizer = optimizer or settings.optimizer(parameters)
    average = [p.detach().clone() for p in parameters] if settings.ema else []
    start = _load(checkpoint, [*parameters, *average], optimizer, run)
    # Dropout draws from torch's own generators, all of which torch seeds at many times the cost of the CPU's alone.
    generators = torch.default_generator if parameters[0].device.type == "cpu" else torch
    watch = _Watch(parameters, settings, ": ".join(filter(None, (run.log.title, title))), start)
    with run.log.bar(title, settings.steps, "step") as advance, own_generators():
        advance(start)
        for step in range(start, settings.steps):
            generators.manual_seed(run.rng(title, "dropout", before + step).initial_seed())
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step)
            with torch.autocast(parameters[0].device.type, torch.bfloat16, enabled=settings.dtype == "bf16"):
                value = loss(step)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            norm = _clip(parameters, settings.clip_norm) if settings.clip_norm else value.detach()
            optimizer.step()
            watch.see(value.detach(), norm)
            if average:
                torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - settings.ema_decay(step))
            run.log.scalar(f"{title}/loss", value.detach(), before + step)
            advance(1)
            done = step + 1
            due = (settings.save_every > 0 and done % settings.save_every == 0) or run.stop.is_set()
            kept = due or done in curve_steps or (look and done == settings.steps)
            if kept or watch.due(done):
                watch.check(weights=kept)
            if done in curve_steps and at_curve_step is not None:
                with_average(parameters, average, partial(at_curve_step, done))
            if checkpoint and due and done < settings.steps:
                state = {"step": done, "optimizer": optimizer.state_dict(), "average": average}
                save_state(checkpoint, state | {"parameters": [p.detach() for p in parameters]}, run)
    optimizer.zero_grad(set_to_none=True)  # they take as much as the weights, as long as these are in use
    _put(average, parameters)


def _clip(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """``clip_grad_norm_``; on a CPU, where looking at the norm costs nothing, gradients whose factor would be 1 are not
    multiplied by it."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if norm.device.type != "cpu" or not norm + 1e-6 <= most:  # 1e-6: torch's own, which it divides by, too
        nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


def _every(device: torch.device, settings: FitSettings) -> int:
    """Steps between looks at what a training's numbers are: waiting for a GPU would cost more than the steps lost."""
    return 1 if device.type == "cpu" else settings.save_every or 100


class _Watch:
    """Looks whether a training's numbers are finite. What it sees stays on the device until ``check``.

    Seen so far: ``finite``, whether all were; ``steps`` before the first that was not; ``last``, the loss of the last
    of these.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], settings: FitSettings, title: str, start: int) -> None:
        self.parameters, self.settings, self.title = parameters, settings, title
        device = parameters[0].device
        self.every = _every(device, settings)
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.steps = torch.full((), start, device=device)
        self.last = torch.full((), math.nan, device=device)

    @torch.no_grad()
    def see(self, loss: Tensor, norm: Tensor) -> None:
        """The loss and the norm of the gradient of one more step."""
        self.finite = self.finite & loss.isfinite() & norm.isfinite()
        self.steps = self.steps + self.finite
        self.last = torch.where(self.finite, loss, self.last)

    def due(self, done: int) -> bool:
        """Whether it is to be checked after ``done`` steps, even if nothing is kept of them."""
        return done % self.every == 0

    @torch.no_grad()
    def check(self, weights: bool) -> None:
        """Raise ValueError saying which step, the last finite loss and the likely cause, if anything that was seen is
        not finite, or one of the ``weights``."""
        kept = [p.detach() for p in self.parameters if p.numel()] if weights else []
        # Squares overflow before weights do, so only norms that are finite tell enough.
        norms = [torch.stack(torch._foreach_norm(kept)).isfinite().all()] if kept else []
        seen, *fine = torch.stack([self.finite, *norms]).tolist()
        if seen and (all(fine) or all(bool(p.isfinite().all()) for p in kept)):
            return
        done, settings = int(self.steps), self.settings
        last = f"the last finite loss was {float(self.last):.4g}" if self.last.isfinite() else "no loss was finite"
        cause = f"the likely cause is the learning rate (lr={settings.lr:g})"
        if done == 0:
            cause = "the likely cause are weights or pictures that are not finite themselves"
        if settings.dtype != "fp32":
            cause += f", or dtype={settings.dtype}: try fp32"
        what = "a weight" if seen else "the loss or its gradient"
        step = f"step {done + (not seen)} of {settings.steps}"
        raise ValueError(f"{self.title}: {what} is not finite at {step}; {last}; {cause}")


def weighted_loss(
    sets: Mapping[str, tuple[float, TrainingSet]], batch: int, rng: Callable[[str, int], torch.Generator]
) -> Callable[[int], Tensor]:
    """The loss of a training step over several sets of pictures, (weight, set) by name.

    With a subject's pictures and, weighted, class pictures it is the loss with prior preservation of DreamBooth (Ruiz
    et al. 2023, eq. 2). All sets are of one model in training, which sees their batches at once.

    ``rng(name, step)``: the generator of a set's batch.
    """

    def loss(step: int) -> Tensor:
        drawn = [pictures.draw(batch, rng(name, step)) for name, (_, pictures) in sets.items()]
        trainable = next(iter(sets.values()))[1].trainable
        means = [losses.mean() for losses in losses_of(trainable, drawn)]
        return torch.stack([weight * mean for (weight, _), mean in zip(sets.values(), means, strict=True)]).sum()

    return loss


def with_average(parameters: Sequence[nn.Parameter], average: Sequence[Tensor], do: Callable[[], None]) -> None:
    """Call ``do`` with the averaged weights in place of the parameters (or as they are, without an average)."""
    kept = [p.detach().clone() for p in parameters] if average else []
    _put(average, parameters)
    do()
    _put(kept, parameters)


def _put(values: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> None:
    """Write ``values``, if there are any, into the parameters."""
    for p, value in zip(parameters, values, strict=False):
        p.data.copy_(value)


@torch.no_grad()
def _load(path: Path | None, weights: Sequence[Tensor], optimizer: torch.optim.Optimizer, run: Run) -> int:
    """The steps that are done, their ``weights`` (parameters, then averages) put in place; what was counted in them
    counts."""
    state = load_state(path, run.log)
    if state is None:
        return 0
    run.count.update(state["count"])
    for mine, saved in zip(weights, [*state["parameters"], *state["average"]], strict=True):
        mine.copy_(saved)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def save_state(path: Path, state: dict[str, Any], run: Run) -> None:
    """Write what an interrupted piece of work needs to go on, with its counts so far: whole or not at all, also after a
    power loss.

    Raises Stopped, then, if the process has been asked to end.
    """
    with atomic_write(path) as beside:
        torch.save(state | {"count": run.count}, beside)
    run.stop_if_asked()


def load_state(path: Path | None, log: Log) -> dict[str, Any] | None:
    """What ``save_state`` wrote there, if anything; on the CPU: optimizers put it where they want it.

    What cannot be read is removed, which is said: the work begins anew.
    """
    if path is None or not path.exists():
        return None
    try:
        with ZipFile(path) as archive:  # which torch's files are; torch itself does not look at their checksums
            if bad := archive.testzip():
                raise BadZipFile(bad)
        return torch.load(path, map_location="cpu", weights_only=True)
    except BROKEN as error:
        if full_memory(error):  # the file may be whole
            raise
        log.say(f"{path} is broken; what it is for begins anew")
        path.unlink()
        return None
