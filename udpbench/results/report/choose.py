"""Which records a report speaks of.

Variants told apart by name, duplicates once, failures aside, nothing averaged by accident.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar, cast

from udpbench.benchmark.arms import CONTROLS
from udpbench.benchmark.cell import ROLES
from udpbench.core.component import Component
from udpbench.results.record import grouped
from udpbench.results.report.repeats import Disagreement, disagreements, keys_differ, merged, older, same_cell
from udpbench.results.schema import Record
from udpbench.results.words import budget_text

# Cell fields whose settings are told apart; config has a group of each name (models: or "model" for all of them).
_PARTS = ("protect", "attack", "task", "data", "budget", *ROLES)
# Data settings that differ between subjects; those that are folders, or of rendered data numbers of pictures.
_OF_SUBJECT = ("subject", "style", "draw", "path", "prompt", "class_prompt")
_FURTHER = ("reference", "heldout", "validation", "extra_clean")
# Folders that an attack is given: pictures that were made, or leaked, for a protection or a subject.
_FOLDERS = ("clean", "path", "protected")
_OF_SPEED = ("gradient_checkpointing", "save_every")  # settings that change speed and memory only
Key = TypeVar("Key")
_Settings = dict[tuple[str, ...], Any]  # path of a setting -> its value


@dataclass(frozen=True)
class Chosen:
    """``repeated``: records that are not counted because the same cell, with the same keys, is there a second time;
    arms and scores that only one of them has are kept, and of scores that both have the last by path. ``disagree``:
    those that are not the same number in both."""

    ok: list[Record]
    failed: dict[Path, Record]
    repeated: int
    disagree: list[Disagreement]


def choose(files: Mapping[Path, Record]) -> Chosen:
    """Split and name the records; budgets are called by kind and size, "linf 8/255".

    ValueError naming the files, two and two, that give one cell under settings that cannot be told apart.
    """
    named, twice = _named(files), []
    disagree: list[Disagreement] = []
    ok: dict[Path, Record] = {}
    cells = _by_cell(named)
    for paths in cells.values():
        for pair in combinations(paths, 2):
            if keys_differ(*(named[path] for path in pair)):
                twice.append(same_cell(files, *pair))
            else:
                disagree += disagreements(named, *pair)
        ok[paths[-1]] = reduce(merged, (named[path] for path in paths))
    if twice:
        raise ValueError(f"report: {'; '.join(twice)}; report them from two folders, or take the older records away")
    failed = {p: r for p, r in named.items() if r["status"] == "failed" and _which(r) not in cells}
    found = [ok[path] for path in sorted(ok)]
    return Chosen(found, failed, len(files) - len(found) - len(failed), disagree)


def clashes(files: Mapping[Path, Record]) -> dict[Path, str]:
    """Path -> why the record cannot stand beside the others: one of the same cell is of newer versions, has other keys,
    or the same keys and other scores. Of two that nothing tells to be older, neither can."""
    named = _named(files)
    found: dict[Path, str] = {}
    for paths in _by_cell(named).values():
        for one, other in combinations(paths, 2):
            if keys_differ(named[one], named[other]):
                old = older(files, one, other)
                out, said = [old] if old else [one, other], same_cell(files, one, other)
            else:
                several = list(disagreements(named, one, other))
                more = f" (and {len(several) - 1} more scores)" if len(several) > 1 else ""
                out, said = [one, other] if several else [], "".join(f"{first}{more}" for first in several[:1])
            found |= {path: said for path in out if path not in found}
    return found


def _named(files: Mapping[Path, Record]) -> dict[Path, Record]:
    return _name_variants({path: _with_facts(record) for path, record in files.items()})


def _by_cell(named: Mapping[Path, Record]) -> dict[str, list[Path]]:
    """Cell -> the paths of its finished records."""
    finished = [path for path, record in named.items() if record["status"] == "ok"]
    return grouped(finished, lambda path: _which(named[path]))


def _with_facts(record: Record) -> Record:
    """The record with the facts that its cell goes by in tables."""
    facts, cell = record["facts"], record["cell"]
    shown = {"budget": budget_text(facts["budget"], cell["budget"]), "protected_fraction": facts["protected_fraction"]}
    return cast(Record, {**record, "cell": {**cell, **shown}})


def _name_variants(files: Mapping[Path, Record]) -> dict[Path, Record]:
    """Where a part goes by one name under several settings, as few of those as tell them apart join the name, unless
    they are unset: eudp, eudp (steps=50).

    Among all cells of a task and data set: so no protections are compared whose victims trained for different times,
    and no seed SD comes from victims of another length. A metric that some cells do not have is no other setting.
    """
    named = dict(files)
    for part in _PARTS:
        for path, said in _variants(files, part).items():
            named[path] = _renamed(named[path], part, said)
    return _with_purifiers(named)


def _with_purifiers(files: Mapping[Path, Record]) -> dict[Path, Record]:
    """Where attacks of one name on one victim have several purifiers, those chosen for the attack join its name."""
    named = dict(files)

    def condition(path: Path) -> tuple[str, ...]:
        cell = files[path]["cell"]
        return files[path]["label"], *(cell[part] for part in ("data", "task", "victim", "attack"))

    for paths in grouped(files, condition).values():
        if len({files[path]["cell"]["purifier"] for path in paths}) > 1:
            for path in filter(lambda path: own_purifier(files[path]), paths):
                named[path] = _renamed(files[path], "attack", f"purifier {files[path]['cell']['purifier']}")
    return named


def own_purifier(record: Record) -> bool:
    """Whether the purifier is another model than the rest of the cell: a part of the attack, then."""
    return bool(record["config"].get("purifier")) and "name" in (record["config"].get("model") or {})


def _variants(files: Mapping[Path, Record], part: str) -> dict[Path, str]:
    """The settings of a part that tell cells apart in which it has the same name."""

    def condition(path: Path) -> tuple[str, ...]:
        cell: Mapping[str, Any] = files[path]["cell"]
        return files[path]["label"], cell["data"], cell["task"], cell[part]

    said: dict[Path, str] = {}
    for paths in grouped(files, condition).values():
        settings = {path: _settings(files[path], part) for path in paths}
        keys = sorted(set().union(*settings.values()))
        for path, mine in settings.items():
            mine |= {key: x for key in keys if key not in mine and (x := _before(files[path], part, key)) is not None}
        if part in ROLES:
            _same_places(settings, files, part)
        if part in ("protect", "attack"):
            given = {key for mine in settings.values() for key in mine if _is_folder(key, part, mine)}
            keys = [key for key in keys if key not in given or _tells_cells_apart(key, settings, files)]
            settings = {path: {key: mine[key] for key in keys if key in mine} for path, mine in settings.items()}
        unset = {key: None for key in keys if key[0] != "metrics"}  # a metric that is not there is no other setting
        settings = {path: unset | mine for path, mine in settings.items()}
        values = {key: {json.dumps(mine[key]) for mine in settings.values() if key in mine} for key in keys}
        differing = [key for key in keys if len(values[key]) > 1]
        telling = fewest(differing, list(settings.values()))
        for path, mine in settings.items():
            named = [f"{'.'.join(key)}={mine[key]}" for key in telling if mine.get(key) is not None]
            said |= {path: ", ".join(named)} if named else {}
    return said


def _tells_cells_apart(key: tuple[str, ...], settings: Mapping[Path, _Settings], files: Mapping[Path, Record]) -> bool:
    """Whether cells that are otherwise the same have several values of a setting."""
    values: dict[str, set[str]] = {}
    for path, mine in settings.items():
        values.setdefault(_which(files[path]), set()).add(json.dumps(mine.get(key)))
    return any(len(several) > 1 for several in values.values())


def _is_folder(key: tuple[str, ...], part: str, mine: _Settings) -> bool:
    """Whether a setting of a method is a folder of pictures: of an attack one it was given, of protections that of the
    one which takes pictures that are there (others' paths are of models)."""
    if part == "protect":
        return key == ("path",) and mine.get(("_target_",)) == "Folder"
    return key[-1] in _FOLDERS


def _before(record: Record, part: str, key: tuple[str, ...]) -> Any:
    """What a setting that came later than the record stood at before, by its class; None if that is not known."""
    node: Any = _part(record, part)
    for name in key[:-1]:
        node = node.get(name) if isinstance(node, Mapping) else None
    target = node.get("_target_") if isinstance(node, Mapping) else None
    return _later(target).get(key[-1]) if target else None


@cache
def _later(target: str) -> Mapping[str, Any]:
    """``Component.later`` of a class of this package; no other is imported, for records come from anywhere."""
    module, _, name = target.rpartition(".")
    if module.split(".")[0] != "udpbench":
        return {}
    try:
        kind: Any = vars(import_module(module))[name]
    except (ImportError, KeyError):  # of another version
        return {}
    return kind.later if isinstance(kind, type) and issubclass(kind, Component) else {}


def _same_places(settings: Mapping[Path, _Settings], files: Mapping[Path, Record], part: str) -> None:
    """One path for models of equal weights, wherever each machine keeps them."""
    first: dict[str, Any] = {}
    for path, mine in settings.items():
        known = (files[path]["provenance"].get("parts") or {}).get(part, {}).get("identity")
        if known and ("path",) in mine:
            mine["path",] = first.setdefault(json.dumps(known, sort_keys=True), mine["path",])


def fewest(keys: Iterable[Key], rows: Sequence[Mapping[Key, Any]]) -> list[Key]:
    """As few of the keys, in their order, as tell apart the rows that all of them tell apart."""
    found: list[Key] = []

    def distinct(*by: Key) -> int:
        return len({json.dumps([row.get(key) for key in by]) for row in rows})

    for key in keys:
        if distinct(*found, key) > distinct(*found):
            found.append(key)
    return found


def _settings(record: Record, part: str) -> _Settings:
    """Path of a setting -> its value, of those of a part that make its condition another one; the task's with those of
    what it is measured by and compared with."""
    config = record["config"]
    found = _part(record, part)
    if part == "data":  # not what differs between subjects, as folders of further pictures do
        own = {*_OF_SUBJECT, *(name for name in _FURTHER if isinstance(found.get(name), str))}
        found = {name: value for name, value in found.items() if name not in own}
    if part == "protect" and is_control(record):
        found = {**found, "like": config.get("like")}
    if part == "task":
        metrics = config.get("metrics") or {}
        measured = {**(metrics.get("bundle") or {}), **(metrics.get("extra") or {})}
        controls = {arm: config.get(arm) or {} for arm in CONTROLS}
        found = {**found, "metrics": measured, **controls}
    return _flat(found)


def _part(record: Record, part: str) -> Mapping[str, Any]:
    """The configuration of a part; a role without a model of its own has the cell's."""
    config = record["config"]
    return config.get(part) or (config.get("model") if part in ROLES else None) or {}


def is_control(record: Record) -> bool:
    """Whether what protects is one of the noise controls, run as a protection of its own."""
    config = record["config"]
    own, *controls = ((config.get(part) or {}).get("_target_") for part in ("protect", *CONTROLS))
    return own is not None and own in controls


def _flat(value: Any, *at: str) -> _Settings:
    if isinstance(value, Mapping):
        kept = ((str(name), inner) for name, inner in value.items() if name not in _OF_SPEED)
        return {k: v for name, inner in kept for k, v in _flat(inner, *at, name).items()}
    if at[-1:] == ("_target_",) and value.split(".")[0] == "udpbench":
        value = value.split(".")[-1]  # a class is the same wherever the package keeps it
    return {at: value}


def _renamed(record: Record, part: str, said: str) -> Record:
    """The record with its variant named, in its cell and in its stages."""
    cell: Any = {**record["cell"], part: f"{record['cell'][part]} ({said})"}  # type: ignore[literal-required]
    new = dict(zip(costly(record["cell"]), costly(cell), strict=True))
    stages = [{**stage, "name": new.get(stage["name"], stage["name"])} for stage in record["stages"]]
    return cast(Record, {**record, "cell": cell, "stages": stages})


def costly(cell: Any) -> list[str]:
    """The names of the stages of a cell whose costs are told."""
    protect, attack = cell["protect"], cell["attack"]
    return [f"protect {protect}", *(name for kind in ("attack", "train") for name in under(kind, protect, attack))]


def under(kind: str, protect: str, attack: str) -> list[str]:
    """The names of an attack's own stages (``kind``: attack) in such a cell, or of the trainings it changes (train)."""
    return [f"{kind} {attack} on {pictures}" for pictures in (protect, "clean")]


def _which(record: Record) -> str:
    return json.dumps([record["label"], *sorted((k, str(v)) for k, v in record["cell"].items())])
