"""Does a protection made on one model hold against a thief with another: boards that differ in models, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import cast

from udpbench.results.intervals import generator, paired_interval
from udpbench.results.record import Cell, Record
from udpbench.results.report.boards import NOT_SHOWN, Board, above_floor
from udpbench.results.report.document import Section, Table
from udpbench.results.report.sections import COMPARED, by_chance, comparison_row
from udpbench.results.stats import Comparison, compare, differences
from udpbench.results.table import ARROW, interval_text

_MODELS = ("surrogate", "victim", "purifier")


def transfer(boards: Sequence[Board], seed: int = 0) -> list[Section]:
    """One section for every set of boards that agree in all but the models; none where there is but one surrogate and
    one victim."""
    alike: dict[tuple[tuple[str, str], ...], list[Board]] = {}
    for board in boards:
        names = ((k, v) for k, v in sorted(board.names.items()) if k not in _MODELS)
        alike.setdefault((("label", board.label), *names), []).append(board)
    found = ((group, _protected(group)) for group in alike.values())
    return [_section(group, records, seed) for group, records in found if len({_models(r) for r in records}) > 1]


def _models(record: Record) -> tuple[str, str]:
    return record["cell"]["surrogate"], record["cell"]["victim"]


def _protected(group: Sequence[Board]) -> list[Record]:
    """Every record with a protected arm, whatever the attack and the purifier: that arm knows neither."""
    return [r for board in group for r in board.records if "protected" in r["arms"]]


def _section(group: Sequence[Board], records: Sequence[Record], seed: int) -> Section:
    first = group[0]
    metrics = list(dict.fromkeys(m for board in group for m in board.ranked_by))
    compared = _compared(group, records, metrics, seed)
    text = (
        "Effect of the protection made on one model (rows) against the thief's victim of another (columns); "
        f"{NOT_SHOWN} the interval does not lie above the floor: no claim.",
        f"Paired differences: + means that the first surrogate protects better. {by_chance(compared)}",
    )
    caption = f"{first.label}: transfer, {first.subtitle}"
    tables = [_effects(group, records, metric, caption, seed) for metric in metrics]
    rows = tuple(comparison_row(c, floor) for c, floor in compared)
    tables += [Table(COMPARED, rows, caption, left=3)] if rows else []
    return Section(f"Transfer: {first.subtitle}", 3, text, tuple(tables), in_latex=True)


def _effects(group: Sequence[Board], records: Sequence[Record], metric: str, caption: str, seed: int) -> Table:
    """Protections by surrogates (rows) and victims (columns)."""
    victims = sorted({r["cell"]["victim"] for r in records})
    made = sorted({(r["cell"]["protect"], r["cell"]["surrogate"]) for r in records})
    rows = tuple((*who, *(_effect(group, records, *who, victim, metric, seed) for victim in victims)) for who in made)
    wants = next(b.metrics[metric]["better_protected"] for b in group if metric in b.metrics)
    headers = ("protection", "made on", *(f"{metric} {ARROW[wants]}: {victim}" for victim in victims))
    return Table(headers, rows, caption, left=2)


def _effect(
    group: Sequence[Board], records: Sequence[Record], protect: str, surrogate: str, victim: str, metric: str, seed: int
) -> str:
    mine = [r for r in records if r["cell"]["protect"] == protect and _models(r) == (surrogate, victim)]
    found = differences(mine, "protected", "clean", metric)
    if not found:
        return "-"
    effect = paired_interval(found, generator(seed, "transfer", protect, surrogate, victim, metric))
    return interval_text(effect) + ("" if above_floor(effect, _floor(group, victim, metric)) else f" {NOT_SHOWN}")


def _floor(group: Sequence[Board], victim: str, metric: str) -> float | None:
    return next((b.floors[metric] for b in group if b.names["victim"] == victim and metric in b.floors), None)


def _compared(
    group: Sequence[Board], records: Sequence[Record], metrics: Sequence[str], seed: int
) -> list[tuple[Comparison, float | None]]:
    """(comparison, floor) of each protection made on two models, against the same victims."""
    found = []
    for protect in sorted({r["cell"]["protect"] for r in records}):
        named = [_named(r) for r in records if r["cell"]["protect"] == protect]
        for a, b in combinations(sorted({r["cell"]["protect"] for r in named}), 2):
            every = [c for c in compare(named, a, b, seed=seed) if c.metric in metrics]
            found += [(c, _floor(group, c.condition["victim"], c.metric)) for c in every]
    return found


def _named(record: Record) -> Record:
    """The surrogate becomes a part of the protection's name."""
    cell = record["cell"]
    name = {"protect": f"{cell['protect']} of {cell['surrogate']}", "surrogate": ""}
    return cast(Record, {**record, "cell": cast(Cell, {**cell, **name})})
