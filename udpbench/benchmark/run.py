"""Do what a cell needs, once."""

from __future__ import annotations

from udpbench.benchmark.graph import Graph
from udpbench.benchmark.store import Store


def run(graph: Graph, store: Store) -> frozenset[str]:
    """Finish every stage that the cell's record and contact sheet are made of; returns the keys of those done now, by
    this process."""
    before = len(store.computed)
    # What of the other stages the record and the contact sheet read is verified, too, if it is still there.
    there = [stage for stage in graph.stages if store.path(stage).exists()]
    damaged = [stage for stage in there if store.damage(stage, contents=False)]
    store.do(*graph.wanted, *(stage for stage in there if stage in graph.shown), *damaged)
    return frozenset(store.computed[before:])
