"""Paired comparisons: of protections, of attacks, and of protections made on different models (transfer)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, cast

from pandas import DataFrame

from udpbench.results.intervals import generator
from udpbench.results.record import CONTROLS, Cell, Record
from udpbench.results.report.boards import NO_CLAIM, Board
from udpbench.results.report.render import Section, table
from udpbench.results.stats import Comparison, compare, compare_attacks, summarise
from udpbench.results.words import ARROW, interval_text, significant

HALF_WIDTH = "95 % interval half-width"
_MODELS = ("surrogate", "victim", "purifier")
_Compared = list[tuple[Comparison, float | None]]  # with what a difference must exceed


def comparisons(board: Board, seed: int = 0) -> Section | None:
    """Paired differences between protections (and to the noise controls) on the metrics that rank.

    None with nothing to compare.
    """
    names = sorted({row.protect for row in board.rows if not row.control})
    controls = [arm for arm in CONTROLS if any(arm in r["arms"] for r in board.records)]
    pairs = [*combinations(names, 2), *((a, c) for a in names for c in controls if c not in names)]
    with_arms = [r for r in board.records if "protected" in r["arms"]]
    found = [c for a, b in pairs for arm in ("protected", "purified") for c in compare(with_arms, a, b, arm, seed)]
    compared = _ranked(found, board)
    text = f"Paired on the same subject and seed; + means a protects better. {_by_chance(compared)}"
    tables = [_table(compared, "arm", _arm, verdict)] if compared else []
    return Section("Paired comparisons", 4, [text], tables, in_latex=True) if tables else None


def attacks(board: Board, seed: int = 0) -> Section | None:
    """What each attack gives back, and which gives back more, on the metrics that rank.

    None where nothing was attacked.
    """
    purified = [r for r in board.records if "purified" in r["arms"]]
    names = sorted({r["cell"]["attack"] for r in purified})
    pairs = [*((a, "none") for a in names), *combinations(names, 2)]
    compared = _ranked([c for pair in pairs for c in compare_attacks(purified, *pair, seed)], board)
    text = (
        "What is left after attack a less what is left after b (none: the protected pictures as they are), paired on "
        f"the same subject and seed; + means that b gives the thief more. {_by_chance(compared)}"
    )
    tables = [_table(compared, "protection", lambda c: c.condition["protect"], attack_verdict)] if compared else []
    return Section("Attacks compared", 4, [text], tables, in_latex=True) if tables else None


def _ranked(found: Sequence[Comparison], board: Board) -> _Compared:
    return [(c, board.floors[c.metric]) for c in found if c.metric in board.ranked_by]


def _arm(c: Comparison) -> str:
    return c.arm if c.arm == "protected" else f"{c.arm}: {c.condition['attack']}"


def _by_chance(compared: _Compared) -> str:
    """How many of the intervals would mislead."""
    intervals = sum(c.difference.low is not None for c, _ in compared)
    expected = significant(0.05 * intervals, 2)
    return f"Without any true difference {expected} of these {intervals} intervals would exclude zero by chance."


def _table(
    compared: _Compared,
    column: str,
    told: Callable[[Comparison], str],
    judged: Callable[[Comparison, float | None], str],
    caption: str = "",
) -> DataFrame:
    """``told``: what stands in ``column``; ``judged``: the verdict."""
    rows = []
    for c, floor in compared:
        half, rest = c.difference.half_width, f" ({c.unpaired} unpaired)" if c.unpaired else ""
        row = {"a - b": f"{c.a} - {c.b}", column: told(c), "metric": c.metric}
        row |= {"difference": interval_text(c.difference), HALF_WIDTH: "-" if half is None else significant(half)}
        rows.append(row | {"victims": f"{c.difference.victims}{rest}", "verdict": judged(c, floor)})
    return table(rows, ("a - b", column, "metric"), caption)


def verdict(c: Comparison, floor: float | None) -> str:
    """What may be said of a comparison of protections."""
    if floor is None:
        return "no floor: nothing claimed"
    if c.difference.low is None:
        return "one victim: nothing claimed"
    if not c.difference.excludes_zero:
        return "no difference shown"
    return f"{c.a if c.difference.mean > 0 else c.b} protects better"


def attack_verdict(c: Comparison, floor: float | None) -> str:
    """What may be said of a comparison of attacks."""
    if floor is None or not c.difference.excludes_zero:
        return verdict(c, floor)
    gains = c.difference.mean < 0
    if c.b == "none":
        return "gives back" if gains else "increases the effect"
    return f"{c.a if gains else c.b} gives back more"


def transfer(boards: Sequence[Board], seed: int = 0) -> list[Section]:
    """One section for every set of boards that agree in all but the models: does a protection made on one model hold
    against a thief with another; none where there is but one surrogate and one victim."""
    alike: dict[tuple[str, ...], list[Board]] = {}
    for board in boards:
        names = (f"{k}={v}" for k, v in sorted(board.names.items()) if k not in _MODELS)
        alike.setdefault((board.label, *names), []).append(board)
    found = [_transfer(group, seed) for group in alike.values()]
    return [section for section in found if section is not None]


def _transfer(group: Sequence[Board], seed: int) -> Section | None:
    """Every record with a protected arm counts, whatever the attack and the purifier: that arm knows neither."""
    records = [r for board in group for r in board.records if "protected" in r["arms"]]
    if len({(r["cell"]["surrogate"], r["cell"]["victim"]) for r in records}) < 2:
        return None
    # Victim's model -> metric -> what an effect must exceed.
    floors: dict[str, dict[str, float | None]] = {}
    for board in group:
        floors[board.names["victim"]] = board.floors | floors.get(board.names["victim"], {})
    metrics = list(dict.fromkeys(m for board in group for m in board.ranked_by))
    first, compared = group[0], _across_surrogates(records, metrics, floors, seed)
    text = [
        "Effect of the protection made on one model (rows) against the thief's victim of another (columns); "
        f"{NO_CLAIM} the interval does not lie above the floor: no claim.",
        f"Paired differences: + means that the first surrogate protects better. {_by_chance(compared)}",
    ]
    caption = f"{first.label}: transfer, {first.subtitle}"
    tables = [_effects(group, records, metric, floors, caption, seed) for metric in metrics]
    tables += [_table(compared, "arm", _arm, verdict, caption)] if compared else []
    return Section(f"Transfer: {first.subtitle}", 3, text, tables, in_latex=True)


def _effects(
    group: Sequence[Board], records: Sequence[Record], metric: str, floors: dict[str, Any], caption: str, seed: int
) -> DataFrame:
    """Protections by surrogates (rows) and victims (columns)."""
    better = next(b.metrics[metric]["better_protected"] for b in group if metric in b.metrics)
    cells: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for record in records:
        cell = record["cell"]
        cells.setdefault((cell["protect"], cell["surrogate"]), {}).setdefault(cell["victim"], []).append(record)
    rows = []
    for (protect, surrogate), by_victim in sorted(cells.items()):
        row = {"protection": protect, "made on": surrogate}
        for victim in sorted(floors):
            rng = generator(seed, "transfer", protect, surrogate, victim, metric)
            found = summarise(by_victim.get(victim, []), metric, floors[victim].get(metric), rng)
            mark = f" {NO_CLAIM}" if found.effect and not found.claimed else ""
            row[f"{metric} {ARROW[better]}: {victim}"] = interval_text(found.effect) + mark
        rows.append(row)
    return table(rows, ("protection", "made on"), caption)


def _across_surrogates(
    records: Sequence[Record], metrics: Sequence[str], floors: dict[str, dict[str, float | None]], seed: int
) -> _Compared:
    """Each protection made on two models, against the same victims."""
    found = []
    for protect in sorted({r["cell"]["protect"] for r in records}):
        named = [_named(r) for r in records if r["cell"]["protect"] == protect]
        for a, b in combinations(sorted({r["cell"]["protect"] for r in named}), 2):
            every = [c for c in compare(named, a, b, seed=seed) if c.metric in metrics]
            found += [(c, floors[c.condition["victim"]].get(c.metric)) for c in every]
    return found


def _named(record: Record) -> Record:
    """The surrogate becomes a part of the protection's name."""
    cell = record["cell"]
    name = {"protect": f"{cell['protect']} of {cell['surrogate']}", "surrogate": ""}
    return cast(Record, {**record, "cell": cast(Cell, {**cell, **name})})
