"""What attacks leave of protections, do to clean pictures and cost, and which cheaper one leaves less."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from udpbench.results.intervals import Interval, Key, adjusted_means, paired_interval
from udpbench.results.record import grouped
from udpbench.results.report.boards import ARROW, NO_CLAIM, Board
from udpbench.results.report.choose import is_control, under
from udpbench.results.report.render import Section, table
from udpbench.results.report.standings import SEVERAL, Standings, of_several
from udpbench.results.report.worst import choices
from udpbench.results.schema import Record, StageCost
from udpbench.results.stats import differences
from udpbench.results.words import interval_text, mean_text

CHEAPER = 0.5  # an attack is cheaper than another if its purification takes less than this part of the other's seconds
_TEXT = (
    "Left is what the thief is worse off than with clean pictures after the attack, s(purified) - s(clean), over the "
    "protections that met it; damage to clean pictures is s(clean_attacked) - s(clean): + is worse for the thief. "
    "Beaten by: of the attacks that take less than half as long the one that leaves least on the same victims, chosen "
    "for each subject on the other subjects, and how much less; † the interval does not lie above zero: no claim. "
    "Costs are those of purifying a victim's pictures and of training on them, with what the attack does there: "
    "seconds, and the peak memory of the process; means over the stages that are known."
)
_Left = Mapping[tuple[str, Key], float]  # (protection, victim) -> what an attack leaves


def attack_costs(board: Board) -> Section | None:
    """A row for each attack, the one first that leaves least as if all had met the same protections of the same
    victims; None where nothing was attacked."""
    attacked = [r for r in board.records if r["arms"].keys() & {"purified", "clean_attacked"}]
    by_attack = grouped(attacked, lambda record: record["cell"]["attack"])
    clean = next(Standings(board).unprotected(), None)
    seconds = {attack: _seconds(part) for attack, part in by_attack.items()}
    left = {metric: {attack: _left(part, metric) for attack, part in by_attack.items()} for metric in board.ranked_by}
    units = [{a: {(p, *v): x for (p, v), x in of.items()} for a, of in found.items()} for found in left.values()]
    means = next(filter(None, map(adjusted_means, units)), {})  # by the first metric of which something is left
    rows = {}
    for attack, part in by_attack.items():
        row = {"attack": attack}
        for metric, found in left.items():
            rng = board.rng(metric, attack, kind="attacked")
            named = f"{metric} {ARROW[board.metrics[metric]['better_protected']]}"
            cheaper = {name: found[name] for name in found if seconds[name] < CHEAPER * seconds[attack]}
            row[f"{named} left"] = interval_text(_interval(found[attack], rng, board.sizes[metric]))
            damage = clean.left[metric].get(attack) if clean else None
            row[f"{named} damage"] = interval_text(damage) + (of_several(clean, attack) if clean and damage else "")
            row[f"{named} beaten by"] = _best(found[attack], cheaper, rng, board.sizes[metric])
        rows[attack] = row | _cost(part, "attack", "purify") | _cost(part, "train", "train")
    if not rows:
        return None
    in_order = [rows[attack] for attack in sorted(rows, key=lambda name: (means.get(name, math.inf), name))]
    text = [_TEXT, SEVERAL] if clean and clean.several else [_TEXT]
    return Section("Attacks: damage and cost", 4, text, [table(in_order, ("attack",))], in_latex=True)


def _left(records: Sequence[Record], metric: str) -> _Left:
    """Of the records of one attack; without the noise controls."""
    by_protect = grouped((r for r in records if not is_control(r)), lambda record: record["cell"]["protect"])
    return {
        (protect, victim): x
        for protect, part in by_protect.items()
        for victim, x in differences(part, "purified", "clean", metric).items()
    }


def _best(mine: _Left, others: Mapping[str, _Left], rng: np.random.Generator, size: float) -> str:
    """The name of that one of ``others`` that leaves least where both were run and how much less than ``mine``; "-" if
    none leaves less.

    Of those that met most victims; which, is chosen as in the worst case: the best of many on the same victims would
    seem better than ``mine`` by chance. A single victim leaves nothing to choose on.
    """
    less = {
        name: _by_victim({key: mine[key] - found[key] for key in mine.keys() & found.keys()})
        for name, found in others.items()
    }
    most = max(map(len, less.values()), default=0)
    if not most:
        return "-"
    less = {name: found for name, found in less.items() if len(found) == most}
    chosen = choices({name: {victim: -x for victim, x in found.items()} for name, found in less.items()})
    best = max(less, key=lambda name: fmean(less[name].values()))
    taken = chosen or dict.fromkeys(less[best], best)
    x = paired_interval({victim: less[name][victim] for victim, name in taken.items()}, rng, size=size)
    if x.mean <= 0:
        return "-"
    counts = Counter(taken.values()).most_common()
    names = counts[0][0] if len(counts) == 1 else ", ".join(f"{name} ({n})" for name, n in counts)
    return f"{names}: {interval_text(x)}{'' if chosen and x.exceeds(0.0) else f' {NO_CLAIM}'}"


def _by_victim(found: _Left) -> dict[Key, float]:
    """A victim counts once, with the mean over the protections that it met."""
    by_victim = grouped(found, lambda key: key[1])
    return {victim: fmean(found[key] for key in keys) for victim, keys in by_victim.items()}


def _interval(found: _Left, rng: np.random.Generator, size: float) -> Interval | None:
    """The mean over victims with its interval; ``size``: that of the scores."""
    return paired_interval(_by_victim(found), rng, size=size) if found else None


def _stages(records: Sequence[Record], kind: str) -> list[StageCost]:
    """The distinct stages of the records of one attack; ``kind`` as of ``under``."""
    named = [(under(kind, r["cell"]["protect"], r["cell"]["attack"]), r["stages"]) for r in records]
    return list({s["key"]: s for names, stages in named for s in stages if s["name"] in names}.values())


def _seconds(records: Sequence[Record]) -> float:
    """Of a purification; infinity if none is known: what purifies nothing costs a training of its own."""
    return fmean(known) if (known := [stage["seconds"] for stage in _stages(records, "attack")]) else math.inf


def _cost(records: Sequence[Record], kind: str, verb: str) -> dict[str, str]:
    stages = _stages(records, kind)
    seconds, memory = (mean_text(stage[name] for stage in stages) for name in ("seconds", "peak_mb"))
    return {f"{verb} (s)": seconds, f"{verb} (MB)": memory}
