"""One cell's record as a table for the terminal."""

from __future__ import annotations

from operator import itemgetter

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from udpbench.benchmark.arms import ARMS
from udpbench.results import flags
from udpbench.results.record import MetricInfo, grouped, metrics_of, of_edits
from udpbench.results.schema import Record
from udpbench.results.stats import derived, differences, no_residual, sign, victim
from udpbench.results.words import SIGNS, box_of, budget_text, last_line, metric_text, significant

WIDTH = 100
_FIRST = 20  # characters kept for the arm's name
_COLUMN = 12  # and for a metric, padding included
_FLATTERS = "thief's best chosen on the reported references, not on validation references: flatters the thief"


def cell_table(record: Record, width: int = WIDTH) -> RenderableType:
    """The whole cell.

    A table of arms by metrics (in blocks that fit ``width`` characters), what follows from it, flags.
    """
    head = Text(_title(record), style="bold")
    if record["status"] == "failed":
        return Group(head, Text(f"failed: {last_line(record['error'])}", style="red"))
    info = list(metrics_of([record]).items())
    columns = max(1, (width - _FIRST) // _COLUMN)
    blocks = [_block(record, dict(info[i : i + columns])) for i in range(0, len(info), columns)]
    raised = [*flags.of_record(record), *([] if of_edits(record) else [flags.NO_SEED_SD])]  # one cell is one victim
    notes = [Text(line, style="dim") for line in (*_notes(record), *_absent(record))]
    return Group(head, *blocks, *notes, *(Text(f"! {flag}", style="yellow") for flag in raised))


def _title(record: Record) -> str:
    cell = record["cell"]
    subject, seed = victim(record)
    budget = budget_text(record["facts"]["budget"], cell["budget"])
    models = f"{cell['surrogate']} -> {cell['victim']}, {box_of(record)}"
    names = f"{cell['protect']} ({budget}) / {cell['attack']} / {cell['task']}"
    data = " ".join(filter(None, (cell["data"], subject)))  # some data sets have no subject
    return f"{names} on {data}, seed {seed}; {models}; {record['label']}"


def _block(record: Record, info: dict[str, MetricInfo]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=False)
    table.add_column("arm", min_width=14)
    for name, about in info.items():
        table.add_column(_header(metric_text(name, about)), justify="right", min_width=8, overflow="fold")
    for arm in _arms(record):
        scores, best = record["arms"][arm]["metrics"], thiefs_best(record, arm)
        table.add_row(arm, *(significant(scores[n]["value"]) if n in scores else "-" for n in info))
        if best:
            shown = (f"{significant(best[n][1])} @{best[n][0]}x" if n in best else "-" for n in info)
            table.add_row("  thief's best", *shown)
    table.add_section()
    for name, pair in derived(record).items():
        found = (next(iter(differences([record], *pair, metric).values()), None) for metric in info)
        table.add_row(name, *("-" if x is None else significant(x, signed=True) for x in found), style="bold")
    table.add_row("recovery", *("n/a" for _ in info))
    return table


def _header(text: str) -> str:
    """The text broken behind its underscores where a line would be too long."""
    lines = [""]
    for word in text.replace("_", "_\0").split("\0"):
        lines = [*lines[:-1], lines[-1] + word] if len(lines[-1] + word) <= _COLUMN - 2 else [*lines, word]
    return "\n".join(line for line in lines if line)


def thiefs_best(record: Record, arm: str) -> dict[str, tuple[str, float]]:
    """Metric -> (step multiplier, score there) at which the thief would stop, if the arm has a curve.

    Chosen on validation references: by the metric's own score there ("curve_validation"), and for a metric that has
    none (a judge's) where the first metric that has one is best. Without any, on the reported scores themselves, which
    flatters the thief.
    """
    part = record["arms"].get(arm)
    if part is None or not part["curve"]:
        return {}
    curve, validated = part["curve"], part.get("curve_validation", {})
    better = {metric: score["better_protected"] for metric, score in part["metrics"].items()}
    stops = {m: stop for m in better if (stop := _best_stop(validated, m, better[m]))}
    usual = next(iter(stops.values()), None)
    picked = {m: stops.get(m) or usual or _best_stop(curve, m, better[m]) for m in better}
    return {m: (stop, curve[stop][m]) for m, stop in picked.items() if stop and m in curve.get(stop, {})}


def _best_stop(side: dict[str, dict[str, float]], metric: str, better_protected: str) -> str | None:
    """The step multiplier at which ``metric`` is best for the thief."""
    stops = [stop for stop in sorted(side, key=float) if metric in side[stop]]
    return min(stops, key=lambda stop: sign(better_protected) * side[stop][metric], default=None)


def _notes(record: Record) -> list[str]:
    alone = "one victim has no interval (python -m udpbench report puts victims together)"
    lines = [f"* primary; {SIGNS}; effect, residual: + is better protected"]
    lines += [f"recovery n/a: {no_residual(record) or alone}"]
    if any(part["curve"] and not part.get("curve_validation") for part in record["arms"].values()):
        lines.append(_FLATTERS)
    for arm, measured in sorted(record["perturbation"].items()):
        lines.append(f"change of {arm}: " + ", ".join(f"{k} {significant(v)}" for k, v in sorted(measured.items())))
    return lines


def _absent(record: Record) -> list[str]:
    """Each metric that is absent, of which arms (unless of all) and why."""
    found = [(missing, arm) for arm in _arms(record) for missing in sorted(record["arms"][arm]["absent"].items())]
    lines = []
    for (metric, why), having in grouped(found, itemgetter(0)).items():
        some = f" ({', '.join(arm for _, arm in having)})" if len(having) < len(record["arms"]) else ""
        lines.append(f"absent: {metric}{some}: {why}")
    return lines


def _arms(record: Record) -> list[str]:
    return [arm for arm in ARMS if arm in record["arms"]]
