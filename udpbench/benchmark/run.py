"""Do what a cell needs, once."""

from __future__ import annotations

from collections.abc import Sequence

from udpbench.benchmark.cell import ROLES, Cell
from udpbench.benchmark.graph import Graph, without_scores
from udpbench.benchmark.stage import Stage, with_ancestors
from udpbench.benchmark.store import Store
from udpbench.core.errors import Errors


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
    for role in ROLES:
        if any(role in stage.settings for stage in todo):
            errors.attempt(getattr(cell, role).component.fetch)
    errors.raise_any()
