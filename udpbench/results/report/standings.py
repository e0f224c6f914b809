"""One row a protection: what it is worth with no attack, under each attack and in the worst case, how visible it is and
what it costs. Leaderboards, heat maps and figures show these numbers; figures.csv has them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product
from statistics import fmean

from pandas import DataFrame

from udpbench.benchmark.arms import CONTROLS
from udpbench.results.intervals import Interval, Key, adjusted_means, paired_interval, subjects_mean
from udpbench.results.record import grouped
from udpbench.results.report.arms import arm_name
from udpbench.results.report.boards import COSTS, SHARED, Board, protect_costs
from udpbench.results.report.choose import is_control
from udpbench.results.report.worst import NONE, left_by_attack, most_met, worst
from udpbench.results.schema import Record
from udpbench.results.stats import differences, victim

WORST = "worst case"
SEVERAL = "(mean of n): over n clean_attacked arms of a victim: the attack is given other pictures for each protection."
NO_PROTECTION = "no protection"  # the attacks on clean pictures
VISIBLE = ("lpips_alex", "lpips_vgg", "lpips_squeeze", "dist_lite1", "rms")  # what visibility is measured by: the first
MEASURES = (*VISIBLE, "linf", "psnr", "ssim")
COLUMNS = [*SHARED, "protect", "control", *MEASURES, *COSTS, "metric", "attack", "difference", "low", "high", "victims"]


@dataclass(frozen=True)
class Standing:
    """One protection, or what protections are compared with.

    ``left``: metric -> attack (``NONE``, those that were run, ``WORST``) -> s - s(clean), signed so that + is better
    protected; ``values``: the same victim by victim, but for the worst case. ``over``: metric -> the attacks that the
    worst case is over, ``NONE`` not among them; ``taken``: those that it takes, and of how many victims. ``changes``:
    what its pictures measure against the clean ones, mean of the subjects' means; ``costs`` as of ``protect_costs``.
    ``several``: attack -> of how many arms of a victim ``left`` is the mean, if that is more than one.
    """

    name: str
    control: bool
    records: Sequence[Record]
    left: Mapping[str, Mapping[str, Interval]]
    values: Mapping[str, Mapping[str, Mapping[Key, float]]] = field(default_factory=dict)
    over: Mapping[str, Sequence[str]] = field(default_factory=dict)
    taken: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    changes: Mapping[str, float] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    several: Mapping[str, int] = field(default_factory=dict)

    def effect_beside(self, metric: str, attack: str) -> float | None:
        """The effect on the victims that met ``attack`` (``WORST``: those of the worst case) where these are fewer than
        the effect is of: what the attack left is of this one. None where all met it."""
        values = self.values.get(metric, {})
        effects = values.get(NONE, {})
        of = self.over.get(metric, ()) if attack == WORST else (attack,)
        met = {victim: x for victim, x in effects.items() if all(victim in values.get(name, ()) for name in of)}
        return subjects_mean(met) if 0 < len(met) < len(effects) else None


@dataclass(frozen=True)
class Standings:
    """Everybody on a ``board``."""

    board: Board

    @cached_property
    def rows(self) -> list[Standing]:
        """Protections in the board's order, the one with the largest effect first; noise controls;
        ``NO_PROTECTION``."""
        records = [record for record in self.board.records if "protected" in record["arms"]]
        by_name = grouped(records, lambda record: record["cell"]["protect"])
        found = [*(self._protection(name, part) for name, part in sorted(by_name.items())), *self._controls()]

        def place(row: Standing) -> tuple[bool, float]:
            effects = (left[NONE].mean for left in row.left.values() if NONE in left)
            mean = next(effects, -math.inf) if row.control else self.board.order.get(row.name, -math.inf)
            return row.control, -mean

        return [*sorted(found, key=place), *self.unprotected()]

    @cached_property
    def attacks(self) -> dict[str, list[str]]:
        """Metric -> the attacks that were run, the one first that leaves least, as if all had met the same protections
        of the same victims; those last that only noise controls met, which are no protections."""
        found = {}
        for metric in self.board.ranked_by:
            left: dict[str, dict[tuple[str, str, int], float]] = {}
            every = {attack for row in self.rows for attack, values in row.values.get(metric, {}).items() if values}
            for row in (row for row in self.rows if not row.control):
                for attack, values in row.values[metric].items():
                    left.setdefault(attack, {}).update({(row.name, *victim): x for victim, x in values.items()})
            means = adjusted_means(left)
            found[metric] = sorted(every - {NONE}, key=lambda attack: (means.get(attack, math.inf), attack))
        return found

    def has_worst(self, metric: str) -> bool:
        """Whether somebody's worst case is known: two victims met an attack."""
        return any(WORST in row.left[metric] for row in self.rows)

    @cached_property
    def visible(self) -> str:
        """The measure of how visible a protection is: that of a perceptual budget, else the first there is."""
        scores = {r["facts"]["budget"].get("score", "") for r in self.board.records if r["facts"]["budget"]}
        measured = [row.changes for row in self.rows if row.changes]
        return next((m for m in (*sorted(scores), *VISIBLE) if any(m in changes for changes in measured)), "")

    def noise_line(self, metric: str) -> list[tuple[float, float]]:
        """(visibility, effect) of the noise controls at every budget of the same data, task, victim and protected
        fraction, from (0, 0): the clean pictures. One that takes after a protection has a point for each of these."""
        points = {(0.0, 0.0)}
        fraction = float(self.board.names["protected_fraction"])
        alike = [record for record in self.board.alike if record["facts"]["protected_fraction"] == fraction]
        for arm in CONTROLS:
            made = [record for record in alike if arm in record["arms"]]
            for part in grouped(made, partial(_budget_and_name, arm)).values():
                effects, seen = differences(part, arm, "clean", metric), _changes(arm, part).get(self.visible)
                points |= {(seen, subjects_mean(effects))} if effects and seen is not None else set()
        return sorted(points)

    # -- one row -------------------------------------------------------------------------------------------------------

    def _protection(self, name: str, part: Sequence[Record]) -> Standing:
        left: dict[str, dict[str, Interval]] = {}
        values, taken, over = {}, {}, {}
        for metric in self.board.ranked_by:
            values[metric] = by_attack = left_by_attack(part, metric)
            size, met = self.board.sizes[metric], most_met(by_attack)
            left[metric] = {
                a: paired_interval(x, self.board.rng(name, metric), size=size) for a, x in by_attack.items() if x
            }
            if (found := worst(met, self.board.rng(name, metric, kind="worst"), size)) is not None:
                left[metric][WORST], taken[metric] = found
                over[metric] = [attack for attack in met if attack != NONE]
        control = is_control(part[0])
        costs = {} if control else protect_costs(name, part)
        return Standing(name, control, part, left, values, over, taken, _changes("protected", part), costs)

    def _controls(self) -> Iterator[Standing]:
        """The controls that are not rows of their own, too."""
        own = {r["arms"]["protected"]["key"] for r in self.board.records if "protected" in r["arms"] and is_control(r)}
        for row in self.board.rows:
            keys = {record["arms"][row.arm]["key"] for record in row.records}
            if not row.control or row.arm == "clean_attacked" or keys <= own:
                continue
            effects = {m: row.summaries[m].effect for m in self.board.ranked_by}
            left = {m: {NONE: x} if x else {} for m, x in effects.items()}
            values = {m: {NONE: differences(row.records, row.arm, "clean", m)} for m in self.board.ranked_by}
            yield Standing(row.protect, True, row.records, left, values, changes=_changes(row.arm, row.records))

    def unprotected(self) -> Iterator[Standing]:
        """What the attacks do to clean pictures."""
        records = [record for record in self.board.records if "clean_attacked" in record["arms"]]
        left: dict[str, dict[str, Interval]] = {metric: {} for metric in self.board.ranked_by}
        by_attack = grouped(records, lambda record: record["cell"]["attack"])
        several: dict[str, int] = {}
        for metric, (attack, part) in product(left, by_attack.items()):
            if found := _damage(part, metric):
                means = {victim: fmean(of.values()) for victim, of in found.items()}
                rng, size = self.board.rng(attack, metric), self.board.sizes[metric]
                left[metric][attack] = paired_interval(means, rng, size=size)
                several[attack] = max(several.get(attack, 1), *map(len, found.values()), 1)
        if records:
            several = {attack: n for attack, n in several.items() if n > 1}
            yield Standing(NO_PROTECTION, True, records, left, several=several)


def _damage(records: Sequence[Record], metric: str) -> dict[Key, dict[str, float]]:
    """Victim -> key of its clean_attacked arm -> what one attack does to its clean pictures. An attack that is given
    what was made for a protection does something else for each."""
    found: dict[Key, dict[str, float]] = {}
    for record in records:
        for of, x in differences([record], "clean_attacked", "clean", metric).items():
            found.setdefault(of, {}).setdefault(record["arms"]["clean_attacked"]["key"], x)
    return found


def _budget_and_name(arm: str, record: Record) -> tuple[str, str]:
    return record["cell"]["budget"], arm_name(arm, **record["cell"])


def _changes(arm: str, records: Sequence[Record]) -> dict[str, float]:
    found: dict[str, dict[Key, float]] = {}
    for record in records:
        for measure, x in record["perturbation"].get(arm, {}).items():
            found.setdefault(measure, {}).setdefault(victim(record), x)
    return {measure: subjects_mean(values) for measure, values in found.items()}


def of_several(row: Standing, attack: str) -> str:
    """What is added to a number that is the mean over several arms of a victim."""
    return f" (mean of {row.several[attack]})" if attack in row.several else ""


def frame(found: Sequence[Standings]) -> DataFrame:
    """Every number behind the figures, unrounded."""
    rows = []
    for board, row in ((standings.board, row) for standings in found for row in standings.rows):
        head = {"label": board.label, **board.names, "protect": row.name, "control": row.control}
        head |= {name: row.changes.get(name) for name in MEASURES} | {name: row.costs.get(name) for name in COSTS}
        for metric, left in row.left.items():
            for attack, x in left.items():
                number = {"metric": metric, "attack": attack, "difference": x.mean, "low": x.low, "high": x.high}
                rows.append(head | number | {"victims": x.victims})
    return DataFrame(rows, columns=COLUMNS, dtype=object)
