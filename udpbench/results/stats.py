"""From records to claims: signed differences between arms, their summaries, and paired comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from udpbench.results.intervals import Interval, Key, Recovery, generator, paired_interval, recovery
from udpbench.results.record import CONTROLS, DIRECTIONS, Record, metrics_of, of_edits, score_of

_VICTIM = ("subject", "seed")


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
        low = self.effect.low if self.effect else None
        return low is not None and self.floor is not None and low > max(self.floor, 0.0)


@dataclass(frozen=True)
class Side:
    """One side of a comparison: its ``name``, and ``arm`` of its ``records``."""

    name: str
    records: list[Record]
    arm: str


@dataclass(frozen=True)
class Comparison:
    """Paired difference a - b on the same victims; positive: after ``a`` the owner is better off.

    ``a`` and ``b`` are protections, or attacks on the same protection. ``unpaired``: victims only one side has.
    """

    condition: dict[str, str]
    metric: str
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
    if better_protected not in DIRECTIONS:
        raise ValueError(f"better_protected: unknown {better_protected!r}; allowed are {', '.join(DIRECTIONS)}")
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
    attacked = [record for record in records if arm == "protected" and "purified" in record["arms"]]
    effects = differences(records, arm, "clean", metric)
    residuals = differences(attacked, *derived(attacked[0])["residual"], metric) if attacked else {}
    back = recovery(effects, residuals, floor, deepcopy(rng))
    if attacked and not residuals:
        back = Recovery(None, f"n/a: {no_residual(attacked[0]) or f'{metric} is absent'}")
    effect, residual = (paired_interval(found, deepcopy(rng)) if found else None for found in (effects, residuals))
    return Summary(effect, residual, back, floor)


def compare(
    records: Sequence[Record], protect_a: str, protect_b: str, arm: str = "protected", seed: int = 0
) -> list[Comparison]:
    """Paired differences ``protect_a`` - ``protect_b`` of ``arm``, one per condition and metric.

    ``arm`` is "protected" or "purified". ``protect_b`` may be a control arm ("noise", "noise_rms"): if no record has a
    protection of that name, it is that arm of ``protect_a``'s own records. Pairs agree in everything but the
    protection; for "protected" the attack does not matter. Raises ValueError for an unknown arm or protection.
    """
    if arm not in ("protected", "purified"):
        raise ValueError(f"compare: unknown arm {arm!r}; allowed are protected, purified")
    names = {r["cell"]["protect"] for r in records}
    control = protect_b in CONTROLS and protect_b not in names
    unknown = {protect_a, *(() if control else (protect_b,))} - names
    if unknown:
        raise ValueError(f"compare: no record of protection {min(unknown)!r}; there are {', '.join(sorted(names))}")
    if control and arm != "protected":
        return []  # noise is never attacked
    found = []
    for condition, group in _conditions(records, ("protect", *(("attack", "purifier") if arm == "protected" else ()))):
        a, b = (Side(name, [r for r in group if r["cell"]["protect"] == name], arm) for name in (protect_a, protect_b))
        found += paired(condition, a, Side(protect_b, a.records, protect_b) if control else b, seed)
    return found


def compare_attacks(records: Sequence[Record], attack_a: str, attack_b: str, seed: int = 0) -> list[Comparison]:
    """Paired differences between what is left of a protection after ``attack_a`` and after ``attack_b``, one per
    condition, protection and metric; positive: ``attack_b`` gives the thief more.

    "none" is the protected pictures as they are, so that attack - none is what the attack gives back (negative) or
    spoils. Pairs agree in everything but the attack.
    """

    def left_by(attack: str, group: list[Record]) -> Side:
        if attack == "none":
            return Side(attack, group, "protected")
        return Side(attack, [r for r in group if r["cell"]["attack"] == attack], "purified")

    every = _conditions(records, ("attack",))
    return [
        c for names, group in every for c in paired(names, left_by(attack_a, group), left_by(attack_b, group), seed)
    ]


def paired(condition: Mapping[str, str], a: Side, b: Side, seed: int = 0) -> list[Comparison]:
    """The comparison of two sides for every metric that both have of some victim."""
    found = []
    for metric, info in metrics_of([*a.records, *b.records]).items():
        left, right = values(a.records, a.arm, metric), values(b.records, b.arm, metric)
        pairs = {k: sign(info["better_protected"]) * (left[k] - right[k]) for k in left.keys() & right.keys()}
        if pairs:
            rng = generator(seed, "compare", *condition.items(), metric, a.arm, a.name, b.name)
            unpaired = len(left.keys() ^ right.keys())
            interval = paired_interval(pairs, rng)
            found.append(Comparison(dict(condition), metric, a.arm, a.name, b.name, interval, unpaired))
    return found


def _conditions(records: Sequence[Record], leave: Sequence[str]) -> list[tuple[dict[str, str], list[Record]]]:
    """(condition, its records) of records that differ in subject, seed and the names ``leave`` only."""
    groups: dict[tuple[tuple[str, str], ...], list[Record]] = {}
    for record in records:
        cell = sorted((k, str(v)) for k, v in record["cell"].items() if k not in (*leave, *_VICTIM))
        groups.setdefault((("label", record["label"]), *cell), []).append(record)
    return [(dict(key), group) for key, group in groups.items()]
