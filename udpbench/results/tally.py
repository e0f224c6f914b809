"""What the cells of a plan add up to: counts of stages, time and disk; as a table, as lines, as JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from udpbench.benchmark.estimate import NEAR, Estimate
from udpbench.benchmark.stage import Stage
from udpbench.core.memory import ESTIMATE, of_cards
from udpbench.core.text import clock_text

LARGE = "sd"  # the family of models of Stable Diffusion's shape
SHOWN = 20  # cells; of what is wrong or unknown, too
KINDS = ("data", "class", "protect", "attack", "mixed", "train", "generate", "edit", "upper_bound", "score")
COUNTS = ("wanted", "unique", "cached", "todo", "rough", "unknown", "seconds", "bytes", "measurements")
NOTHING = Estimate(0.0, 0.0, NEAR[0], frozenset())
COLUMNS = ("wanted", "unique", "cached", "to do", "time", "disk", "measured")


def place(kind: str) -> tuple[int, str]:
    """Where a kind of stages stands: ``KINDS`` in the order of the pipeline, others after them."""
    return (KINDS.index(kind) if kind in KINDS else len(KINDS), kind)


@dataclass(frozen=True)
class Planned:
    """One cell: its stages and their ancestors by folder, the folders that are missing, what is known of those; or
    what is wrong with it."""

    words: str
    device: str = ""
    stages: dict[Path, Stage] = field(default_factory=dict)
    todo: dict[Path, Estimate | None] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    family: str = ""  # of its models
    notes: tuple[str, ...] = ()  # what it will lack or should be told of before it starts


@dataclass
class Counts:
    """Sums over stages.

    ``wanted`` counts a stage in every cell, the others in the first cell that needs it. ``cached`` stages are finished,
    or no longer needed because what was made of them is; ``rough`` ones are estimated from other settings or methods,
    ``unknown`` ones not at all; ``seconds`` and ``bytes`` are those of the stages to do that are known, by the medians
    of ``measurements`` finished stages, those in ``rests_on``.
    """

    wanted: int = 0
    unique: int = 0
    cached: int = 0
    todo: int = 0
    rough: int = 0
    unknown: int = 0
    seconds: float = 0.0
    bytes: float = 0.0
    rests_on: Set[Path] = field(default_factory=set)

    @property
    def measurements(self) -> int:
        return len(self.rests_on)

    def add(self, more: Counts) -> None:
        for name in COUNTS[:-1]:
            setattr(self, name, getattr(self, name) + getattr(more, name))
        self.rests_on |= more.rests_on

    def row(self) -> dict[str, float]:
        """By ``COUNTS``."""
        return {name: getattr(self, name) for name in COUNTS}


@dataclass(frozen=True)
class Plan:
    """Counts of each cell and of each kind of stage, which both make up the ``total``."""

    cells: Sequence[Planned]
    by_cell: Sequence[Counts]
    by_kind: Mapping[str, Counts]
    total: Counts
    rough: list[str]  # stages to do, in words
    unknown: list[str]


def count(cells: Sequence[Planned]) -> Plan:
    """Every stage once, with the first cell that needs it."""
    known = {path: estimate for cell in cells for path, estimate in cell.todo.items()}
    by_cell, by_kind, total, seen = [Counts() for _ in cells], defaultdict[str, Counts](Counts), Counts(), set()
    for cell, mine in zip(cells, by_cell, strict=True):
        for path, stage in cell.stages.items():
            new = path not in seen
            todo = new and path in known
            estimate = known[path] if todo else None
            x = estimate or NOTHING
            one = Counts(1, new, new and not todo, todo, x.rough, todo and not estimate, x.seconds, x.bytes, x.rests_on)
            for sums in (mine, by_kind[stage.name], total):
                sums.add(one)
            seen.add(path)
    words = {path: str(stage) for cell in cells for path, stage in cell.stages.items()}
    rough = [words[path] for path, x in known.items() if x and x.rough]
    return Plan(cells, by_cell, by_kind, total, rough, [words[path] for path, x in known.items() if not x])


def table(plan: Plan) -> Table:
    """Cells, then kinds of stages, then the total, in the same columns."""
    made = Table(box=SIMPLE_HEAD)
    made.add_column("cell", overflow="fold")
    for column in COLUMNS:
        made.add_column(column, justify="right", no_wrap=True)
    for cell, counts in zip(plan.cells[:SHOWN], plan.by_cell):
        made.add_row(cell.words, *(["invalid"] if cell.errors else _row(counts)))
    if len(plan.cells) > SHOWN:
        made.add_row(f"... and {len(plan.cells) - SHOWN} more")
    made.add_section()
    made.add_row("stages", style="bold")
    for kind, counts in sorted(plan.by_kind.items(), key=lambda item: place(item[0])):
        made.add_row(kind, *_row(counts))
    made.add_section()
    made.add_row("total", *_row(plan.total), style="bold")
    return made


def _row(counts: Counts) -> list[str]:
    numbers = [str(n) for n in (counts.wanted, counts.unique, counts.cached, counts.todo)]
    if not counts.todo:
        return [*numbers, "-", "-", "-"]
    amounts = ["?", "?"]
    if counts.todo > counts.unknown:
        mark, more = "~" if counts.rough else "", " + ?" if counts.unknown else ""
        amounts = [f"{mark}{text}{more}" for text in (time_text(counts.seconds), size(counts.bytes))]
    return [*numbers, *amounts, str(counts.measurements)]


def time_text(seconds: float) -> str:
    """0:07, 1:02:03; less than half a second is <0:01."""
    return clock_text(seconds) if seconds >= 0.5 else "<0:01"


def size(n: float) -> str:
    """35 kB, 1.2 MB, 340 MB; decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 999.5:
            return f"{n:.1f} {unit}" if (n < 9.95 and unit != "B") or unit == "GB" else f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def summary(plan: Plan) -> list[str]:
    """What there is to do in a line; then which stages' estimate rests on little or nothing, and what is wrong."""
    total = plan.total
    devices = ", ".join(sorted({cell.device for cell in plan.cells if cell.device}))
    n = len(plan.cells)
    line = f"{n} cell{'s' if n != 1 else ''}, {total.todo} of {total.unique} stages to do"
    if known := total.todo - total.unknown:
        some = f" for {known} of them" if total.unknown else ""
        line += f": {time_text(total.seconds)} one after another and {size(total.bytes)}{some},"
        line += f" by medians of {total.measurements} finished stages on {devices}"
    lines = [line]
    if plan.rough:
        lines.append(f"~ by other settings or methods of the kind, not scaled ({total.rough}): {_some(plan.rough)}")
    if plan.unknown:
        lines.append(f"? no measurement on {devices} ({total.unknown}): {_some(plan.unknown)}")
    lines += list(dict.fromkeys(note for cell in plan.cells for note in cell.notes))[:SHOWN]
    if any(cell.family == LARGE for cell in plan.cells):
        lines.append(f"memory: {ESTIMATE}")
        lines += [f"  {card}: {text}" for card, text in of_cards().items()]
    return lines + invalid(plan.cells)


def invalid(cells: Sequence[Planned]) -> list[str]:
    """What is wrong with which cells."""
    wrong = [f"invalid: {cell.words}: {error}" for cell in cells for error in cell.errors]
    return wrong[:SHOWN] + ([f"... and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else [])


def _some(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


# -- what several cells need -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shared:
    """The stages that more than one cell needs, by folder, parents first, each with those cells; and ``first``, few
    cells that make all of them that are to do."""

    needed_by: dict[Path, list[Planned]]
    stages: dict[Path, Stage]
    todo: dict[Path, Estimate | None]
    first: list[Planned]


def shared(cells: Sequence[Planned]) -> Shared:
    """Of the cells of a grid.

    ``first`` is chosen greedily: always the cell that makes most of what is left, the earlier one of equals.
    """
    needed_by: dict[Path, list[Planned]] = {}
    for cell in cells:
        for path in cell.stages:
            needed_by.setdefault(path, []).append(cell)
    needed_by = {path: mine for path, mine in needed_by.items() if len(mine) > 1}
    todo = {path: estimate for cell in cells for path, estimate in cell.todo.items() if path in needed_by}
    first, left = [], set(todo)
    while left:
        first.append(max(cells, key=lambda cell: len(left & cell.todo.keys())))
        left -= first[-1].todo.keys()
    stages = {path: stage for cell in cells for path, stage in cell.stages.items() if path in needed_by}
    return Shared(needed_by, stages, todo, first)


def shared_table(found: Shared) -> Table:
    """The stages to do, parents first; those of one name and number of cells in a row."""
    rows: dict[tuple[str, int], list[Estimate | None]] = {}
    for path, estimate in found.todo.items():
        rows.setdefault((str(found.stages[path]), len(found.needed_by[path])), []).append(estimate)
    made = Table(box=SIMPLE_HEAD)
    made.add_column("needed by more than one cell", overflow="fold")
    for column in ("stages", "cells", "time"):
        made.add_column(column, justify="right", no_wrap=True)
    for (name, cells), estimates in list(rows.items())[:SHOWN]:
        known = [estimate.seconds for estimate in estimates if estimate]
        time = time_text(sum(known)) if len(known) == len(estimates) else "?"
        made.add_row(name, str(len(estimates)), str(cells), time)
    if len(rows) > SHOWN:
        made.add_row(f"... and {len(rows) - SHOWN} more")
    return made


def shared_summary(found: Shared, cells: int) -> list[str]:
    """How many there are, and the cells to run first."""
    line = f"{len(found.needed_by)} stages are needed by more than one cell, {len(found.todo)} of them to do"
    if not found.todo:
        return [line]
    n = len(found.first)
    return [f"{line}; {n} of {cells} cells, run first, make all of them:", *(f"  {cell.words}" for cell in found.first)]


def shared_json(found: Shared) -> dict[str, Any]:
    """The stages that several cells need and the cells to run first, as JSON takes them."""
    rows = []
    for path, stage in found.stages.items():
        named = {"stage": str(stage), "kind": stage.name, "key": stage.key}
        rows.append(named | {"cells": [cell.words for cell in found.needed_by[path]], "todo": path in found.todo})
    return {"shared": rows, "first": [cell.words for cell in found.first]}


def as_json(plan: Plan) -> dict[str, Any]:
    """A plan's counts by cell and by kind of stage, as JSON takes them; seconds and bytes are of the stages to do."""
    cells = zip(plan.cells, plan.by_cell, strict=True)
    return {
        "cells": [{"cell": c.words, "errors": list(c.errors), **mine.row()} for c, mine in cells],
        "kinds": {kind: counts.row() for kind, counts in plan.by_kind.items()},
        "total": plan.total.row(),
        "rough": plan.rough,
        "unknown": plan.unknown,
    }
