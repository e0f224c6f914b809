"""Paired comparisons: of protections, of attacks, and of protections made on different models (transfer)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, product
from typing import NamedTuple

import pandas as pd
from pandas import DataFrame

from udpbench.benchmark.arms import CONTROLS
from udpbench.benchmark.cell import ROLES
from udpbench.results.intervals import Interval, Key, generator, paired_interval
from udpbench.results.record import grouped
from udpbench.results.report.arms import SAME, arm_name, numbers
from udpbench.results.report.boards import NO_CLAIM, Board, claim_text
from udpbench.results.report.render import Section, table
from udpbench.results.stats import sign, summarise
from udpbench.results.words import ARROW, interval_text, mean_text, significant, victims_text

MOST = 500  # pairs in a table that somebody may read
HALF_WIDTH = "95 % interval half-width"
_Judge = Callable[[str, str, Interval, float | None], str]  # a, b, their difference, the floor
_Pair = tuple[str, str, str, str, str]  # a, b, what both share, and the names of the two arms


class _Scored(NamedTuple):
    """A score, with that of the same record's clean arm and what tells this arm from another."""

    value: float
    clean: float
    clean_key: str | None


def compare(
    found: DataFrame, pairs: Iterable[_Pair], board: Board, column: str, judged: _Judge
) -> list[dict[str, str]]:
    """Rows of a table: paired differences a - b on the metrics that rank in ``board``, of every pair that has a victim
    in common; + is better protected after ``a``.

    ``found``: rows as of ``numbers``. ``column``: what stands above that which a and b share. ``judged``: the verdict.
    "unpaired": victims that only one side has. Of records whose clean arms were made differently (by another version)
    is compared what each arm adds to its own.
    """
    scores = found[(found["kind"] == "score") & found["metric"].isin(board.ranked_by)].dropna(subset="value")
    values: dict[tuple[str, str], dict[Key, _Scored]] = {}
    columns = ["metric", "name", "subject", "seed", *_Scored._fields]
    for metric, name, subject, seed, *scored in scores[columns].itertuples(index=False):
        values.setdefault((metric, name), {})[subject, seed] = _Scored(*scored)
    metrics = sorted(board.ranked_by, key=list(board.metrics).index)
    rows = []
    for (a, b, of, left, right), metric in product(pairs, metrics):
        sides = [values.get((metric, name), {}) for name in (left, right)]
        both = sorted(sides[0].keys() & sides[1].keys())
        if not both:
            continue
        way = sign(board.metrics[metric]["better_protected"])
        signed = {victim: way * _difference(sides[0][victim], sides[1][victim]) for victim in both}
        difference = paired_interval(signed, board.rng(metric, a, b, of, kind="compare"), size=board.sizes[metric])
        alone = len(sides[0].keys() ^ sides[1].keys())
        unpaired = f" ({alone} unpaired)" if alone else ""
        row = {"a - b": f"{a} - {b}", column: of, "metric": metric, "difference": interval_text(difference)}
        row |= {
            HALF_WIDTH: mean_text([difference.half_width if difference.ends else None]),
            "victims": f"{victims_text(difference.victims, difference.subjects)}{unpaired}",
        }
        rows.append(row | {"verdict": judged(a, b, difference, board.floors[metric])})
    return rows


def _difference(a: _Scored, b: _Scored) -> float:
    known = a.clean_key is not None and b.clean_key is not None  # else there is nothing else to compare
    return (a.value - a.clean) - (b.value - b.clean) if known and a.clean_key != b.clean_key else a.value - b.value


def comparisons(board: Board) -> Section | None:
    """Paired differences between protections (and to the noise controls) on the metrics that rank.

    None with nothing to compare.
    """
    names = sorted({row.protect for row in board.rows if not row.control})
    controls = [arm for arm in CONTROLS if any(arm in record["arms"] for record in board.records)]
    attacks = sorted({record["cell"]["attack"] for record in board.records})
    arms = {"protected": ("protected", ""), **{f"purified: {attack}": ("purified", attack) for attack in attacks}}
    text, couples = "Paired on the same subject and seed; + means a protects better.", list(combinations(names, 2))
    if len(couples) > MOST:
        text, couples = f"{text} There are too many pairs of protections to list: each is compared with noise.", []
    elif len(arms) * len(couples) > MOST:
        text, arms = f"{text} After the attacks there are too many pairs to list.", {"protected": ("protected", "")}
    pairs = [
        (a, b, of, arm_name(arm, protect=a, attack=attack), arm_name(arm, protect=b, attack=attack))
        for (a, b), (of, (arm, attack)) in product(couples, arms.items())
        if arm != "protected" or not {a, b} & {*controls}  # whose own arms more cells have
    ]
    pairs += [
        (a, control, "protected", arm_name("protected", protect=a), arm_name(control, protect=a))
        for a, control in product(names, controls)
        if a not in controls
    ]
    return _section("Paired comparisons", text, compare(numbers(board), pairs, board, "arm", verdict))


def attacks(board: Board) -> Section | None:
    """What each attack gives back, and which gives back more, on the metrics that rank.

    "none" is the protected pictures as they are, so that attack - none is what the attack gives back (negative) or
    adds. None where nothing was attacked.
    """
    attacked = [record["cell"] for record in board.records if "purified" in record["arms"]]
    protects, names = (sorted({cell[part] for cell in attacked}) for part in ("protect", "attack"))

    def left_by(protect: str, attack: str) -> str:
        return arm_name("protected" if attack == "none" else "purified", protect=protect, attack=attack)

    text = (
        "What is left after attack a less what is left after b (none: the protected pictures as they are), paired on "
        "the same subject and seed; + means that b gives the thief more."
    )
    compared = [*((a, "none") for a in names), *combinations(names, 2)]
    if len(compared) * len(protects) > MOST:
        text, compared = f"{text} Pairs of two attacks are too many to list.", compared[: len(names)]
    pairs = [(a, b, of, left_by(of, a), left_by(of, b)) for (a, b), of in product(compared, protects)]
    return _section("Attacks compared", text, compare(numbers(board), pairs, board, "protection", attack_verdict))


def _section(title: str, text: str, rows: Sequence[dict[str, str]]) -> Section | None:
    return Section(title, 4, [text, *_by_chance(rows)], _tables(rows), in_latex=True) if rows else None


def _by_chance(rows: Sequence[dict[str, str]]) -> list[str]:
    """How many of the intervals would mislead; nothing where there is none."""
    if not (intervals := sum(row[HALF_WIDTH] != "-" for row in rows)):
        return []
    expected = significant(0.05 * intervals, 2)
    return [f"Without any true difference {expected} of these {intervals} intervals would exclude zero by chance."]


def _tables(rows: Sequence[dict[str, str]], caption: str = "") -> list[DataFrame]:
    return [table(rows, list(rows[0])[:3], caption)] if rows else []


def verdict(a: str, b: str, difference: Interval, floor: float | None) -> str:
    """What may be said of protections ``a`` and ``b``; ``floor``: what effects must exceed to be claimed. A difference
    below it is told as such."""
    if floor is None:
        return "no floor: nothing claimed"
    if difference.low is None:
        return "one victim: nothing claimed"
    if difference.ends is None:
        return "victims do not differ: nothing claimed"
    if difference.of_one_subject:
        return "one subject: nothing claimed"
    if not difference.excludes_zero:
        return "no difference shown"
    return f"{a if difference.mean > 0 else b} protects better{_below(difference, floor)}"


def attack_verdict(a: str, b: str, difference: Interval, floor: float | None) -> str:
    """What may be said of attacks ``a`` and ``b`` on one protection."""
    if floor is None or not difference.excludes_zero:
        return verdict(a, b, difference, floor)
    gains = difference.mean < 0
    little = _below(difference, floor)
    if b == "none":
        return f"{'gives back' if gains else 'increases the effect'}{little}"
    return f"{a if gains else b} gives back more{little}"


def _below(difference: Interval, floor: float) -> str:
    return ", by less than the floor" if abs(difference.mean) < floor else ""


def transfer(boards: Sequence[Board]) -> list[Section]:
    """One section for every set of boards that agree in all but the models: does a protection made on one model hold
    against a thief with another; none where there is but one surrogate and one victim."""
    protected = [board for board in boards if any("protected" in record["arms"] for record in board.records)]
    groups = grouped(protected, lambda b: (b.label, *(x for x in b.names.items() if x[0] not in ROLES)))
    models = [{(board.names["surrogate"], board.names["victim"]) for board in group} for group in groups.values()]
    return [_transfer(group) for group, pairs in zip(groups.values(), models) if len(pairs) > 1]


def _transfer(group: Sequence[Board]) -> Section:
    """Every protected arm counts, whatever the attack and the purifier: it knows neither."""
    victims = {board.names["victim"]: board for board in reversed(group)}  # with what is known of it: metrics, floors
    metrics = list(dict.fromkeys(m for board in group for m in board.ranked_by))
    compared = [row for victim, first in sorted(victims.items()) for row in _surrogates(group, victim, first)]
    text = [
        "Effect of the protection made on one model (rows) against the thief's victim of another (columns); "
        f"{NO_CLAIM} no claim: the interval does not lie above the floor, or is of one subject.",
        "Paired differences: + means that the first surrogate protects better.",
        *_by_chance(compared),
    ]
    caption = f"{group[0].label}: transfer, {group[0].subtitle}"
    tables = [*(_effects(group, victims, metric, caption) for metric in metrics), *_tables(compared, caption)]
    return Section(f"Transfer: {group[0].subtitle}", 3, text, tables, in_latex=True)


def _effects(group: Sequence[Board], victims: Mapping[str, Board], metric: str, caption: str) -> DataFrame:
    """Protections by surrogates (rows) and victims (columns)."""
    better = next(b.metrics[metric]["better_protected"] for b in group if metric in b.metrics)
    records = [record for board in group for record in board.records if "protected" in record["arms"]]
    made = grouped(records, lambda record: (record["cell"]["protect"], record["cell"]["surrogate"]))
    rows = []
    for (protect, surrogate), part in sorted(made.items()):
        by_victim = grouped(part, lambda record: record["cell"]["victim"])
        row = {"protection": protect, "made on": surrogate}
        for victim, board in sorted(victims.items()):
            rng = generator(0, "transfer", protect, surrogate, victim, metric)
            found = summarise(by_victim.get(victim, []), metric, board.floors.get(metric), rng)
            row[f"{metric} {ARROW[better]}: {victim}"] = claim_text(found.effect, found.floor)
        rows.append(row)
    return table(rows, ("protection", "made on"), caption)


def _surrogates(group: Sequence[Board], victim: str, first: Board) -> list[dict[str, str]]:
    """Each protection made on two models, against the same victims."""
    parts = [numbers(b).assign(made_on=b.names["surrogate"]) for b in group if b.names["victim"] == victim]
    found = pd.concat(parts).query("arm == 'protected'")
    found = found.assign(name=found["protect"] + " of " + found["made_on"]).drop_duplicates(SAME)
    names = [sorted(set(part["name"])) for _, part in found.groupby("protect")]
    pairs = [(a, b, "protected", a, b) for every in names for a, b in combinations(every, 2)]
    return compare(found, pairs, first, "arm", verdict)
