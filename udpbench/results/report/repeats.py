"""Several records of one cell: whether they agree, which is older, and what they say together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from udpbench.results.agreement import equal
from udpbench.results.record import versions
from udpbench.results.schema import ArmScores, Record


class Disagreement(NamedTuple):
    """A score of one arm, of the same key, that is another number in two records of a cell."""

    cell: str
    arm: str
    metric: str
    values: tuple[float, float]
    files: tuple[Path, Path]

    def __str__(self) -> str:
        (a, b), (one, other) = self.values, self.files
        return f"{self.arm} {self.metric} is {a:.8g} in {one} and {b:.8g} in {other}, records of one cell"


def keys_differ(one: Record, other: Record) -> bool:
    """Whether an arm that both records have is of other pictures in each."""
    mine, others = one["arms"], other["arms"]
    return any(mine[arm]["key"] != others[arm]["key"] for arm in mine.keys() & others.keys())


def disagreements(named: Mapping[Path, Record], one: Path, other: Path) -> Iterator[Disagreement]:
    """Every score that two records both have and that differs by more than rounding."""
    cell: Mapping[str, Any] = named[one]["cell"]
    about = f"{cell['protect']} / {cell['attack']} / {cell['task']} on {cell['data']} {cell['subject']}"
    about += f", {cell['budget']}, seed {cell['seed']}"
    mine, others = named[one]["arms"], named[other]["arms"]
    for arm in (arm for arm in mine if arm in others):
        scores, more = mine[arm]["metrics"], others[arm]["metrics"]
        for metric in sorted(scores.keys() & more.keys()):
            a, b = float(scores[metric]["value"]), float(more[metric]["value"])
            if not equal(a, b):
                yield Disagreement(about, arm, metric, (a, b), (one, other))


def older(files: Mapping[Path, Record], one: Path, other: Path) -> Path | None:
    """The one of two files whose parts are of older versions; None if these do not say."""
    if not (changed := _changed(files, one, other)) or len({before for before, _ in changed.values()}) > 1:
        return None
    return one if next(iter(changed.values()))[0] else other


def same_cell(files: Mapping[Path, Record], one: Path, other: Path) -> str:
    """That two files are of one cell, and which is older: by the versions of its parts, else by when it was written."""
    said = f"{one} and {other} are the same cell with different keys"
    if first := older(files, one, other):
        listed = ", ".join(f"{name} {told}" for name, (_, told) in _changed(files, one, other).items())
        return f"{said} ({first} is older: {listed})"
    if one.exists() and other.exists() and one.stat().st_mtime != other.stat().st_mtime:
        return f"{said} ({min(one, other, key=lambda path: path.stat().st_mtime)} was written first)"
    return said


def _changed(files: Mapping[Path, Record], one: Path, other: Path) -> dict[str, tuple[bool, str]]:
    """Part whose versions differ -> whether that of ``one`` is the lower, and both in words."""
    mine, others = versions(files[one]), versions(files[other])
    pairs = {name: (mine[name], others[name]) for name in mine if name in others and mine[name] != others[name]}
    return {name: (a < b, f"{min(a, b)}, then {max(a, b)}") for name, (a, b) in pairs.items()}


def merged(one: Record, other: Record) -> Record:
    """``other`` with the arms, and of arms that both have the scores, that only ``one`` has."""
    arms = {**one["arms"], **other["arms"]}
    for name in one["arms"].keys() & other["arms"].keys():
        arms[name] = _both_scores(one["arms"][name], other["arms"][name])
    changes = {arm: {**one["perturbation"].get(arm, {}), **other["perturbation"].get(arm, {})} for arm in arms}
    both = {"arms": arms, "perturbation": {arm: found for arm, found in changes.items() if found}}
    stages = {stage["key"]: stage for stage in (*one["stages"], *other["stages"])}
    return cast(Record, {**other, **both, "stages": list(stages.values())})


def _both_scores(one: ArmScores, other: ArmScores) -> ArmScores:
    """``other`` with what only ``one`` has: a measured score is never replaced by one that is absent."""
    metrics = {**one["metrics"], **other["metrics"]}
    absent = {name: why for name, why in {**one["absent"], **other["absent"]}.items() if name not in metrics}
    found: Any = {**one, **other, "metrics": metrics, "absent": absent}
    for name in ("curve", "curve_validation"):
        at: Any = one.get(name, {}), other.get(name, {})
        if joined := {step: {**at[0].get(step, {}), **at[1].get(step, {})} for step in {**at[0], **at[1]}}:
            found[name] = joined
    return cast(ArmScores, found)
