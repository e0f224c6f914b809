"""Which records a report speaks of.

Variants told apart by name, duplicates once, failures aside, nothing averaged by accident.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from udpbench.record import Cell, Record

# Cell fields whose settings are told apart; config has a group of each name (models: or "model" for all of them).
_MODELS = ("surrogate", "victim", "attacker")
_PARTS = ("protect", "attack", "task", "data", "budget", *_MODELS)
_OF_SUBJECT = ("subject", "style", "path", "prompt", "class_prompt")  # data settings that differ between subjects


@dataclass(frozen=True)
class Chosen:
    """``repeated``: records left out because the same cell, with the same recipes, is there a second time."""

    ok: list[Record]
    failed: dict[Path, Record]
    repeated: int


def choose(files: Mapping[Path, Record]) -> Chosen:
    """Split and name the records.

    ValueError naming two files if they give one cell under settings that cannot be told apart.
    """
    named = _name_variants(files)
    kept: dict[str, Path] = {}
    for path, record in named.items():
        if record["status"] == "ok":
            key = _key(record, ())
            other = kept.get(key)
            if other is not None and _recipes(named[other]) != _recipes(record):
                raise ValueError(
                    f"report: {other} and {path} are the same cell with different recipes; report them from two folders"
                )
            kept[key] = path
    ok = [named[p] for p in sorted(kept.values())]
    failed = {p: r for p, r in named.items() if r["status"] == "failed" and _key(r, ()) not in kept}
    return Chosen(ok, failed, len(files) - len(ok) - len(failed))


def _name_variants(files: Mapping[Path, Record]) -> dict[Path, Record]:
    """Where a part goes by one name under several settings, those that differ join the name: eudp (steps=50).

    Among all cells of a task and data set: so no protections are compared whose victims trained for different times,
    and no seed floor comes from victims of another length.
    """
    named = dict(files)
    for part in _PARTS:
        groups: dict[str, list[Path]] = {}
        for path, record in files.items():
            names = cast(dict[str, Any], record["cell"])
            alike = json.dumps([record["label"], names["data"], names["task"], names[part]])
            groups.setdefault(alike, []).append(path)
        for paths in groups.values():
            settings = {p: _settings(files[p], part) for p in paths}
            every = {k for s in settings.values() for k in s}
            differing = sorted(k for k in every if len({json.dumps(s.get(k)) for s in settings.values()}) > 1)
            for p in paths if differing else ():
                said = ", ".join(f"{k}={settings[p].get(k)}" for k in differing)
                named[p] = _renamed(named[p], part, said)
    return named


def _settings(record: Record, part: str) -> dict[str, Any]:
    """The settings of a part that make its condition another one."""
    config = record["config"]
    found = _flat(config.get(part) or (config.get("model") if part in _MODELS else None))
    if part == "data":
        own = {*_OF_SUBJECT, *(["reference"] if isinstance(found.get("reference"), str) else [])}  # a folder, no number
        return {k: v for k, v in found.items() if k not in own}
    return found | (_flat(config.get("like"), "like") if part == "protect" else {})


def _renamed(record: Record, part: str, said: str) -> Record:
    cell = {**record["cell"], part: f"{record['cell'][part]} ({said})"}  # type: ignore[literal-required]
    return cast(Record, {**record, "cell": cast(Cell, cell)})


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {at: value} if at else {}
    return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{at}.{name}" if at else str(name)).items()}


def _key(record: Record, leave: tuple[str, ...]) -> str:
    return json.dumps([record["label"], *sorted((k, str(v)) for k, v in record["cell"].items() if k not in leave)])


def _recipes(record: Record) -> dict[str, str]:
    return {arm: part["recipe"] for arm, part in record["arms"].items()}
