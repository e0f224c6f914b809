"""Records of schema 1, read as schema 2: the only place that knows the old names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

ARMS = {"untuned": "pretrained", "ceiling": "upper_bound"}
DIRECTIONS = {"higher": "up", "lower": "down"}
TOP = {"cloak": "perturbation", "attacker": "purifier", "protected_share": "protected_fraction", "recipe": "key"}
SETTINGS = {"step_levels": "step_size", "draws": "samples", **TOP}
BY_CLASS = {
    "Linf": {"levels": "eps"},
    "RMS": {"levels": "eps"},
    "GaussianNoise": {"levels": "std"},
    "Resize": {"share": "scale"},
}


def upgraded(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of schema 1 under the names of schema 2, with the facts that schema 1 left in names."""
    found = {TOP.get(name, name): value for name, value in record.items()} | {"schema": 2, "flags": []}
    found["cell"] = {TOP.get(name, name): value for name, value in record["cell"].items()}
    found["arms"] = {ARMS.get(name, name): _arm(arm) for name, arm in record["arms"].items()}
    found["stages"] = [{TOP.get(k, k): v for k, v in stage.items()} for stage in record["stages"]]
    found["config"] = _settings(record["config"])
    found["facts"] = _facts(record)
    return found


def _arm(arm: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {TOP.get(name, name): value for name, value in arm.items()}
    renamed["metrics"] = {name: _score(score) for name, score in arm["metrics"].items()}
    return renamed


def _score(score: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in score.items() if k != "owner_wants"}
    return kept | {"better_protected": DIRECTIONS[score["owner_wants"]]}


def _settings(value: Any) -> Any:
    if isinstance(value, list):
        return [_settings(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    names = SETTINGS | BY_CLASS.get(str(value.get("_target_")).rpartition(".")[2], {})
    return {names.get(k, k): _settings(v) for k, v in value.items()}


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
