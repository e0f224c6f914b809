"""Is this number to be believed?

Each check returns one short sentence, or None where it has nothing to object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from udpbench.core.provenance import DIRTY
from udpbench.results.record import Record, of_edits
from udpbench.results.stats import sign

LEARNT = 0.30  # the clean victim must cover this share of the window from pretrained to upper bound
NO_SEED_SD = "no seed SD: no subject has clean victims of two seeds"
NO_NOISE = "no floor: edits are held against those of the arm noise, which is missing"
RUINED = 0.30  # an attack may cost clean data this share of the window


def window_share(pretrained: float, upper_bound: float, value: float) -> float:
    """Where ``value`` lies between pretrained (0) and upper bound (1)."""
    return (value - pretrained) / (upper_bound - pretrained)


def did_not_learn(record: Record) -> str | None:
    """The clean victim covers under 30 % of the window on a primary score, or there is no window."""
    for metric, wants, at in _primary(record, "pretrained", "upper_bound", "clean"):
        if not has_window(wants, at):
            return f"no window: upper bound is no better than pretrained on {metric}"
        share = window_share(at["pretrained"], at["upper_bound"], at["clean"])
        if share < LEARNT:
            covers = f"clean covers {share:.0%} of the pretrained-upper bound window on {metric}"
            return f"victim did not learn: {covers} ({LEARNT:.0%} needed)"
    return None


def saturated(record: Record) -> str | None:
    """The protected victim is worse than one that never trained: more protection could not be seen."""
    for metric, wants, at in _primary(record, "pretrained", "protected"):
        if sign(wants) * (at["protected"] - at["pretrained"]) > 0:
            return f"protected past the pretrained floor (saturated) on {metric}"
    return None


def attack_ruins_clean(record: Record) -> str | None:
    """The attack costs clean data over 30 % of the window: it is no attack."""
    for metric, wants, at in _primary(record, "pretrained", "upper_bound", "clean", "clean_attacked"):
        if has_window(wants, at):
            lost = (at["clean"] - at["clean_attacked"]) / (at["upper_bound"] - at["pretrained"])
            if lost > RUINED:
                return f"attack ruins clean data: it costs {lost:.0%} of the pretrained-upper bound window on {metric}"
    return None


def budget_exceeded(record: Record) -> str | None:
    """The saved PNGs of the protection or of its noise control measure more than the budget."""
    found = _budget(record)
    if found is None:
        return None
    norm, levels = found
    for arm in ("protected", "noise"):
        measured = record["perturbation"].get(arm, {}).get(norm)
        if measured is not None and measured > levels * (1 + 1e-6):
            return f"budget exceeded: {arm} measures {norm} {measured:.4g} levels, allowed {levels:g}"
    return None


def cross_device(records: Sequence[Record]) -> str | None:
    """Numbers that are compared were made on different devices."""
    devices = sorted({stage["device"] for record in records for stage in record["stages"]})
    return f"cross-device comparison: {', '.join(devices)}" if len(devices) > 1 else None


def no_seed_sd(floors: Iterable[float | None]) -> str | None:
    """No subject has clean victims of two seeds, so that nothing can be claimed.

    ``floors``: of every metric, see ``intervals.seed_sd``.
    """
    return None if any(floor is not None for floor in floors) else NO_SEED_SD


def few_subjects(records: Sequence[Record]) -> str | None:
    """Two subjects cannot stand for a population.

    ``records``: those of one condition.
    """
    subjects = {r["cell"]["subject"] for r in records}
    return f"few subjects: intervals rest on {len(subjects)}" if len(subjects) < 3 else None


def unequal_sets(record: Record) -> str | None:
    """Arms have different numbers of pictures: scores that depend on how many there are do not compare."""
    sizes = {arm: max((s["n"] for s in part["metrics"].values()), default=0) for arm, part in record["arms"].items()}
    known = {arm: n for arm, n in sizes.items() if n}
    if len(set(known.values())) < 2:
        return None
    return (
        f"sets of different sizes: {', '.join(f'{arm} {n}' for arm, n in known.items())}; only kernel distances compare"
    )


def nothing_primary(record: Record) -> str | None:
    """No score by which victims are judged could be measured: no other check can object to anything."""
    scores = [score for part in record["arms"].values() for score in part["metrics"].values()]
    return "no primary score could be measured" if scores and not any(s["primary"] for s in scores) else None


def dirty_tree(record: Record) -> str | None:
    """The code was not a commit when the record was written, or when a stage was done that it rests on."""
    if record["provenance"].get("dirty"):
        return "dirty tree: the code differs from the recorded commit"
    kinds = sorted({s["name"].partition(" ")[0] for s in record["stages"] if str(s["commit"]).endswith(DIRTY)})
    return f"dirty tree: done by code that is in no commit: {', '.join(kinds)}" if kinds else None


def of_record(record: Record) -> list[str]:
    """Every objection to one cell by itself; this is what the record's "flags" hold."""
    checks = (
        did_not_learn,
        saturated,
        attack_ruins_clean,
        budget_exceeded,
        unequal_sets,
        nothing_primary,
        dirty_tree,
    )
    found = [check(record) for check in checks]
    return [sentence for sentence in (*found, cross_device([record])) if sentence is not None]


def of_group(records: Sequence[Record], floors: Mapping[str, float | None]) -> list[str]:
    """Objections to what is said of several victims of one condition together; ``floors``: metric -> seed SD."""
    no_floor = no_seed_sd(floors.values())
    if no_floor and of_edits(*records):
        no_floor = NO_NOISE
    found = (no_floor, few_subjects(records), cross_device(records))
    return [sentence for sentence in found if sentence is not None]


def _primary(record: Record, *arms: str) -> Iterator[tuple[str, str, dict[str, float]]]:
    """(metric, better_protected, arm -> value) of every primary metric that all ``arms`` have."""
    if any(arm not in record["arms"] for arm in arms):
        return
    measured = [record["arms"][arm]["metrics"] for arm in arms]
    for metric, score in sorted(measured[0].items()):
        if score["primary"] and all(metric in m for m in measured):
            yield (
                metric,
                score["better_protected"],
                {arm: m[metric]["value"] for arm, m in zip(arms, measured, strict=True)},
            )


def has_window(wants: str, at: dict[str, float]) -> bool:
    """A perfect victim is better for the thief than an pretrained one."""
    return sign(wants) * (at["pretrained"] - at["upper_bound"]) > 0


def _budget(record: Record) -> tuple[str, float] | None:
    """(norm as the perturbation is measured, eps) of a budget of a known kind; None for others."""
    budget = record["facts"]["budget"]
    return ("linf" if budget["kind"] == "linf" else "rms_max", budget["eps"]) if budget else None
