"""What a record must say before it may stand in a leaderboard beside those of other people.

Nothing here shows that numbers are true; ``python -m udpbench rerun`` does. It is what a rerun needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from udpbench.benchmark.cell import ROLES
from udpbench.core.provenance import DIRTY
from udpbench.core.source import targets
from udpbench.results import flags
from udpbench.results.declared import contradictions
from udpbench.results.schema import Record

PACKAGES = ("torch", "diffusers", "transformers", "numpy", "pillow")
PARTS = ("data", "budget", "protect", "attack", "task", *ROLES)


def objections(record: Record) -> list[str]:
    """A line for everything that keeps a record from being compared with others; none: it may be."""
    if record["status"] != "ok":
        return ["the cell failed"]
    return [line for find in CHECKS for line in find(record)]


def _code(record: Record) -> Iterator[str]:
    made = record["provenance"]
    if not made.get("commit"):
        yield "provenance names no commit: run from a checkout of the repository"
    if made.get("dirty") is not False:
        yield "the code was not as in its commit, or that is not known: commit, and run again"
    odd = sorted({s["name"] for s in record["stages"] if not s["commit"] or DIRTY in s["commit"]})
    if odd:
        yield f"stages were done by code that is in no commit: {', '.join(odd[:3])}{', ...' if odd[3:] else ''}"


def _machine(record: Record) -> Iterator[str]:
    made = record["provenance"]
    packages = made.get("packages")
    lacking = [name for name in PACKAGES if not isinstance(packages, Mapping) or not packages.get(name)]
    lacking += [name for name in ("python", "device") if not made.get(name)]
    if lacking:
        yield f"provenance does not name {', '.join(lacking)}"


def _parts(record: Record) -> Iterator[str]:
    parts = record["provenance"].get("parts")
    known: Mapping[str, Any] = parts if isinstance(parts, Mapping) else {}
    lacking = [name for name in PARTS if not isinstance(known.get(name), Mapping) or "version" not in known[name]]
    if lacking:
        yield f"provenance does not say the versions of {', '.join(lacking)}: the record is of older code, run it again"
    elif anonymous := [name for name in ROLES if not known[name].get("identity")]:
        yield f"provenance has no digests of the weights of {', '.join(anonymous)}"
    own = sorted({t for t in targets(record["config"]) if t.partition(".")[0] != "udpbench"})
    if own:
        yield f"made by code that udpbench does not have ({', '.join(own[:3])}): add the method first"


def _arms(record: Record) -> Iterator[str]:
    protects, attacks = (record["cell"][part] != "none" for part in ("protect", "attack"))
    needed = ["clean", *(["noise", "protected"] if protects else [])]
    needed += ["purified" if protects else "clean_attacked"] if attacks else []
    if lacking := [arm for arm in needed if arm not in record["arms"]]:
        yield f"it has no arm {', '.join(lacking)}: nothing can be said without"
    known = {stage["key"] for stage in record["stages"]}
    if odd := [arm for arm, scores in record["arms"].items() if scores["key"] not in known]:
        yield f"arm {odd[0]} rests on a stage that the record does not list"


def _budget(record: Record) -> Iterator[str]:
    budget, settings = record["facts"]["budget"], record["config"].get("budget") or {}
    if isinstance(inner := settings.get("inner"), Mapping):  # of a perceptual one, the bound inside
        settings = {**settings, **inner}
    facts: dict[str, Any] = {k: v for k, v in (budget or {}).items() if k in ("eps", "distance")}
    for name, value in facts.items():
        if settings.get(name) != value:
            yield f"facts say budget {name} {value:g}, the configuration {settings.get(name)}"
    norm = flags.measured_by(budget) if budget else ""
    there = (arm for arm in flags.BOUNDED if norm and arm in record["arms"])
    if unknown := [arm for arm in there if norm not in record["perturbation"].get(arm, {})]:
        yield f"{norm} of {', '.join(unknown)} was not measured: nothing shows that the budget was kept"
    if exceeded := flags.budget_exceeded(record):
        yield exceeded


CHECKS: tuple[Callable[[Record], Iterator[str]], ...] = (_code, _machine, _parts, contradictions, _arms, _budget)
