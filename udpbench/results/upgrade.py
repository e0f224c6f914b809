"""Records of schema 1, read as schema 2: the only place that knows the old names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

DIRECTIONS = {"higher": "up", "lower": "down"}
NAMES = {
    "untuned": "pretrained", "ceiling": "upper_bound", "cloak": "perturbation", "attacker": "purifier",
    "protected_share": "protected_fraction", "recipe": "key", "owner_wants": "better_protected",
    "step_levels": "step_size", "draws": "samples",
}  # fmt: skip
BY_CLASS = {
    "Linf": {"levels": "eps"},
    "RMS": {"levels": "eps"},
    "GaussianNoise": {"levels": "std"},
    "Resize": {"share": "scale"},
}


def upgraded(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of schema 1 under the names of schema 2, with the facts that schema 1 left in names."""
    return {**_renamed(record), "schema": 2, "flags": [], "facts": _facts(record)}


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    names = NAMES | BY_CLASS.get(str(value.get("_target_")).rpartition(".")[2], {})
    return {names.get(k, k): DIRECTIONS[v] if k == "owner_wants" else _renamed(v) for k, v in value.items()}


def _facts(record: Mapping[str, Any]) -> dict[str, Any]:
    cell = record["cell"]
    budget = re.fullmatch(r"(linf|rms)_(\d+(?:\.\d+)?)", cell["budget"])
    scores = [name for arm in record["arms"].values() for name in arm["metrics"]]
    return {
        "budget": {"kind": budget[1], "eps": float(budget[2])} if budget else None,
        "preset": "released" if cell["protect"].endswith("_released") else "matched",
        "edits": any(name.startswith("edit_") for name in scores),
        "embedded": record["label"].startswith("embedded"),
        "protected_fraction": cell.get("protected_share", 1.0),
    }
