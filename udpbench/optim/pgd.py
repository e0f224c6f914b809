"""Projected gradient ascent on pictures: how most protections perturb (Glaze has an Adam loop of its own)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.images import at_once
from udpbench.interfaces import Owner, Run

Loss = Callable[[Tensor, list[int]], Tensor]  # NCHW pictures and their indices -> N losses


def by_size(images: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the pictures (CHW), grouped by size, in order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, x in enumerate(images):
        groups.setdefault(tuple(x.shape), []).append(i)
    return list(groups.values())


def chunks(images: Sequence[Tensor], most: int | None) -> Iterator[list[int]]:
    """Indices in groups of one size: ``at_once`` of a batch of ``most`` pictures; None: all of a size."""
    for group in by_size(images):
        n = len(group) if most is None else at_once(most, *images[group[0]].shape[-2:])
        for first in range(0, len(group), n):
            yield group[first : first + n]


def pgd(
    images: Iterable[Tensor],
    clean: Sequence[Tensor],
    loss: Loss,
    budget: Budget,
    run: Run,
    *,
    steps: Sequence[float],
    most: int | None,
    advance: Callable[[int], None] = lambda n: None,
    before: int = 0,
) -> list[Tensor]:
    """Ascend ``loss`` from ``images``, one step for each length in ``steps`` (of 255), each projected on the budget
    around ``clean``; CHW in, CHW out, on ``run.device``.

    ``loss(x, index)`` gets the pictures at ``index``, one of the ``chunks`` of ``most``, and returns N losses.
    ``x <- project(x + step * direction(gradient))`` (Madry et al. 2018). ``run.penalty`` of the pictures is subtracted
    from the loss. What is raised is logged as ``perturb/loss``, a mean over the pictures, steps counted from
    ``before``.
    """
    out = [x.to(run.device) for x in images]
    clean = [x.to(run.device) for x in clean]
    for step, length in enumerate(steps, start=before):
        raised = torch.zeros((), device=run.device)
        for index in chunks(out, most):
            x = torch.stack([out[i] for i in index]).requires_grad_(True)
            total = loss(x, index).sum()
            if run.penalty is not None:
                total = total - run.penalty(x).sum()
            (gradient,) = torch.autograd.grad(total, x)
            raised += total.detach() / len(out)
            moved = x.detach() + budget.direction(gradient) * length
            moved = budget.project(moved, torch.stack([clean[i] for i in index]))
            for i, new in zip(index, moved, strict=True):
                out[i] = new
        run.log.scalar("perturb/loss", raised, step)
        advance(1)
    return out


def handed_over(images: list[Tensor]) -> Iterator[Tensor]:
    """The pictures one by one, each taken out of the list: who ascends many does not keep them as they were."""
    while images:
        yield images.pop(0)


def first_images(owner: Owner, budget: Budget, run: Run, at_random: bool) -> list[Tensor]:
    """Where an ascent starts: at the owner's pictures, or moved at random within the budget."""
    return random_start(owner.images, owner.names, budget, run) if at_random else list(owner.images)


def random_start(images: Sequence[Tensor], names: Sequence[str], budget: Budget, run: Run) -> list[Tensor]:
    """Each picture moved by uniform noise of up to ``budget.eps``, projected; its noise belongs to its name."""
    out = []
    for x, name in zip(images, names, strict=True):
        noise = torch.rand(x.shape, generator=run.rng("start", name)) * 2 - 1
        out.append(budget.project((x + noise * budget.eps / 255)[None], x[None])[0])
    return out
