"""One cell's record as a table for the terminal, or as plain text."""

from __future__ import annotations

import io
import math

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from udpbench.results import flags
from udpbench.results.intervals import Interval
from udpbench.results.record import ARMS, MetricInfo, Record, metrics_of, of_edits
from udpbench.results.stats import derived, differences, no_residual, victim

WIDTH = 100
ARROW = {"up": "↑", "down": "↓"}
_FIRST = 20  # characters kept for the arm's name
_COLUMN = 12  # and for a metric, padding included


def significant(x: float, digits: int = 3, signed: bool = False) -> str:
    """``x`` to ``digits`` significant digits, without an exponent where it can be read.

    1234 -> 1230, 0.05678 -> 0.0568.
    """
    if x == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(x)))
    x = round(x, places)
    places = digits - 1 - math.floor(math.log10(abs(x)))  # rounding may have added a digit: 9.999 -> 10.0
    text = f"{x:.{max(places, 0)}f}" if -7 < places < digits + 4 else f"{x:.{digits - 1}e}"
    return f"+{text}" if signed and x > 0 else text


def interval_text(x: Interval | None) -> str:
    """Mean and interval: "+0.12 [+0.05, +0.19]"; without an interval the number of victims, "+0.12 (1 victim)"."""
    if x is None:
        return "-"
    mean = significant(x.mean, signed=True)
    if x.low is None or x.high is None:
        return f"{mean} ({x.victims} victim{'s' if x.victims > 1 else ''})"
    if abs(x.mean) < 1e-12 * (x.high - x.low):  # what rounding leaves of a mean that is 0
        mean = "0"
    return f"{mean} [{significant(x.low, signed=True)}, {significant(x.high, signed=True)}]"


def box_of(knowledge: dict[str, bool]) -> str:
    """What the owner knew of the thief's models.

    White (VAE, UNet and prompt), black (neither VAE nor UNet), else grey box.
    """
    if all(knowledge.get(k, False) for k in ("same_vae", "same_unet", "same_prompt")):
        return "white box"
    return "grey box" if knowledge.get("same_vae") or knowledge.get("same_unet") else "black box"


def cell_table(record: Record, width: int = WIDTH) -> RenderableType:
    """The whole cell.

    A table of arms by metrics (in blocks that fit ``width``), what follows from it, flags.
    """
    head = Text(_title(record), style="bold")
    if record["status"] == "failed":
        return Group(head, Text(f"failed: {last_line(record['error'])}", style="red"))
    info = metrics_of([record])
    names = list(info)
    columns = max(1, (width - _FIRST) // _COLUMN)
    blocks = [_block(record, {n: info[n] for n in names[i : i + columns]}) for i in range(0, len(names), columns)]
    raised = [*record["flags"], *(f for f in flags.of_record(record) if f not in record["flags"])]
    raised += [] if of_edits(record) else [flags.NO_SEED_SD]  # one cell is one victim
    notes = [Text(line, style="dim") for line in _notes(record)]
    return Group(head, *blocks, *notes, *(Text(f"! {flag}", style="yellow") for flag in raised))


def plain(record: Record, width: int = WIDTH) -> str:
    """``cell_table`` without colour, every line at most ``width`` characters, no trailing blanks."""
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(cell_table(record, width))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def last_line(traceback: str | None) -> str:
    """The last line of a traceback that says anything."""
    lines = [line for line in (traceback or "").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no traceback"


def _title(record: Record) -> str:
    cell = record["cell"]
    subject, seed = victim(record)
    models = f"{cell['surrogate']} -> {cell['victim']}, {box_of(record['knowledge'])}"
    names = f"{cell['protect']} ({cell['budget']}) / {cell['attack']} / {cell['task']}"
    return f"{names} on {cell['data']} {subject}, seed {seed}; {models}; {record['label']}"


def _block(record: Record, info: dict[str, MetricInfo]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=False)
    table.add_column("arm", min_width=14)
    for name, about in info.items():
        table.add_column(_header(name, about), justify="right", min_width=8, overflow="fold")
    for arm in (a for a in ARMS if a in record["arms"]):
        scores = record["arms"][arm]["metrics"]
        table.add_row(arm, *(significant(scores[n]["value"]) if n in scores else "-" for n in info))
        if best := _best_row(record, arm, info):
            table.add_row("  thief's best", *best)
    table.add_section()
    for name, (arm, base) in derived(record).items():
        table.add_row(name, *(_single(differences([record], arm, base, n).values()) for n in info), style="bold")
    table.add_row("recovery", *("n/a" for _ in info))
    return table


def _best_row(record: Record, arm: str, info: dict[str, MetricInfo]) -> list[str]:
    best = thiefs_best(record, arm)
    return [f"{significant(best[n][1])} @{best[n][0]}x" if n in best else "-" for n in info] if best else []


def thiefs_best(record: Record, arm: str) -> dict[str, tuple[str, float]]:
    """Metric -> (multiple of the steps, score there) that the thief would stop at, if the arm has a curve.

    Chosen on validation references: by the metric's own score there ("curve_validation"), and for a metric that has
    none (a judge's) where the first metric that has one is best. Without any, on the reported scores themselves, which
    flatters the thief.
    """
    part = record["arms"].get(arm)
    if part is None or not part["curve"]:
        return {}
    curve, validated = part["curve"], part.get("curve_validation", {})
    wants = {metric: score["better_protected"] for metric, score in part["metrics"].items()}
    stops = {m: stop for m in wants if (stop := _best_stop(validated, m, wants[m]))}
    usual = next(iter(stops.values()), None)
    picked = {m: stops.get(m) or usual or _best_stop(curve, m, wants[m]) for m in wants}
    return {m: (stop, curve[stop][m]) for m, stop in picked.items() if stop and m in curve.get(stop, {})}


def _best_stop(side: dict[str, dict[str, float]], metric: str, better_protected: str) -> str | None:
    points = {stop: side[stop][metric] for stop in sorted(side, key=float) if metric in side[stop]}
    return (min if better_protected == "up" else max)(points, key=points.__getitem__) if points else None


def _header(name: str, about: MetricInfo) -> str:
    """The metric's name broken at its underscores, marked * if primary, with an arrow for what the owner wants."""
    lines = [""]
    for word in f"{name}{'*' if about['primary'] else ''} {ARROW[about['better_protected']]}".replace("_", "_\0").split(
        "\0"
    ):
        lines = [*lines[:-1], lines[-1] + word] if len(lines[-1] + word) <= _COLUMN - 2 else [*lines, word]
    return "\n".join(line for line in lines if line)


def _single(found: object) -> str:
    values = list(found)  # type: ignore[call-overload]
    return significant(values[0], signed=True) if values else "-"


def _notes(record: Record) -> list[str]:
    lines = ["* primary; arrows: what the owner wants; effect, residual: + is what the owner wants"]
    alone = "one victim has no interval (udpbench.results.report puts victims together)"
    lines.append(f"recovery n/a: {no_residual(record) or alone}")
    if any(part["curve"] and not part.get("curve_validation") for part in record["arms"].values()):
        lines.append("thief's best chosen on the reported references, not on validation references: flatters the thief")
    for arm, measured in sorted(record["perturbation"].items()):
        lines.append(f"change of {arm}: " + ", ".join(f"{k} {significant(v)}" for k, v in sorted(measured.items())))
    absent: dict[tuple[str, str], list[str]] = {}
    for arm in (a for a in ARMS if a in record["arms"]):
        for metric, why in sorted(record["arms"][arm]["absent"].items()):
            absent.setdefault((metric, why), []).append(arm)
    for (metric, why), arms in absent.items():
        some = "" if len(arms) == len(record["arms"]) else f" ({', '.join(arms)})"
        lines.append(f"absent: {metric}{some}: {why}")
    return lines
