"""From records to claims: signed differences between arms, and their summaries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from udpbench.core.component import check_choice
from udpbench.results.intervals import Interval, Key, Recovery, paired_interval, recovery
from udpbench.results.record import of_edits, score_of
from udpbench.results.schema import DIRECTIONS, Record


@dataclass(frozen=True)
class Summary:
    """One metric of one condition (all victims of one protection, attack, task, ...); ``floor``: what an effect must
    exceed to be claimed, None if unknown."""

    effect: Interval | None
    residual: Interval | None
    recovery: Recovery
    floor: float | None

    @property
    def claimed(self) -> bool:
        """Whether the effect's interval lies above the floor and above zero."""
        return self.effect is not None and self.effect.exceeds(self.floor)


def derived(record: Record) -> dict[str, tuple[str, str]]:
    """What follows from arms: name -> (arm, the arm it is compared with).

    What the attack costs by itself is no merit of the protection, so a residual is taken from ``clean_attacked``; but
    scores of edits are distances to the clean arm's edits already, and distances in different directions do not
    subtract: there it is taken from ``clean``, where those scores are perfect.
    """
    base = "clean" if of_edits(record) else "clean_attacked"
    return {"effect": ("protected", "clean"), "residual": ("purified", base)}


def no_residual(record: Record) -> str | None:
    """Why a record has no residual, by its arms."""
    base = derived(record)["residual"][1]
    if "purified" not in record["arms"]:
        return "not attacked"
    return None if base in record["arms"] else f"no arm {base}"


def sign(better_protected: str) -> int:
    """+1 if better protection raises the score ("up"), -1 if it lowers it ("down"); ValueError for other words."""
    check_choice("better_protected: unknown", better_protected, DIRECTIONS)
    return 1 if better_protected == "up" else -1


def victim(record: Record) -> Key:
    """The (subject, seed) of a record."""
    return str(record["cell"]["subject"]), int(record["cell"]["seed"])


def values(records: Iterable[Record], arm: str, metric: str) -> dict[Key, float]:
    """Victim -> score of ``arm``.

    Records that share an arm (clean, noise) count once: the first that has it.
    """
    found: dict[Key, float] = {}
    for record in records:
        if (score := score_of(record, arm, metric)) is not None:
            found.setdefault(victim(record), float(score["value"]))
    return found


def size_of(records: Iterable[Record], metric: str) -> float:
    """The largest absolute score: what scores are rounded to, and so differences, is relative to it."""
    scores = (score_of(record, arm, metric) for record in records for arm in record["arms"])
    return max((abs(float(score["value"])) for score in scores if score is not None), default=0.0)


def differences(records: Iterable[Record], arm: str, base: str, metric: str) -> dict[Key, float]:
    """Victim -> s(arm) - s(base) of the same record, signed so that + is better protected.

    Victims lacking one are left out.
    """
    found: dict[Key, float] = {}
    for record in records:
        a, b = score_of(record, arm, metric), score_of(record, base, metric)
        if a is not None and b is not None:
            found.setdefault(victim(record), sign(a["better_protected"]) * (float(a["value"]) - float(b["value"])))
    return found


def summarise(
    records: Sequence[Record], metric: str, floor: float | None, rng: np.random.Generator, arm: str = "protected"
) -> Summary:
    """Effect, residual and recovery of one condition's ``records``; of a control ``arm`` the effect only.

    Each draws from ``rng`` as it is given, so that an effect has one interval, whatever else is asked of it.
    """
    size = size_of(records, metric)
    attacked = [record for record in records if arm == "protected" and "purified" in record["arms"]]
    effects = differences(records, arm, "clean", metric)
    residuals = differences(attacked, *derived(attacked[0])["residual"], metric) if attacked else {}
    back = recovery(effects, residuals, floor, deepcopy(rng), size)
    if attacked and not residuals:
        back = Recovery(None, f"n/a: {no_residual(attacked[0]) or f'{metric} is absent'}")
    both = (effects, residuals)
    effect, residual = (paired_interval(found, deepcopy(rng), size=size) if found else None for found in both)
    return Summary(effect, residual, back, floor)
