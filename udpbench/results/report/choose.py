"""Which records a report speaks of.

Variants told apart by name, duplicates once, failures aside, nothing averaged by accident.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from udpbench.results.record import Cell, Record

# Cell fields whose settings are told apart; config has a group of each name (models: or "model" for all of them).
_MODELS = ("surrogate", "victim", "purifier")
_PARTS = ("protect", "attack", "task", "data", "budget", *_MODELS)
_OF_SUBJECT = ("subject", "style", "path", "prompt", "class_prompt")  # data settings that differ between subjects


@dataclass(frozen=True)
class Chosen:
    """``repeated``: records that are not counted because the same cell, with the same keys, is there a second time;
    arms that only one of them has are kept."""

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
            if other is not None:
                mine, others = _keys(record), _keys(named[other])
                if any(mine[arm] != others[arm] for arm in mine.keys() & others.keys()):
                    raise ValueError(
                        f"report: {other} and {path} are the same cell with different keys; "
                        "report them from two folders"
                    )
                named[path] = _merged(named[other], record)
            kept[key] = path
    ok = [named[p] for p in sorted(kept.values())]
    failed = {p: r for p, r in named.items() if r["status"] == "failed" and _key(r, ()) not in kept}
    return Chosen(ok, failed, len(files) - len(ok) - len(failed))


def _name_variants(files: Mapping[Path, Record]) -> dict[Path, Record]:
    """Where a part goes by one name under several settings, those that differ join the name: eudp (steps=50).

    Among all cells of a task and data set: so no protections are compared whose victims trained for different times,
    and no seed SD comes from victims of another length.
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
            differing = sorted(k for k in every if len(_values(k, settings.values())) > 1)
            for p in paths if differing else ():
                said = ", ".join(f"{k}={settings[p].get(k)}" for k in differing if k in settings[p] or not _of_score(k))
                named[p] = _renamed(named[p], part, said)
    return named


def _values(key: str, settings: Iterable[Mapping[str, Any]]) -> set[str]:
    """The values of a setting; a metric that some cells do not have is no other setting of it."""
    return {json.dumps(s.get(key)) for s in settings if key in s or not _of_score(key)}


def _of_score(key: str) -> bool:
    return key.startswith("metrics.")


def _settings(record: Record, part: str) -> dict[str, Any]:
    """The settings of a part that make its condition another one; the task's with those of what it is measured by and
    compared with."""
    config = record["config"]
    if part == "task":
        metrics = config.get("metrics") or {}
        measured = _flat(metrics.get("bundle") or {}, "metrics") | _flat(metrics.get("extra") or {}, "metrics")
        controls = _flat(config.get("noise") or {}, "noise") | _flat(config.get("noise_rms") or {}, "noise_rms")
        return _flat(config.get("task")) | measured | controls
    found = _flat(config.get(part) or (config.get("model") if part in _MODELS else None))
    if part == "data":
        own = {*_OF_SUBJECT, *(["reference"] if isinstance(found.get("reference"), str) else [])}  # a folder, no number
        return {k: v for k, v in found.items() if k not in own}
    return found | (_flat(config.get("like"), "like") if part == "protect" else {})


def _merged(one: Record, other: Record) -> Record:
    """``other`` with the arms that only ``one`` has."""
    both = {k: {**one[k], **other[k]} for k in ("arms", "perturbation")}  # type: ignore[literal-required]
    stages = {stage["key"]: stage for stage in (*one["stages"], *other["stages"])}
    return cast(Record, {**other, **both, "stages": list(stages.values())})


def _renamed(record: Record, part: str, said: str) -> Record:
    cell = {**record["cell"], part: f"{record['cell'][part]} ({said})"}  # type: ignore[literal-required]
    return cast(Record, {**record, "cell": cast(Cell, cell)})


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    if at.endswith("_target_"):  # a class is the same wherever the package keeps it
        value = value.rpartition(".")[2] if value.startswith("udpbench.") else value
    if not isinstance(value, Mapping):
        return {at: value} if at else {}
    return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{at}.{name}" if at else str(name)).items()}


def _key(record: Record, leave: tuple[str, ...]) -> str:
    return json.dumps([record["label"], *sorted((k, str(v)) for k, v in record["cell"].items() if k not in leave)])


def _keys(record: Record) -> dict[str, str]:
    return {arm: part["key"] for arm, part in record["arms"].items()}
