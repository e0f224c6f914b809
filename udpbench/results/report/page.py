"""What of a report only the page has: leaderboards, heat maps and figures, board by board."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from udpbench.results.intervals import Interval
from udpbench.results.record import of_edits
from udpbench.results.report import svg
from udpbench.results.report.arms import curve_points
from udpbench.results.report.boards import NO_CLAIM, Board
from udpbench.results.report.pictures import Shown
from udpbench.results.report.render import Figure, Section
from udpbench.results.report.standings import COSTS, WORST, Standing, Standings
from udpbench.results.report.svg import Mark
from udpbench.results.report.worst import NONE
from udpbench.results.stats import victim
from udpbench.results.words import ARROW, interval_text, metric_text, significant

FEW = 4  # rows that are no map
MANY = 6  # attacks: beyond, a leaderboard shows the one that is chosen
CURVES = 8  # lines in a figure
HEADS = {"gradients": "image gradients", "memory": "MB", "psnr": "PSNR (dB)", "ssim": "SSIM", "rms": "RMS (/255)"}
HINTS = {
    "gradients": "pictures forward and backward through the UNet or the autoencoder, for a victim",
    "seconds": "to protect the pictures of a victim, on the machine that did it",
    "memory": "peak memory of the process",
}


@dataclass(frozen=True)
class Cell:
    """A cell of a table: ``text``, in small ``more``, a ``value`` to sort by, a ``shade`` from -1 to 1, a ``hint``."""

    text: str = "-"
    more: str = ""
    value: float | None = None
    shade: float | None = None
    hint: str = ""


@dataclass(frozen=True)
class Column:
    """The head of a column; ``of``: the attack it belongs to."""

    text: str
    hint: str = ""
    of: str = ""


@dataclass(frozen=True)
class Row:
    """A row with its name in front. ``claimed``: its first number may be claimed."""

    name: str
    cells: Sequence[Cell]
    control: bool = False
    claimed: bool = False


@dataclass(frozen=True)
class Grid:
    """A table of numbers."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]


@dataclass(frozen=True)
class OnMetric:
    """What a board shows on one metric. ``many``: too many attacks to show each in the leaderboard at once."""

    title: str
    leaderboard: Grid
    heat: Grid | None
    figures: Sequence[Figure]
    many: bool


@dataclass(frozen=True)
class BoardPage:
    """One board: ``parts`` by metric, then ``details``, the sections that all formats have."""

    number: int
    board: Board
    parts: Sequence[OnMetric]
    details: Sequence[Section]
    pictures: Shown | None = None

    @property
    def edits(self) -> bool:
        """Whether the task edited pictures."""
        return of_edits(*self.board.records)

    @property
    def figures(self) -> list[Figure]:
        """Those of all metrics."""
        return [figure for part in self.parts for figure in part.figures]


def on_metrics(found: Standings, number: int, plots: bool) -> list[OnMetric]:
    """The board's leaderboard, heat map and figures on every metric that ranks."""
    return [
        OnMetric(
            f"{metric} {ARROW[found.board.metrics[metric]['better_protected']]}",
            leaderboard(found, metric),
            heat_map(found, metric),
            list(figures(found, metric, number)) if plots else [],
            len(found.attacks[metric]) > MANY,
        )
        for metric in found.board.ranked_by
    ]


def leaderboard(found: Standings, metric: str) -> Grid:
    """One row a protection: no attack, worst case, each attack, visibility, costs."""
    floor, most = found.board.floors[metric], _most(found, metric)
    shown = [NONE, *([WORST] if found.has_worst(metric) else []), *found.attacks[metric]]
    measured = [name for name in (found.visible, "psnr", "ssim") if any(name in row.changes for row in found.rows)]
    costs = [name for name in COSTS if any(name in row.costs for row in found.rows)]
    columns = [_attack_column(attack) for attack in shown]
    columns += [Column(HEADS.get(name, name), HINTS.get(name, "")) for name in (*measured, *costs, "victims")]
    rows = []
    for row in found.rows:
        left = row.left[metric]
        cells = [_interval(left.get(attack), most, row.taken.get(metric, {}), attack, floor) for attack in shown]
        numbers = [*(row.changes.get(name) for name in measured), *(row.costs.get(name) for name in costs)]
        n = len({victim(record) for record in row.records})
        cells += [*map(_number, numbers), Cell(str(n), value=n)]
        rows.append(Row(row.name, cells, row.control, claimed(left.get(NONE), floor)))
    return Grid(f"{metric}: s - s(clean) with 95 % intervals; + is better protected", columns, rows)


def _attack_column(attack: str) -> Column:
    if attack in (NONE, WORST):
        told = {NONE: ("no attack", "s(protected) - s(clean)"), WORST: (WORST, "after the attack that leaves least")}
        return Column(*told[attack])
    return Column(attack, f"s(purified) - s(clean) after {attack}", of=attack)


def claimed(x: Interval | None, floor: float | None) -> bool:
    """Whether an interval lies above the floor and above zero."""
    return x is not None and x.low is not None and floor is not None and x.low > max(floor, 0.0)


def _most(found: Standings, metric: str) -> float:
    """What is shaded fully."""
    rows = [row for row in found.rows if not row.control] or found.rows
    return max((abs(x.mean) for row in rows for x in row.left[metric].values()), default=0.0) or 1.0


def _interval(x: Interval | None, most: float, taken: Mapping[str, int], attack: str, floor: float | None) -> Cell:
    if x is None:
        return Cell()
    ends = "1 victim" if x.victims == 1 else ""
    if x.low is not None and x.high is not None:
        ends = f"[{significant(x.low, signed=True)}, {significant(x.high, signed=True)}]"
    mark = f" {NO_CLAIM}" if attack == NONE and not claimed(x, floor) else ""
    by = ", ".join(f"{name} ({n})" for name, n in taken.items())
    hint = f"attacks taken (victims): {by}" if by and attack == WORST else ""
    return Cell(significant(x.mean, signed=True) + mark, ends, x.mean, _shade(x, most), hint)


def _shade(x: Interval, most: float) -> float:
    return max(-1.0, min(1.0, x.mean / most))


def _number(x: float | None) -> Cell:
    return Cell() if x is None else Cell(significant(x), value=x)


def heat_map(found: Standings, metric: str) -> Grid | None:
    """Protections by attacks, the attack that leaves least first; None where that is hardly a map."""
    attacks, most = found.attacks[metric], _most(found, metric)
    if len(attacks) < 2 and len(found.rows) < FEW:  # the leaderboard says as much
        return None
    shown = [NONE, *attacks, *([WORST] if found.has_worst(metric) else [])]
    rows = []
    for row in found.rows:
        left = {attack: row.left[metric].get(attack) for attack in shown}
        cells = [
            Cell(
                significant(x.mean, 2, signed=True),
                "",
                x.mean,
                _shade(x, most),
                f"{row.name}, {attack}: {interval_text(x)}",
            )
            if x
            else Cell("")
            for attack, x in left.items()
        ]
        if any(left[attack] for attack in attacks):
            rows.append(Row(row.name, cells, row.control))
    return Grid(f"{metric}: s - s(clean), mean over victims", [_attack_column(attack) for attack in shown], rows)


def figures(found: Standings, metric: str, number: int) -> Iterator[Figure]:
    """Intervals of effect and worst case, protection against visibility and against cost, curves; of what is there."""
    board, name = found.board, re.sub(r"[^A-Za-z0-9_]", "_", f"board{number}-{metric}")
    floor, change = board.floors[metric], f"{metric}: s - s(clean), + is better protected"
    grey = "" if floor is None else f"; grey: within {significant(floor)}, what an effect must exceed"
    marks = {row.name: [_mark(x, row, kind) for kind, x in _ends(row, metric)] for row in found.rows}
    if rows := {row: found for row, found in marks.items() if found}:
        worst = "; ring: worst case over attacks" if found.has_worst(metric) else ""
        said = f"Effect with 95 % interval (dot; square: a control){worst}{grey}"
        yield Figure(name, svg.forest(rows, change, floor), said)
    effects = [(row, row.left[metric][NONE]) for row in found.rows if NONE in row.left[metric]]
    seen = [_mark(x, row, x_of=row.changes[found.visible]) for row, x in effects if found.visible in row.changes]
    if any(mark.kind == "p" for mark in seen):
        unit = " in 1/255" if found.visible == "rms" else ""
        line = found.noise_line(metric)
        said = (
            "Protection against visibility. Dashed: the noise controls, from clean pictures on; a dot below that line "
        )
        said += f"protects no better than noise that is as visible{grey}"
        labels = f"visibility: {found.visible}{unit}", change
        yield Figure(f"{name}-visibility", svg.scatter(seen, labels, floor, line), said)
    cost = [
        _mark(x, row, x_of=row.costs["seconds"]) for row, x in effects if row.costs.get("seconds") and not row.control
    ]
    if len(cost) > 1:
        labels = "seconds to protect the pictures of a victim", change
        yield Figure(f"{name}-cost", svg.scatter(cost, labels, floor, log=True), f"Protection against cost{grey}")
    if points := curve_points(board, metric):
        few = dict(list(points.items())[:CURVES])
        left_out = f"; {len(points) - len(few)} more are in the table" if len(points) > len(few) else ""
        labels = "training steps (multiple of the setting)", metric_text(metric, board.metrics[metric])
        said = f"Along the thief's training, means over victims{left_out}"
        yield Figure(f"{name}-curve", svg.curves(few, labels), said)


def _ends(row: Standing, metric: str) -> Iterator[tuple[str, Interval]]:
    left = row.left[metric]
    if NONE in left:
        yield ("c" if row.control else "p"), left[NONE]
    if WORST in left:
        yield "w", left[WORST]


def _mark(x: Interval, row: Standing, kind: str = "", x_of: float = 0.0) -> Mark:
    return Mark(row.name, x_of, x.mean, x.low, x.high, kind or ("c" if row.control else "p"))
