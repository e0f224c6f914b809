"""Leaderboards: protections by attacks for one task, data set, budget and set of models; never across labels."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import fmean
from typing import Any

import numpy as np
from pandas import DataFrame

from udpbench.benchmark.arms import ARMS, CONTROLS
from udpbench.results.intervals import (
    Interval,
    Key,
    adjusted_means,
    generator,
    seed_sd,
    seeds_behind,
    subjects_in,
    subjects_mean,
)
from udpbench.results.record import MetricInfo, grouped, metrics_of, of_edits
from udpbench.results.report.choose import is_control, own_purifier
from udpbench.results.report.render import Section, table
from udpbench.results.schema import CELL, EXTRA, Record
from udpbench.results.stats import Summary, derived, differences, size_of, summarise, values, victim
from udpbench.results.words import (
    ARROW,
    box_of,
    interval_text,
    mean_text,
    percent,
    recovery_text,
    significant,
    victims_text,
)

GRADIENTS = ("unet_image", "vae_image")  # counts of image gradients
COSTS = {"gradients": "image gradients", "seconds": "protect (s)", "memory": "protect (MB)"}  # of a victim's pictures
_ROW = ("protect", "attack", "subject", "seed")  # what may differ within a board
_OF_EDITS = ("reseeded", "clean_attacked")  # how much edits differ for no reason, and by the attack alone
NO_CLAIM = "†"
_NUMBERS = ("effect", "residual", "recovery")
SHARED = ("label", *(name for name in (*CELL, *EXTRA) if name not in _ROW), "preset")  # by all of a board
_COLUMNS = [
    *(*SHARED, "protect", "attack", "control"),
    *("metric", "better_protected", "victims", *(f"{x}{end}" for x in _NUMBERS for end in ("", "_low", "_high"))),
    *("recovery_reason", "floor"),
]


@dataclass(frozen=True)
class Row:
    """One protection under one attack, or a control ``arm``; ``summaries``: metric -> numbers."""

    protect: str
    attack: str
    records: list[Record]
    summaries: dict[str, Summary]
    arm: str = "protected"

    @property
    def control(self) -> bool:
        """Whether this is no protection but what protections are compared with."""
        return self.arm != "protected"


@dataclass(frozen=True)
class Board:
    """Everything that may be ranked together.

    ``names``: what all its ``records`` share. ``every``: where clean victims of further seeds are looked for.
    ``shown``: metrics to show, none: the primary ones.
    """

    label: str
    names: dict[str, str]
    records: list[Record]
    every: Sequence[Record]
    shown: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Task, data, budget, models and what else all records share."""
        return f"{self.subtitle}, {self.models}"

    @property
    def models(self) -> str:
        """The owner's, the thief's and the purifier's."""
        n = self.names
        own = " or the attack's own" if any(map(own_purifier, self.records)) else ""
        return f"{n['surrogate']} -> {n['victim']}, purifier {n['purifier']}{own}"

    @property
    def subtitle(self) -> str:
        """The title without the models."""
        n = self.names
        prompt = f", owner prompt {n.get('owner_prompt', 'unknown')}"
        protected = float(n["protected_fraction"])
        fraction = f", {percent(protected)} protected" if protected < 1 else ""
        preset = "" if n["preset"] == "matched" else f", {n['preset']} settings"
        return f"{n['task']} on {n['data']}, {n['budget']}{prompt}{fraction}{preset}"

    @cached_property
    def metrics(self) -> dict[str, MetricInfo]:
        """Every measured metric, primary ones first."""
        return metrics_of(self.records)

    @property
    def primary(self) -> list[str]:
        """The primary metrics, or all if there are none."""
        return [m for m, info in self.metrics.items() if info["primary"]] or list(self.metrics)

    @property
    def ranked_by(self) -> list[str]:
        """The metrics shown in the leaderboard: those asked for, else the primary ones."""
        return [m for m in self.shown if m in self.metrics] if self.shown else self.primary

    def rng(self, *key: str, kind: str = "") -> np.random.Generator:
        """The generator of the bootstrap of what ``key`` names on this board; ``kind``: of numbers, where several have
        that key."""
        return generator(0, *filter(None, [kind]), self.label, *self.names.items(), *key)

    @cached_property
    def floors(self) -> dict[str, float | None]:
        """Metric -> what an effect must exceed to be claimed, or None.

        The seed SD: pooled spread over seeds of clean victims, which know nothing of budget, protection or surrogate,
        so that all count which share data, task and victim. Edits start from the same noise in every arm and do not
        spread, so that any change at all would count: they have to exceed the mean effect of noise.
        """
        if of_edits(*self.records):
            effects = {m: differences(self.records, "noise", "clean", m) for m in self.metrics}
            return {m: subjects_mean(found) if found else None for m, found in effects.items()}
        return {m: seed_sd(values(self.alike, "clean", m)) for m in self.metrics}

    def floor_text(self, metric: str) -> str:
        """The floor as tables print it: a seed SD with its degrees of freedom, for it may be of one subject only."""
        floor, edits = self.floors[metric], of_edits(*self.records)
        freedom, subjects = (0, 0) if edits else seeds_behind(values(self.alike, "clean", metric))
        behind = f" (df {freedom}, {subjects} subject{'s' if subjects > 1 else ''})" if freedom else ""
        if floor is None:
            return f"{metric}: none{', for the seeds agree' if freedom else ''}{behind}"
        return f"{metric} {significant(floor)}{behind}"

    @cached_property
    def sizes(self) -> dict[str, float]:
        """Metric -> the largest absolute score."""
        return {m: size_of(self.records, m) for m in self.metrics}

    @cached_property
    def alike(self) -> list[Record]:
        """The records of the same data, task and victim, whatever the budget, the surrogate and the owner's prompt."""
        same = {(name, self.names[name]) for name in ("data", "task", "victim")}
        return [record for record in self.every if record["label"] == self.label and same <= _names(record).items()]

    @cached_property
    def rows(self) -> list[Row]:
        """Protections by attacks, in their ``order``, the one with the largest effect first; then controls."""
        found = []
        for arm in ("protected", *CONTROLS, *(_OF_EDITS if of_edits(*self.records) else ())):
            having = [record for record in self.records if arm in record["arms"]]
            for (protect, attack), part in sorted(grouped(having, partial(_called, arm)).items()):
                rng = {m: self.rng(protect, m) for m in self.metrics}  # one effect, one interval for all attacks
                summaries = {m: summarise(part, m, self.floors[m], rng[m], arm) for m in self.metrics}
                found.append(Row(protect, attack, part, summaries, arm))

        def place(row: Row) -> tuple[bool, float]:
            return (True, 0.0) if row.control else (False, -self.order.get(row.protect, -math.inf))

        return sorted(found, key=place)

    @cached_property
    def order(self) -> dict[str, float]:
        """Protection -> its effect, on the first metric that ranks and was measured, as if all had met the same
        victims; without the noise controls, whose effects do not go with the victims'."""
        records = [record for record in self.records if "protected" in record["arms"] and not is_control(record)]
        by_name = grouped(records, lambda record: record["cell"]["protect"])
        of = ({p: differences(mine, "protected", "clean", m) for p, mine in by_name.items()} for m in self.ranked_by)
        return next(filter(None, map(adjusted_means, of)), {})


def boards(records: Sequence[Record], every: Sequence[Record] | None = None) -> list[Board]:
    """``records`` grouped; sorted by label, then by names with their numbers as numbers, boards without any protection
    last.

    Protections with released settings are not ranked beside those matched in steps and work. ``every``: where clean
    victims of further seeds may be found, if that is more than ``records``.
    """
    groups = grouped(records, lambda record: (record["label"], tuple(sorted(_names(record).items()))))
    every = records if every is None else every

    def place(board: Board) -> tuple[Any, ...]:
        protected = any("protected" in record["arms"] and not is_control(record) for record in board.records)
        return board.label, not protected, [_in_order(text) for item in board.names.items() for text in item]

    return sorted((Board(label, dict(names), group, every) for (label, names), group in groups.items()), key=place)


def _in_order(text: str) -> list[str | float]:
    """A text with its numbers as numbers: 8 before 16."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


def _names(record: Record) -> dict[str, str]:
    """What the records of a board have in common. A purifier that was chosen for the attack is none of it: the board's
    is the model of the rest of the cell."""
    facts = {"preset": record["facts"]["preset"], "protected_fraction": record["facts"]["protected_fraction"]}
    facts |= {"purifier": record["config"]["model"]["name"]} if own_purifier(record) else {}
    return {name: str(value) for name, value in {**record["cell"], **facts}.items() if name not in _ROW}


def _called(arm: str, record: Record) -> tuple[str, str]:
    """What a row calls its protection and its attack."""
    cell: Mapping[str, Any] = record["cell"]
    if arm == "protected":
        return cell["protect"], cell["attack"]
    of = " / ".join(cell[name] for name in ARMS[arm].depends)
    return f"{arm} of {of} (control)" if of else f"{arm} (control)", "none"


def leaderboard(board: Board) -> Section:
    """The ranked table with what is needed to read it."""
    rows = [_cells(row, board) for row in board.rows]
    tables = [table(rows, ("protection", "attack", "box"), f"{board.label}: {board.title}")] if rows else []
    return Section(board.title, 3, _reading(board), tables, in_latex=True)


def _reading(board: Board) -> list[str]:
    listed = ", ".join(map(board.floor_text, board.ranked_by))
    what = "Seed SD (pooled standard deviation of clean victims over seeds)"
    if of_edits(*board.records):
        what = "Noise floor (mean effect of noise; the arm reseeded shows how much edits differ for no reason at all)"
    base = derived(board.records[0])["residual"][1]
    lines = [
        f"{what}: {listed}.",
        f"Effect = s(protected) - s(clean), residual = s(purified) - s({base}), + is better protected; "
        "mean over victims [95 % interval], their number behind it where some lack the score; "
        "recovery = 1 - residual/effect. Arrows: direction of better protection. "
        "Costs: of a victim's pictures together.",
    ]
    if base == "clean":
        lines.append("What the attack does to edits by itself (clean_attacked) counts against the recovery.")
    shown = [row.summaries[m] for row in board.rows for m in board.ranked_by]
    if any(x and not x.exceeds(s.floor) for s in shown for x in (s.effect, s.residual)):
        lines.append(
            f"{NO_CLAIM} no claim: the interval does not lie above the floor, or is of one subject, or there is no "
            "interval or no floor."
        )
    return lines


def claim_text(x: Interval | None, floor: float | None) -> str:
    """An effect, or what is left of it, with its interval, marked if nothing may be claimed of it."""
    return interval_text(x) + (f" {NO_CLAIM}" if x and not x.exceeds(floor) else "")


def of_fewer(x: Interval | None, victims: int) -> str:
    """What is added to a number in a row of ``victims`` that comes from fewer of them: their count."""
    return f" ({x.victims})" if x and 1 < x.victims < victims else ""


def _cells(row: Row, board: Board) -> dict[str, str]:
    box = "/".join(sorted({box_of(record) for record in row.records}))
    victims = {victim(record) for record in row.records}
    cells = {"protection": row.protect, "attack": row.attack, "box": "-" if row.control else box}
    cells["victims"] = victims_text(len(victims), subjects_in(victims))
    for metric in board.ranked_by:
        s, named = row.summaries[metric], f"{metric} {ARROW[board.metrics[metric]['better_protected']]}"
        cells[f"{named} effect"] = claim_text(s.effect, s.floor) + of_fewer(s.effect, len(victims))
        cells[f"{named} residual"] = claim_text(s.residual, s.floor) + of_fewer(s.residual, len(victims))
        cells[f"{named} recovery"] = "-" if row.control else recovery_text(s.recovery)
    cells["rms (/255)"] = mean_text(record["perturbation"].get(row.arm, {}).get("rms") for record in row.records)
    same = [record for record in board.records if record["cell"]["protect"] == row.protect]
    costs = {} if row.control else protect_costs(row.protect, same)
    return cells | {named: mean_text([costs.get(name)]) for name, named in COSTS.items()}


def protect_costs(protect: str, records: Sequence[Record]) -> dict[str, float]:
    """What making a protection costs a victim: ``seconds`` and ``memory`` (MB) of its distinct stages, as measured
    where they were computed, if that is known; ``gradients``, the pictures that went forward and backward through the
    UNet or the autoencoder. Means of what is known.

    Records of older code count a purifier's gradients with the protection's, whose are the least of a victim's.
    """
    stages = [stage for r in records for stage in r["stages"] if stage["name"] == f"protect {protect}"]
    computed = [stage for stage in stages if not stage["cached"]]
    distinct = {stage["key"]: stage for stage in (*reversed(stages), *computed)}.values()
    least: dict[Key, float] = {}
    for record in records:
        work = [record["counts"][kind] for kind in GRADIENTS if kind in record["counts"]]
        if work:
            least[victim(record)] = min(sum(work), least.get(victim(record), math.inf))
    found = {"seconds": [stage["seconds"] for stage in distinct], "gradients": [*least.values()]}
    found["memory"] = [stage["peak_mb"] for stage in distinct if stage["peak_mb"] is not None]
    return {name: fmean(values) for name, values in found.items() if values}


def board_frame(boards: Sequence[Board]) -> DataFrame:
    """Every number behind the leaderboards, all metrics, unrounded."""
    rows = []
    for board, row in [(every, row) for every in boards for row in every.rows]:
        head = {"label": board.label, **board.names, "protect": row.protect, "attack": row.attack}
        for metric, s in row.summaries.items():
            better = board.metrics[metric]["better_protected"]
            numbers = {"control": row.control, "metric": metric, "better_protected": better, "floor": s.floor}
            numbers |= {"victims": s.effect.victims if s.effect else 0, "recovery_reason": s.recovery.reason}
            for name, x in zip(_NUMBERS, (s.effect, s.residual, s.recovery.interval)):
                numbers |= {name: x.mean, f"{name}_low": x.low, f"{name}_high": x.high} if x else {}
            rows.append(head | numbers)
    return DataFrame(rows, columns=_COLUMNS, dtype=object)
