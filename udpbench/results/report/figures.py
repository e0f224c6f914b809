"""The figures of a board on one metric."""

from __future__ import annotations

import re
from collections.abc import Iterator

from udpbench.results.intervals import Interval
from udpbench.results.report import charts
from udpbench.results.report.arms import curve_points
from udpbench.results.report.charts import Mark
from udpbench.results.report.render import Figure
from udpbench.results.report.standings import WORST, Standing, Standings
from udpbench.results.report.worst import NONE
from udpbench.results.words import metric_text, significant

CURVES = 8  # lines in a figure


def figures(found: Standings, metric: str, number: int) -> Iterator[Figure]:
    """Intervals of effect and worst case, protection against visibility and against cost, curves; of what is there."""
    board, name = found.board, re.sub(r"[^A-Za-z0-9_]", "_", f"board{number}-{metric}")
    floor, change = board.floors[metric], f"{metric}: s - s(clean), + is better protected"
    grey = "" if floor is None else f"; grey: within {significant(floor)}, what an effect must exceed"
    marks = {row.name: [_mark(x, row, kind) for kind, x in _ends(row, metric)] for row in found.rows}
    if rows := {row: found for row, found in marks.items() if found}:
        worst = "; ring: worst case over attacks" if found.has_worst(metric) else ""
        said = f"Effect with 95 % interval (dot; square: a control){worst}{grey}"
        yield Figure(name, charts.forest(rows, change, floor), said)
    effects = [(row, row.left[metric][NONE]) for row in found.rows if NONE in row.left[metric]]
    seen = [_mark(x, row, x_of=row.changes[found.visible]) for row, x in effects if found.visible in row.changes]
    if any(mark.kind == "p" for mark in seen):
        unit = " in 1/255" if found.visible == "rms" else ""
        line = found.noise_line(metric)
        said = "Protection against visibility. Dashed: the noise controls, from clean pictures on; a dot below that "
        said += f"line protects no better than noise that is as visible{grey}"
        labels = f"visibility: {found.visible}{unit}", change
        yield Figure(f"{name}-visibility", charts.scatter(seen, labels, floor, line), said)
    paid = [(row, x) for row, x in effects if row.costs.get("seconds") and not row.control]
    cost = [_mark(x, row, x_of=row.costs["seconds"]) for row, x in paid]
    if len(cost) > 1:
        labels = "seconds to protect the pictures of a victim", change
        yield Figure(f"{name}-cost", charts.scatter(cost, labels, floor, log=True), f"Protection against cost{grey}")
    if points := curve_points(board, metric):
        few = dict(list(points.items())[:CURVES])
        left_out = f"; {len(points) - len(few)} more are in the table" if len(points) > len(few) else ""
        labels = "training steps (multiple of the setting)", metric_text(metric, board.metrics[metric])
        said = f"Along the thief's training, means over victims{left_out}"
        yield Figure(f"{name}-curve", charts.curves(few, labels), said)


def _ends(row: Standing, metric: str) -> Iterator[tuple[str, Interval]]:
    left = row.left[metric]
    if NONE in left:
        yield ("c" if row.control else "p"), left[NONE]
    if WORST in left:
        yield "w", left[WORST]


def _mark(x: Interval, row: Standing, kind: str = "", x_of: float = 0.0) -> Mark:
    return Mark(row.name, x_of, x.mean, x.low, x.high, kind or ("c" if row.control else "p"))
