"""Does a protection made on one model hold against a thief with another: boards that differ in models, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np

from udpbench.intervals import Interval, generator, paired_interval
from udpbench.report.boards import NOT_SHOWN, Board, Row, above_floor
from udpbench.report.document import Section, Table
from udpbench.stats import sign, values
from udpbench.table import ARROW, interval_text, significant

_MODELS = ("surrogate", "victim", "attacker")


def transfer(boards: Sequence[Board], seed: int = 0) -> list[Section]:
    """One section for every set of boards that agree in all but the models; none where there is but one surrogate and
    one victim."""
    alike: dict[tuple[tuple[str, str], ...], list[Board]] = {}
    for board in boards:
        names = ((k, v) for k, v in sorted(board.names.items()) if k not in _MODELS)
        alike.setdefault((("label", board.label), *names), []).append(board)
    return [_section(dict(key), group, seed) for key, group in alike.items() if len(_cells(group)) > 1]


def _section(names: dict[str, str], group: Sequence[Board], seed: int) -> Section:
    held = dict(sorted(_cells(group).items()))
    text = (
        "Effect of the protection made on one model (rows) against the thief's victim of another (columns), as in the "
        f"leaderboards; {NOT_SHOWN} no claim.",
        "Differences are paired on subject and seed; + means that the first surrogate protects better.",
    )
    first = next(iter(held.values()))
    tables = [_effects(held, metric, first.metrics[metric]["owner_wants"]) for metric in first.ranked_by]
    title = f"Transfer: {names['task']} on {names['data']}, {names['budget']}"
    return Section(title, 3, text, (*tables, *_differences(held, first.ranked_by, seed)), in_latex=True)


def _cells(group: Iterable[Board]) -> dict[tuple[str, str], Board]:
    """(surrogate, victim) -> its board; of boards that differ in the attacker the first, for effects know no attack."""
    found: dict[tuple[str, str], Board] = {}
    for board in group:
        if any(not row.control for row in board.rows):
            found.setdefault((board.names["surrogate"], board.names["victim"]), board)
    return found


def _protections(board: Board) -> dict[str, Row]:
    return {row.protect: row for row in reversed(board.rows) if not row.control}


def _effects(held: dict[tuple[str, str], Board], metric: str, wants: str) -> Table:
    surrogates, victims = (sorted({cell[i] for cell in held}) for i in (0, 1))
    names = sorted({name for board in held.values() for name in _protections(board)})
    rows = [
        (name, made_on, *(_effect(held.get((made_on, against)), name, metric) for against in victims))
        for name in names
        for made_on in surrogates
        if any(name in _protections(board) for (s, _), board in held.items() if s == made_on)
    ]
    headers = ("protection", "made on", *(f"{metric} {ARROW[wants]}: {against}" for against in victims))
    return Table(headers, tuple(rows), left=2)


def _effect(board: Board | None, protect: str, metric: str) -> str:
    row = _protections(board).get(protect) if board else None
    found = row.summaries[metric] if row and metric in row.summaries else None
    if found is None or found.effect is None:
        return "-"
    return interval_text(found.effect) + ("" if above_floor(found.effect, found.floor) else f" {NOT_SHOWN}")


def _differences(held: dict[tuple[str, str], Board], metrics: Sequence[str], seed: int) -> list[Table]:
    rows: list[tuple[str, ...]] = []
    for (a, victim), (b, other) in combinations(held, 2):
        if victim != other:
            continue
        left, right = _protections(held[a, victim]), _protections(held[b, victim])
        for name in sorted(left.keys() & right.keys()):
            for metric in metrics:
                found = _difference(
                    left[name], right[name], metric, generator(seed, "transfer", a, b, victim, name, metric)
                )
                if found:
                    least = "-" if found.half_width is None else significant(found.half_width)
                    rows.append((name, f"{a} - {b}", victim, metric, interval_text(found), least, str(found.victims)))
    headers = ("protection", "made on", "victim", "metric", "difference", "smallest shown", "victims")
    return [Table(headers, tuple(rows), left=4)] if rows else []


def _difference(a: Row, b: Row, metric: str, rng: np.random.Generator) -> Interval | None:
    x, y = (values(row.records, "protected", metric) for row in (a, b))
    pairs = {k: sign(a.summaries[metric].owner_wants) * (x[k] - y[k]) for k in x.keys() & y.keys()}
    return paired_interval(pairs, rng) if pairs else None
