"""Do what a cell needs, once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from udpbench.benchmark.cell import ROLES, Cell, Part
from udpbench.benchmark.graph import Graph, without_scores
from udpbench.benchmark.stage import Stage, with_ancestors
from udpbench.benchmark.stages import SCORE
from udpbench.benchmark.store import Store
from udpbench.core.component import held_in
from udpbench.core.errors import Errors
from udpbench.models.diffusion import Diffusion


def run(graph: Graph, store: Store, together: bool = False, scores: bool = True) -> frozenset[str]:
    """Finish every stage that the cell's record and contact sheet are made of, or all but ``scores``; returns the keys
    of those done now, by this process.

    ``together``: other processes do the same; the arms that take longest are begun first, so that no process is
    left alone with one at the end.
    """
    before = len(store.computed)
    # The record says what every stage took. Of a broken one that nothing needs any more it says nothing, as of one that
    # was removed: hours of training are not done again for that.
    for stage in graph.stages:
        if store.path(stage).exists() and store.damage(stage, contents=False):
            store.put_aside(stage)
    wanted = graph.wanted
    if together:
        wanted = [*(stage for arm in reversed(graph.arms.values()) for stage in arm.wanted), *graph.shown]
    if not scores:
        wanted = without_scores(with_ancestors(wanted))
    fetch_models(graph.cell, store.missing(wanted))
    store.do(*wanted)
    return frozenset(store.computed[before:])


def fetch_models(cell: Cell, todo: Sequence[Stage]) -> None:
    """Have the models on this machine that the stages ``todo`` load, before the first of them begins.

    Raises ConfigError with a line for each that cannot be had.
    """
    errors = Errors()
    for model in models_of(cell, todo):
        errors.attempt(model.fetch)
    errors.raise_any()


def models_of(cell: Cell, todo: Sequence[Stage]) -> list[Diffusion]:
    """The models that the stages ``todo`` load: of roles, and those that methods and metrics hold; of several that are
    the same (by ``identity``) the first."""
    roles = [role for role in ROLES if any(role in stage.settings for stage in todo)]
    parts = [part for stage in todo for part in _parts_of(cell, stage)]
    found: dict[str, Diffusion] = {}
    for model in models_in([getattr(cell, role).component for role in roles] + [part.component for part in parts]):
        found.setdefault(repr(model.identity()), model)
    return list(found.values())


def models_in(held: Any) -> Iterator[Diffusion]:
    """The models that a component (or a mapping or list of some) is or holds, at any depth."""
    if isinstance(held, Diffusion):
        yield held
        return
    for _, value in held_in(held):
        yield from models_in(value)


def _parts_of(cell: Cell, stage: Stage) -> Iterator[Part]:
    """The methods or the metrics whose work a stage is."""
    given = stage.settings
    if "protect" in given:
        protections = (cell.protect, cell.like, cell.noise, cell.noise_rms)
        yield from (part for part in protections if part and part.key == given["protect"])
    if "attack" in given:  # or the same on clean pictures, which may have another key
        yield cell.attack
    if "task" in given:
        yield cell.task
    if stage.name == SCORE:
        metrics = (*cell.metrics.values(), *cell.perturbation_metrics.values())
        yield from (metric for metric in metrics if metric.key.items() <= given.items())
