"""Figures of a report, as PNG bytes that are the same for the same records."""

from __future__ import annotations

import io

from matplotlib.figure import Figure as Drawing

from udpbench.results.report.arms import curve_points
from udpbench.results.report.boards import Board
from udpbench.results.report.render import Figure
from udpbench.results.words import metric_text


def figures(board: Board, number: int) -> list[Figure]:
    """Effects and residuals with intervals and the seed SD, and the curves over training length if there are any."""
    found = []
    for metric in board.ranked_by:
        if any(row.summaries[metric].effect for row in board.rows):
            caption = f"{metric}: effect (dot) and residual (cross) with 95 % intervals; grey: within the seed SD"
            found.append(Figure(f"board{number}-{metric}", _effects(board, metric), caption))
        if points := curve_points(board, metric):
            caption = f"{metric} over training length; arrow: direction of better protection"
            drawn = _curve(points, metric_text(metric, board.metrics[metric]))
            found.append(Figure(f"board{number}-{metric}-curve", drawn, caption))
    return found


def _effects(board: Board, metric: str) -> bytes:
    rows = board.rows[::-1]
    drawing = Drawing(figsize=(7, 1.2 + 0.32 * len(rows)), layout="constrained")
    axes = drawing.subplots()
    if (floor := board.floors[metric]) is not None:
        axes.axvspan(-floor, floor, color="0.9", zorder=0)
    axes.axvline(0, color="0.5", linewidth=0.8)
    for y, row in enumerate(rows):
        summary = row.summaries[metric]
        for found, up, style, colour in ((summary.effect, 0.1, "o", "C0"), (summary.residual, -0.1, "x", "C3")):
            if found is not None:
                axes.plot(found.mean, y + up, style, color=colour, markersize=5)
            if found is not None and found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [y + up] * 2, color=colour, linewidth=1.4)
    names = [row.protect if row.control else f"{row.protect} / {row.attack}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_xlabel(f"{metric}, difference to clean (+: better protected)", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    return _png(drawing)


def _curve(points: dict[str, list[tuple[float, float]]], metric: str) -> bytes:
    drawing = Drawing(figsize=(6, 3.2), layout="constrained")
    axes = drawing.subplots()
    for name, line in points.items():
        axes.plot([x for x, _ in line], [y for _, y in line], marker="o", markersize=4, linewidth=1.3, label=name)
    axes.set_xlabel("training steps (multiple of the setting)", fontsize=8)
    axes.set_ylabel(metric, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7, loc="best")
    return _png(drawing)


def _png(drawing: Drawing) -> bytes:
    out = io.BytesIO()
    no_version = {"Software": None}  # equal records, equal bytes
    drawing.savefig(out, format="png", dpi=110, metadata=no_version)
    return out.getvalue()
