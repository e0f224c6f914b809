"""Projected gradient ascent on pictures: how most protections perturb (Glaze has an Adam loop of its own)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.images import PIXELS, at_once
from udpbench.core.memory import give_freed_memory_back, queued
from udpbench.interfaces import Advance, ImageLoss, Log, Owner, Protection, Run

Loss = ImageLoss
Scale = Callable[[list[int]], Tensor]  # indices of N pictures -> (N,)
Make = Callable[[Tensor, list[int]], Tensor]  # N variables and their indices -> NCHW pictures


class Bound(Protocol):
    """What an ascent needs of a bound: a ``Budget`` has it, as other bounds of other variables do."""

    def direction(self, gradient: Tensor) -> Tensor: ...

    def project(self, x: Tensor, clean: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Box:
    """A bound of variables that are not pictures: from ``below`` under to ``above`` over where they start; lengths of
    steps are in the variables' own unit."""

    below: float
    above: float

    def direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(self, x: Tensor, start: Tensor, /) -> Tensor:
        return torch.minimum(torch.maximum(x, start - self.below), start + self.above)


def by_size(images: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the pictures (CHW), grouped by size, in order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, x in enumerate(images):
        groups.setdefault(tuple(x.shape), []).append(i)
    return list(groups.values())


def chunks(images: Sequence[Tensor], most: int | None) -> Iterator[list[int]]:
    """Indices of the pictures in batches of one size, ``at_once(most, ...)`` each; ``most`` None: one batch a size."""
    for group in by_size(images):
        n = len(group) if most is None else at_once(most, *images[group[0]].shape[-2:])
        for first in range(0, len(group), n):
            yield group[first : first + n]


def pgd(
    images: Iterable[Tensor],
    clean: Sequence[Tensor],
    loss: Loss,
    budget: Bound,
    run: Run,
    *,
    steps: Sequence[float],
    most: int | None,
    advance: Advance = lambda n: None,
    before: int = 0,
    scale: Scale | None = None,
) -> list[Tensor]:
    """Ascend ``loss`` from ``images``, one step for each length in ``steps`` (of 255), each projected on the budget
    around ``clean``; CHW in, CHW out, on ``run.device``.

    ``loss(x, index)`` gets the pictures at ``index``, one of the ``chunks`` of ``most``, and returns N losses.
    ``x <- project(x + step * direction(gradient))`` (Madry et al. 2018). ``run.penalty`` of the pictures is subtracted
    from the loss; ``run.loss_hook`` and ``run.gradient_hook`` replace the loss and its gradient. ``scale(index)``,
    asked after the loss of a step, multiplies its length for each picture. What is raised is logged as
    ``perturb/loss``, a mean over the pictures, steps counted from ``before``. A step over several chunks has a bar.

    Raises ValueError, after the steps, if a gradient was not finite: its sign is no direction, and pictures would stay
    where they were.
    """
    # Copies, which are written into: new pictures would lie in pieces of what a pass leaves free, and it would not fit
    # there again.
    out = [x.to(run.device, copy=True) for x in images]
    clean = [x.to(run.device) for x in clean]
    large, parts = are_large(clean, run), list(chunks(out, most))
    after = before + len(steps)
    lost = torch.full((), after, device=run.device)  # the first step of such a gradient; read once, at the end
    of_parts = run.log if len(parts) > 1 else Log()
    loss = run.loss_hook(loss, before) if run.loss_hook else loss
    for step, length in enumerate(steps, start=before):
        raised = torch.zeros((), device=run.device)
        with of_parts.bar("one step", len(out), "image") as within:
            for index in parts:
                if large:
                    give_freed_memory_back()
                x = torch.stack([out[i] for i in index])
                total, gradient = _sum_and_gradient(x, index, loss, run)
                lost = torch.where(gradient.isfinite().all(), lost, lost.clamp(max=step))
                raised += total / len(out)
                scaled = length if scale is None else length * queued(scale(index), x.device).view(-1, 1, 1, 1)
                moved = x + budget.direction(gradient) * scaled
                moved = budget.project(moved, torch.stack([clean[i] for i in index]))
                for i, new in zip(index, moved, strict=True):
                    out[i].copy_(new)
                within(len(index))
        run.log.scalar("perturb/loss", raised, step)
        advance(1)
    if lost < after:
        cause = "the likely cause are weights of the model that are not finite, or too large for its dtype"
        raise ValueError(f"the gradient of the pictures is not finite at step {int(lost) + 1}; {cause}")
    return out


def _sum_and_gradient(x: Tensor, index: list[int], loss: Loss, run: Run) -> tuple[Tensor, Tensor]:
    """The summed loss of the pictures ``x`` (NCHW) at ``index``, less the penalty of ``run``, without a graph; and what
    they move along: its gradient, or what ``run.gradient_hook`` makes of it."""
    x = x.detach().requires_grad_(True)
    total = loss(x, index).sum()
    if run.penalty is not None:
        total = total - run.penalty(x).sum()
    (gradient,) = torch.autograd.grad(total, x)
    return total.detach(), run.gradient_hook(gradient) if run.gradient_hook else gradient


def pgd_through(
    make: Make,
    start: Sequence[Tensor],
    loss: Loss,
    bound: Bound,
    run: Run,
    *,
    steps: Sequence[float],
    most: int | None,
    origin: Sequence[Tensor] | None = None,
    beside: Callable[[Tensor], Tensor] = lambda v: v.new_zeros(len(v)),
) -> list[Tensor]:
    """``pgd``, with a bar, over variables that pictures are made of (CHW, as large as pictures are), from ``start`` and
    bounded around ``origin`` (None: ``start``); returns the pictures. ``beside``: what of the variables is raised, too,
    (N,).
    """

    loss = run.loss_hook(loss, 0) if run.loss_hook else loss

    def raised(v: Tensor, index: list[int]) -> Tensor:
        x = make(v, index)
        both = loss(x, index) + beside(v)
        return both if run.penalty is None else both - run.penalty(x)

    bare = replace(run, penalty=None, loss_hook=None)  # which are of pictures
    with run.log.bar("perturb", len(steps), "step") as advance:
        found = pgd(start, origin or start, raised, bound, bare, steps=steps, most=most, advance=advance)
    with torch.no_grad():
        return [make(v[None], [i])[0] for i, v in enumerate(found)]


def run_of(run: Run, mine: Sequence[int]) -> Run:
    """``run`` for an ascent of the owner's pictures ``mine`` alone, whose loss counts these from 0: its ``loss_hook``
    counts all."""
    if (hook := run.loss_hook) is None:
        return run
    number = {i: k for k, i in enumerate(mine)}

    def of_these(loss: Loss, before: int) -> Loss:
        hooked = hook(lambda x, index: loss(x, [number[i] for i in index]), before)
        return lambda x, index: hooked(x, [mine[k] for k in index])

    return replace(run, loss_hook=of_these)


def handed_over(images: list[Tensor]) -> Iterator[Tensor]:
    """The pictures one by one, each taken out of the list: who ascends many does not keep them as they were."""
    while images:
        yield images.pop(0)


def are_large(images: Iterable[Tensor], run: Run) -> bool:
    """Whether what a pass over these pictures leaves free counts: large ones on the CPU."""
    return run.device.type == "cpu" and any(x[0].numel() > PIXELS for x in images)


def first_images(owner: Owner, budget: Budget, run: Run, at_random: bool) -> list[Tensor]:
    """Where an ascent starts: at the owner's pictures, or moved at random within the budget."""
    return random_start(owner.images, owner.names, budget, run) if at_random else list(owner.images)


def first_length(step_size: float | None, bound: float, parts: int = 8) -> float:
    """Length of the first step of an ascent: ``step_size``; None: one of ``parts`` equal parts of ``bound``."""
    return bound / parts if step_size is None else step_size


def shrinking(first: float, n: int) -> list[float]:
    """Lengths of ``n`` steps that shrink linearly from ``first`` to about a hundredth of it."""
    return [first * (1 - 0.99 * k / n) for k in range(n)]


@dataclass(kw_only=True)
class Ascent(Protection):
    """A protection that perturbs each picture by itself, by projected ascent.

    Args:
        step_size: length of the first step, of 255; None: an eighth of the budget.
    """

    step_size: float | None = None

    couples_images = False
    wrappable = True

    def lengths(self, budget: Budget, n: int) -> list[float]:
        """Of ``n`` steps, of 255."""
        return [first_length(self.step_size, budget.eps)] * n

    def ascended(
        self, owner: Owner, loss: Loss, budget: Budget, run: Run, n: int, *, at_random: bool, samples: int = 1
    ) -> list[Tensor]:
        """The owner's pictures after one ascent of ``n`` steps up ``loss``, from random points within the budget, if
        that is asked for; ``samples``: rows through the model for each picture."""
        images, steps, most = first_images(owner, budget, run, at_random), self.lengths(budget, n), run.grad_batch
        with run.log.bar("perturb", n, "step") as advance:
            return pgd(images, owner.images, loss, budget, run, steps=steps, most=most // samples, advance=advance)


def random_start(images: Sequence[Tensor], names: Sequence[str], budget: Budget, run: Run) -> list[Tensor]:
    """Each picture moved by uniform noise of up to ``budget.eps``, projected; its noise belongs to its name."""
    out = []
    for x, name in zip(images, names, strict=True):
        noise = torch.rand(x.shape, generator=run.rng("start", name)) * 2 - 1
        out.append(budget.project((x + noise * budget.eps / 255)[None], x[None])[0])
    return out
