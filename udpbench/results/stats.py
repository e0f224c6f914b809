"""From records to claims: signed differences between arms, their summaries, and comparisons of protections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from udpbench.results.intervals import Interval, Key, Recovery, generator, paired_interval, recovery
from udpbench.results.record import Record, metrics_of, of_edits, score_of

CONTROLS = ("noise", "noise_rms")  # arms that a protection can be compared with
_VICTIM = ("subject", "seed")
_Side = tuple[str, list[Record], str]  # of a comparison: its name, its records, their arm


@dataclass(frozen=True)
class Summary:
    """One metric of one condition (all victims of one protection, attack, task, ...)."""

    metric: str
    better_protected: str
    effect: Interval | None
    residual: Interval | None
    recovery: Recovery
    floor: float | None


@dataclass(frozen=True)
class Comparison:
    """Paired difference a - b on the same victims; positive: after ``a`` the owner is better off.

    ``a`` and ``b`` are protections, or attacks on the same protection. ``unpaired``: victims only one side has.
    """

    condition: dict[str, str]
    metric: str
    better_protected: str
    arm: str
    a: str
    b: str
    difference: Interval
    unpaired: int


def derived(record: Record) -> dict[str, tuple[str, str]]:
    """What follows from arms: name -> (arm, the arm it is compared with).

    What the attack costs by itself is no merit of the protection, so a residual is taken from ``clean_attacked``; but
    scores of edits are distances to the clean arm's edits already, and distances in different directions do not
    subtract: there it is taken from ``clean``, where those scores are perfect.
    """
    return {
        "effect": ("protected", "clean"),
        "residual": ("purified", "clean" if of_edits(record) else "clean_attacked"),
    }


def no_residual(record: Record) -> str | None:
    """Why a record has no residual, by its arms."""
    base = derived(record)["residual"][1]
    if "purified" not in record["arms"]:
        return "not attacked"
    return None if base in record["arms"] else f"no arm {base}"


def sign(better_protected: str) -> int:
    """+1 if the owner wants the score higher, -1 if lower."""
    if better_protected not in ("up", "down"):
        raise ValueError(f"better_protected: unknown {better_protected!r}; allowed are higher, lower")
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
        score = score_of(record, arm, metric)
        if score is not None:
            found.setdefault(victim(record), float(score["value"]))
    return found


def differences(records: Iterable[Record], arm: str, base: str, metric: str) -> dict[Key, float]:
    """Victim -> s(arm) - s(base) of the same record, signed so that + is what the owner wants.

    Victims lacking one are left out.
    """
    found: dict[Key, float] = {}
    for record in records:
        a, b = score_of(record, arm, metric), score_of(record, base, metric)
        if a is not None and b is not None:
            found.setdefault(victim(record), sign(a["better_protected"]) * (float(a["value"]) - float(b["value"])))
    return found


def summarise(
    records: Sequence[Record], metric: str, better_protected: str, floor: float | None, rng: np.random.Generator
) -> Summary:
    """Effect, residual and recovery of one condition's ``records``.

    Each draws from ``rng`` as it is given, so that an effect has one interval, whatever else is asked of it.
    """
    effects = differences(records, "protected", "clean", metric)
    residuals = differences(records, *derived(records[0])["residual"], metric) if records else {}
    back = recovery(effects, residuals, floor, deepcopy(rng))
    attacked = next((r for r in records if "purified" in r["arms"]), None)
    if attacked and not residuals:
        back = Recovery(None, f"n/a: {no_residual(attacked) or f'{metric} is absent'}")
    return Summary(
        metric,
        better_protected,
        paired_interval(effects, deepcopy(rng)) if effects else None,
        paired_interval(residuals, deepcopy(rng)) if residuals else None,
        back,
        floor,
    )


def compare(
    records: Sequence[Record], protect_a: str, protect_b: str, arm: str = "protected", seed: int = 0
) -> list[Comparison]:
    """Paired differences ``protect_a`` - ``protect_b`` of ``arm``, one per condition and metric.

    ``arm`` is "protected" or "purified". ``protect_b`` may be a control arm ("noise", "noise_rms"): if no record has a
    protection of that name, it is that arm of ``protect_a``'s own records. Pairs agree in everything but the
    protection; for "protected" the attack does not matter.
    """
    if arm not in ("protected", "purified"):
        raise ValueError(f"compare: unknown arm {arm!r}; allowed are protected, purified")
    names = {r["cell"]["protect"] for r in records}
    control = protect_b not in names and protect_b in CONTROLS
    unknown = {protect_a, *(() if control else (protect_b,))} - names
    if unknown:
        raise ValueError(f"compare: no record of protection {min(unknown)!r}; there are {', '.join(sorted(names))}")
    if control and arm != "protected":
        return []  # noise is never attacked
    leave = {"protect", *_VICTIM} | ({"attack", "purifier"} if arm == "protected" else set())
    found = []
    for condition, group in _conditions(records, leave).items():
        left = [r for r in group if r["cell"]["protect"] == protect_a]
        right = left if control else [r for r in group if r["cell"]["protect"] == protect_b]
        sides = (protect_a, left, arm), (protect_b, right, protect_b if control else arm)
        found += _paired(condition, arm, *sides, seed)
    return found


def compare_attacks(records: Sequence[Record], attack_a: str, attack_b: str, seed: int = 0) -> list[Comparison]:
    """Paired differences between what is left of a protection after ``attack_a`` and after ``attack_b``, one per
    condition, protection and metric; positive: ``attack_b`` gives the thief more.

    "none" is the protected pictures as they are, so that attack - none is what the attack gives back (negative) or
    spoils. Pairs agree in everything but the attack.
    """
    found = []
    for condition, group in _conditions(records, {"attack", *_VICTIM}).items():
        found += _paired(condition, "purified", _left_by(attack_a, group), _left_by(attack_b, group), seed)
    return found


def _left_by(attack: str, group: list[Record]) -> _Side:
    if attack == "none":
        return attack, group, "protected"
    return attack, [r for r in group if r["cell"]["attack"] == attack], "purified"


def _paired(condition: tuple[tuple[str, str], ...], arm: str, a: _Side, b: _Side, seed: int) -> list[Comparison]:
    """The comparison of two sides for every metric that both have of some victim."""
    found = []
    for metric, info in metrics_of([*a[1], *b[1]]).items():
        left, right = values(a[1], a[2], metric), values(b[1], b[2], metric)
        pairs = {k: sign(info["better_protected"]) * (left[k] - right[k]) for k in left.keys() & right.keys()}
        if pairs:
            interval = paired_interval(pairs, generator(seed, "compare", *condition, metric, arm, a[0], b[0]))
            rest = len(left.keys() ^ right.keys())
            found.append(Comparison(dict(condition), metric, info["better_protected"], arm, a[0], b[0], interval, rest))
    return found


def _conditions(records: Sequence[Record], leave: set[str]) -> dict[tuple[tuple[str, str], ...], list[Record]]:
    """Records that differ in the names ``leave`` only."""
    groups: dict[tuple[tuple[str, str], ...], list[Record]] = {}
    for record in records:
        cell = sorted((k, str(v)) for k, v in record["cell"].items() if k not in leave)
        names = (("label", record["label"]), *cell)
        groups.setdefault(names, []).append(record)
    return groups
