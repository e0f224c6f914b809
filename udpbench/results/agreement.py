"""Two records of one cell: what differs in how they were made, and whether their numbers agree."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from udpbench.core.component import inside
from udpbench.results.intervals import seeds_apart
from udpbench.results.record import score_of
from udpbench.results.schema import HERE, Record
from udpbench.results.stats import values

ROUNDING = 1e-6  # relative: what the order of a sum changes
MACHINE = ("commit", "dirty", "version", "python", "platform", "device")  # of a record's provenance
ALIKE = ("data", "task", "victim")  # names that cells share whose clean victims differ by their seeds only
READ = ("data", "victim")  # parts of which the names may be those of other files: ``local``, ``folder``
AGREES = ("equal", "as two seeds")


@dataclass(frozen=True)
class Compared:
    """One score of an arm in the record (``old``) and now; None where it was not measured.

    ``spread``: how far apart two clean victims of different seeds are at most, 95 times in 100: t times sqrt(2) times
    the seed SD, with its degrees of freedom. ``verdict``: equal (but for rounding) | as two seeds | further than two
    seeds | no seed SD to compare with | missing now | new.
    """

    arm: str
    metric: str
    old: float | None
    new: float | None
    spread: float | None
    verdict: str


def compared(old: Record, new: Record, others: Iterable[Record] = ()) -> list[Compared]:
    """Every score of either record, arm by arm; ``others``: records in which clean victims of further seeds are."""
    found = []
    alike = [old, *(other for other in others if _alike(old, other))]
    for arm in dict.fromkeys((*old["arms"], *new["arms"])):
        was, now = (record["arms"].get(arm, {"metrics": {}})["metrics"] for record in (old, new))
        for metric in dict.fromkeys((*was, *now)):
            a, b = (None if (s := score_of(r, arm, metric)) is None else float(s["value"]) for r in (old, new))
            spread = seeds_apart(values(alike, "clean", metric))
            found.append(Compared(arm, metric, a, b, spread, _verdict(a, b, spread)))
    return found


def _alike(one: Record, other: Record) -> bool:
    settings = [record["config"].get("task") for record in (one, other)]
    counts = [_counts(record["config"].get("data") or {}) for record in (one, other)]
    shared = counts[0].keys() & counts[1].keys()  # another version may have further ones
    same = one["label"] == other["label"] and settings[0] == settings[1]
    same = same and all(counts[0][name] == counts[1][name] for name in shared)
    same = same and all(_same_files(one, other, part) for part in READ)
    return same and all(one["cell"][name] == other["cell"][name] for name in ALIKE)  # type: ignore[literal-required]


def _same_files(one: Record, other: Record, part: str) -> bool:
    """Whether a part of two cells read the same files, by their digests; yes where a record does not say that."""
    digests = [((r["provenance"].get("parts") or {}).get(part) or {}).get("identity") for r in (one, other)]
    return None in digests or digests[0] == digests[1]


def _counts(data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of data that are numbers: how many pictures of what size. Texts say where they lie."""
    counts = {name: value for name, value in data.items() if isinstance(value, int | float)}
    return {name: value for name, value in counts.items() if name not in ("subject", "draw")}


def equal(a: float, b: float) -> bool:
    """Whether two scores differ by no more than rounding."""
    return math.isclose(a, b, rel_tol=ROUNDING, abs_tol=ROUNDING**2)


def _verdict(old: float | None, new: float | None, spread: float | None) -> str:
    if old is None or new is None:
        return "new" if old is None else "missing now"
    if equal(old, new):
        return "equal"
    if spread is None:
        return "no seed SD to compare with"
    return "as two seeds" if abs(old - new) <= spread else "further than two seeds"


def changed(old: Record, new: Record) -> list[str]:
    """A line for each difference in how two records were made: machine, packages, versions of parts, settings."""
    was, now = ({k: record["provenance"].get(k) for k in MACHINE} for record in (old, new))
    packages = [record["provenance"].get("packages") or {} for record in (old, new)]
    parts = [record["provenance"].get("parts") or {} for record in (old, new)]
    lines = list(_differing("", was, now))
    lines += _differing("package ", *({k: v for k, v in of.items() if k in packages[0]} for of in packages))
    if parts[0]:
        lines += _differing("", *(flat(of) for of in parts))
    else:
        lines.append("versions of parts: the record does not say them, as older ones do not")
    plain = ({k: v for k, v in record["config"].items() if k not in HERE} for record in (old, new))
    return lines + list(_differing("setting ", *map(flat, plain)))


def other_keys(old: Record, new: Record) -> list[str]:
    """Names of the stages that have other keys now: of another version, other settings or other files."""
    was, now = ({(s["name"], s["key"]) for s in record["stages"]} for record in (old, new))
    common = {name for name, _ in was} & {name for name, _ in now}
    return sorted({name for name, _ in now - was if name in common})


def _differing(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*old, *new}):
        a, b = (json.dumps(of[name]) if name in of else "not there" for of in (old, new))
        if a != b:
            yield f"{what}{name}: {a} in the record, {b} now"


def flat(value: Any, *at: str) -> dict[str, Any]:
    """Settings within settings by their places: ``protect.steps`` -> 50."""
    items = inside(value) if isinstance(value, Mapping) else ()
    if not items:
        return {".".join(at): value} if at else {}
    return {k: v for name, inner in items for k, v in flat(inner, *at, str(name)).items()}
