"""What the cells of a plan add up to: counts of stages, time and disk; as a table, as lines, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from udpbench.benchmark.estimate import Estimate
from udpbench.benchmark.store import Stage
from udpbench.core.text import clock_text

SHOWN = 20  # cells; of what is wrong or unknown, too
# In the order of the pipeline; others come after.
KINDS = ("data", "class", "protect", "attack", "mixed", "train", "generate", "edit", "upper_bound", "score")
COLUMNS = ("wanted", "unique", "cached", "to do", "time", "disk", "measured")


@dataclass(frozen=True)
class Planned:
    """One cell: its stages and their ancestors by folder, the folders that are missing, what is known of those; or
    what is wrong with it."""

    words: str
    device: str = ""
    stages: dict[Path, Stage] = field(default_factory=dict)
    todo: dict[Path, Estimate | None] = field(default_factory=dict)
    errors: tuple[str, ...] = ()


@dataclass
class Tally:
    """Counts of stages; ``seconds`` and ``bytes`` of those to do that are known.

    ``wanted`` counts a stage in every cell, the others count it once. ``rough`` ones are estimated from other settings
    or methods, ``unknown`` ones not at all.
    """

    wanted: int = 0
    unique: int = 0
    todo: int = 0
    rough: int = 0
    unknown: int = 0
    seconds: float = 0.0
    bytes: float = 0.0
    rests_on: set[Path] = field(default_factory=set)

    @property
    def cached(self) -> int:
        """Finished, or no longer needed because what was made of them is."""
        return self.unique - self.todo

    @property
    def known(self) -> int:
        """Those to do that have an estimate."""
        return self.todo - self.unknown

    def add(self, new: bool, missing: bool, estimate: Estimate | None) -> None:
        """One more stage that is wanted; ``new``: it was not counted before, ``missing``: it is to do."""
        self.wanted += 1
        self.unique += new
        if new and missing:
            self.todo += 1
            self.unknown += estimate is None
        if new and missing and estimate is not None:
            self.seconds += estimate.seconds
            self.bytes += estimate.bytes
            self.rough += estimate.rough
            self.rests_on |= estimate.rests_on

    def numbers(self) -> dict[str, Any]:
        """For JSON: counts, seconds, bytes, number of measurements."""
        names = ("wanted", "unique", "cached", "todo", "rough", "unknown", "seconds", "bytes")
        return {name: getattr(self, name) for name in names} | {"measurements": len(self.rests_on)}


@dataclass(frozen=True)
class Plan:
    """The cells with what each adds to those before it, so that the rows of either list make up the total."""

    cells: list[tuple[Planned, Tally]]
    kinds: dict[str, Tally]
    total: Tally
    rough: list[str]  # stages to do, in words: estimated from others than the same
    unknown: list[str]  # and without a measurement


def count(cells: Sequence[Planned]) -> Plan:
    """Every stage once, with the first cell that needs it."""
    plan = Plan([], {}, Tally(), [], [])
    todo = {path: estimate for cell in cells for path, estimate in cell.todo.items()}
    seen: set[Path] = set()
    for cell in cells:
        mine = Tally()
        for path, stage in cell.stages.items():
            for tally in (mine, plan.kinds.setdefault(stage.name, Tally()), plan.total):
                tally.add(path not in seen, path in todo, todo.get(path))
            seen.add(path)
        plan.cells.append((cell, mine))
    words = {path: str(stage) for cell in cells for path, stage in cell.stages.items()}
    plan.unknown.extend(words[path] for path, estimate in todo.items() if not estimate)
    plan.rough.extend(words[path] for path, estimate in todo.items() if estimate and estimate.rough)
    return plan


def table(plan: Plan) -> Table:
    """Cells, then kinds of stages, then the total, in the same columns."""
    made = Table(box=SIMPLE_HEAD)
    made.add_column("cell", overflow="fold")
    for column in COLUMNS:
        made.add_column(column, justify="right", no_wrap=True)
    for cell, tally in plan.cells[:SHOWN]:
        made.add_row(cell.words, *(["invalid"] if cell.errors else _row(tally)))
    if len(plan.cells) > SHOWN:
        made.add_row(f"... and {len(plan.cells) - SHOWN} more")
    made.add_section()
    made.add_row("stages", style="bold")
    for kind in sorted(plan.kinds, key=lambda k: (KINDS.index(k) if k in KINDS else len(KINDS), k)):
        made.add_row(kind, *_row(plan.kinds[kind]))
    made.add_section()
    made.add_row("total", *_row(plan.total), style="bold")
    return made


def _row(tally: Tally) -> list[str]:
    counts = [str(n) for n in (tally.wanted, tally.unique, tally.cached, tally.todo)]
    if not tally.todo:
        return [*counts, "-", "-", "-"]
    mark, more = "~" if tally.rough else "", " + ?" if tally.unknown else ""
    amounts = [f"{mark}{text}{more}" if tally.known else "?" for text in (time_text(tally.seconds), size(tally.bytes))]
    return [*counts, *amounts, str(len(tally.rests_on))]


def time_text(seconds: float) -> str:
    """0:07, 1:02:03; less than half a second is <0:01."""
    return clock_text(seconds) if seconds >= 0.5 else "<0:01"


def size(n: float) -> str:
    """35 kB, 1.2 MB, 340 MB; decimal units."""
    for unit in ("B", "kB", "MB"):
        if n < 999.5:
            return f"{n:.1f} {unit}" if n < 9.95 and unit != "B" else f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"


def summary(plan: Plan) -> list[str]:
    """What there is to do in a line; then which stages' estimate rests on little or nothing, and what is wrong."""
    total = plan.total
    devices = ", ".join(sorted({cell.device for cell, _ in plan.cells if cell.device}))
    line = f"{len(plan.cells)} cells, {total.todo} of {total.unique} stages to do"
    if total.known:
        some = f" for {total.known} of them" if total.unknown else ""
        line += f": {time_text(total.seconds)} one after another and {size(total.bytes)}{some},"
        line += f" by medians of {len(total.rests_on)} finished stages on {devices}"
    lines = [line]
    if plan.rough:
        lines.append(f"~ by other settings or methods of the kind, not scaled ({total.rough}): {_some(plan.rough)}")
    if plan.unknown:
        lines.append(f"? no measurement on {devices} ({total.unknown}): {_some(plan.unknown)}")
    wrong = [f"invalid: {cell.words}: {error}" for cell, _ in plan.cells for error in cell.errors]
    return lines + wrong[:SHOWN] + ([f"... and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else [])


def _some(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def as_json(plan: Plan) -> dict[str, Any]:
    """The same, for machines: seconds and bytes are those of the stages to do."""
    return {
        "cells": [{"cell": c.words, "errors": list(c.errors), **tally.numbers()} for c, tally in plan.cells],
        "kinds": {kind: tally.numbers() for kind, tally in plan.kinds.items()},
        "total": plan.total.numbers(),
        "rough": plan.rough,
        "unknown": plan.unknown,
    }
