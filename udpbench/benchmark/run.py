"""Do what a cell needs, once."""

from __future__ import annotations

from udpbench.benchmark.graph import Graph
from udpbench.benchmark.store import Store


def run(graph: Graph, store: Store) -> frozenset[str]:
    """Finish every stage that the cell's record is made of; returns the keys of those done now, by this process."""
    before = len(store.computed)
    store.do(*graph.wanted)
    return frozenset(store.computed[before:])
