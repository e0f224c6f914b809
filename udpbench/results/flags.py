"""Is this number to be believed?

Each check returns one short sentence, or None where it has nothing to object; docs/beware.md explains them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from udpbench.benchmark.arms import ARMS
from udpbench.core.provenance import DIRTY
from udpbench.results.intervals import subjects_in
from udpbench.results.record import metrics_of, of_edits, score_of, versions
from udpbench.results.schema import BudgetFacts, Record
from udpbench.results.stats import sign, victim
from udpbench.results.words import percent_below

WINDOW = ("pretrained", "clean", "upper_bound")  # no training, the clean victim, a perfect victim
BOUNDED = ("protected", "noise")  # by the budget
LEARNT = 0.30  # the clean victim must cover this fraction of the window from pretrained to upper bound
RUINED = 0.30  # an attack may cost clean data this fraction of the window
NO_SEED_SD = "no seed SD: no subject has clean victims of two seeds"
NO_NOISE = "no noise floor: effects on edits are compared with those of the arm noise, which is missing"
_Scores = Any  # arm -> value of one metric, signed so that + is better protected; or a table with a column for each arm


def covered(at: _Scores, arm: str = "clean") -> Any:
    """Where ``arm`` lies between pretrained (0) and upper_bound (1)."""
    return (at[arm] - at["pretrained"]) / (at["upper_bound"] - at["pretrained"])


def has_window(at: _Scores) -> Any:
    """A perfect victim is better for the thief than a pretrained one."""
    return at["pretrained"] > at["upper_bound"]


def did_not_learn(record: Record) -> str | None:
    """The clean victim covers under 30 % of the window on a primary score; or else one of them has no window."""
    without = ""
    for metric, at in _primary(record, *WINDOW):
        if not has_window(at):
            without = without or f"no window: upper bound is no better than pretrained on {metric}"
        elif covered(at) < LEARNT:
            found = f"{percent_below(covered(at), LEARNT)} of the pretrained-upper bound window on {metric}"
            return f"victim did not learn: clean covers {found} ({LEARNT:.0%} needed)"
    return without or None


def saturated(record: Record) -> str | None:
    """The protected victim is worse than one that never trained: more protection could not be seen."""
    over = [m for m, at in _primary(record, "pretrained", "protected") if at["protected"] > at["pretrained"]]
    return f"saturated: protected is worse for the thief than pretrained on {over[0]}" if over else None


def attack_ruins_clean(record: Record) -> str | None:
    """The attack costs clean data over 30 % of the window: it is no attack."""
    for metric, at in _primary(record, *WINDOW, "clean_attacked"):
        if has_window(at) and (lost := covered(at) - covered(at, "clean_attacked")) > RUINED:
            return f"attack ruins clean data: it costs {lost:.0%} of the pretrained-upper bound window on {metric}"
    return None


def budget_exceeded(record: Record) -> str | None:
    """The saved PNGs of the protection or of its noise control measure more than the budget."""
    if (budget := record["facts"]["budget"]) is None:
        return None
    norm, most, unit = measured_by(budget), budget["eps"], "/255"
    if "distance" in budget:
        most, unit = budget["distance"], ""
    for arm in BOUNDED:
        found = record["perturbation"].get(arm, {}).get(norm)  # one that was not measured keeps a record from others
        if found is not None and (said := beyond(f"{arm} measures {norm}", found, most, unit)):
            return said
    return None


def measured_by(budget: BudgetFacts) -> str:
    """The measure of pictures that a budget bounds; "" for one of no known kind."""
    return budget["score"] if "distance" in budget else {"linf": "linf", "rms": "rms_max"}.get(budget["kind"], "")


def beyond(what: str, found: float, most: float, unit: str = "/255") -> str | None:
    """The sentence on a perturbation that measures more than a budget allows."""
    exceeded = found > most * (1 + 1e-6)
    return f"budget exceeded: {what} {found:.4g}{unit}, allowed {most:g}{unit}" if exceeded else None


def unequal_sets(record: Record) -> str | None:
    """Arms have different numbers of pictures: scores that depend on how many there are do not compare."""
    arms = {arm: part["metrics"].values() for arm, part in record["arms"].items() if part["metrics"]}
    sizes = {arm: max(score["n"] for score in scores) for arm, scores in arms.items()}
    listed = ", ".join(f"{arm} {n}" for arm, n in sizes.items())
    return f"sets of different sizes: {listed}; only kernel distances compare" if len({*sizes.values()}) > 1 else None


def nothing_primary(record: Record) -> str | None:
    """No score by which victims are judged could be measured: no other check can object to anything."""
    scores = [score for part in record["arms"].values() for score in part["metrics"].values()]
    return "no primary score could be measured" if scores and not any(s["primary"] for s in scores) else None


def captions_cut(record: Record) -> str | None:
    """Captions are longer than a text encoder takes: their ends were never read."""
    n = record["facts"].get("captions_cut", 0)
    return f"captions cut: the text encoder does not read the end of {n}" if n else None


def trained_on_references(record: Record) -> str | None:
    """Pictures that scores compare with are training pictures: what was copied counts as learned."""
    shared = record["facts"].get("shared", {})
    listed = ", ".join(f"{n} of {part}" for part, n in shared.items())
    return f"references are training pictures: {listed}" if shared else None


def dirty_tree(record: Record) -> str | None:
    """The code was not a commit when the record was written, or when a stage was done that it rests on."""
    if record["provenance"].get("dirty"):
        files = ", ".join(record["provenance"].get("changed") or ()) or "files that the record does not name"
        return f"dirty tree: not as in the recorded commit: {files}"
    kinds = sorted({s["name"].split()[0] for s in record["stages"] if DIRTY in (s["commit"] or "")})
    return f"dirty tree: done by code that is in no commit: {', '.join(kinds)}" if kinds else None


def cross_device(records: Sequence[Record]) -> str | None:
    """Numbers that are compared were made on different devices."""
    devices = sorted({stage["device"] for record in records for stage in record["stages"]})
    return f"cross-device comparison: {', '.join(devices)}" if len(devices) > 1 else None


def mixed_versions(records: Sequence[Record]) -> str | None:
    """Numbers that are compared were made by several versions of a method, or an arm of one victim several times."""
    found: dict[str, set[int]] = {}
    keys: dict[tuple[str, ...], set[str]] = {}
    for record in records:
        cell: Mapping[str, Any] = record["cell"]
        for role, version in versions(record).items():
            found.setdefault(f"{role} {cell[role]}" if role in cell else role, set()).add(version)
        for arm, part in record["arms"].items():
            # What an attack does to clean pictures depends on the protection, too, where it is given one's pictures.
            depends = ("protect", "attack") if arm == "clean_attacked" else ARMS[arm].depends
            of = (arm, str(cell["subject"]), str(cell["seed"]), *(cell[name] for name in depends))
            keys.setdefault(of, set()).add(part["key"])
    mixed = [f"{name} {', '.join(map(str, sorted(several)))}" for name, several in found.items() if len(several) > 1]
    twice = list(dict.fromkeys(arm for (arm, *_), several in keys.items() if len(several) > 1))
    said = [f"versions of {'; '.join(mixed)}"] if mixed else []
    said += [f"several keys of one victim's {', '.join(twice)}"] if twice else []
    return f"made differently: {'; '.join(said)}" if said else None


def no_seed_sd(floors: Iterable[float | None], edits: bool = False) -> str | None:
    """There is nothing that an effect must exceed, so that nothing can be claimed.

    ``floors``: of every metric, the seed SD, or for ``edits`` the noise floor.
    """
    if any(floor is not None for floor in floors):
        return None
    return NO_NOISE if edits else NO_SEED_SD


def few_subjects(records: Sequence[Record]) -> str | None:
    """Two subjects cannot stand for a population, nor the seeds of a data set that has no subjects for others.

    ``records``: those of one condition.
    """
    if not (n := subjects_in(map(victim, records))):
        return "one data set: intervals rest on its seeds"
    return f"few subjects: intervals rest on {n}" if n < 3 else None


OF_RECORD = (
    *(did_not_learn, saturated, attack_ruins_clean, budget_exceeded),
    *(unequal_sets, nothing_primary, captions_cut, trained_on_references, dirty_tree),
)


def of_record(record: Record) -> list[str]:
    """Every objection to one cell by itself; this is what the record's "flags" hold."""
    return [*filter(None, (*(check(record) for check in OF_RECORD), cross_device([record])))]


def of_group(records: Sequence[Record], floors: Mapping[str, float | None]) -> list[str]:
    """Objections to what is said of several victims of one condition together; ``floors``: metric -> what an effect
    must exceed."""
    found = no_seed_sd(floors.values(), of_edits(*records)), few_subjects(records), cross_device(records)
    return [*filter(None, found)]


def of_board(records: Sequence[Record]) -> list[str]:
    """Objections to comparing what is ranked together."""
    return [*filter(None, (cross_device(records), mixed_versions(records)))]


def _primary(record: Record, *arms: str) -> Iterator[tuple[str, _Scores]]:
    """Every primary metric that all ``arms`` have, with their scores, signed so that + is better protected."""
    for metric, about in metrics_of([record]).items():
        found = {arm: score for arm in arms if (score := score_of(record, arm, metric)) is not None}
        if len(found) == len(arms) and about["primary"]:
            yield metric, {arm: sign(about["better_protected"]) * score["value"] for arm, score in found.items()}
