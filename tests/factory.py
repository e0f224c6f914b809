"""Synthetic records for tests: small, whole, and valid unless a test spoils them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from udpbench.results.schema import ArmScores, Record
from udpbench.results.table import cell_table

# arm -> fid-like score (better protected: up) and similarity-like score (better protected: down)
SCORES = {
    "pretrained": (100.0, 0.10),
    "clean": (40.0, 0.80),
    "noise": (42.0, 0.78),
    "protected": (70.0, 0.40),
    "purified": (55.0, 0.55),
    "clean_attacked": (45.0, 0.70),
    "upper_bound": (20.0, 0.95),
}
LABEL = "embedded world (64 px)"


def make_arm(distance: float, similarity: float, key: str = "00ff", n: int = 256) -> ArmScores:
    """An arm with a primary metric "distance" and a metric "similarity"; fid is absent."""
    return {
        "metrics": {
            "distance": {"value": distance, "n": n, "better_protected": "up", "primary": True},
            "similarity": {"value": similarity, "n": n, "better_protected": "down", "primary": False},
        },
        "absent": {"fid": f"needs 1000 pictures a side, there are {n}"},
        "key": key,
        "curve": {},
        "images": "store/00ff/images",
    }


def make_record(
    scores: Mapping[str, tuple[float, float]] = SCORES,
    label: str = LABEL,
    error: str | None = None,
    facts: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    **cell: Any,
) -> Record:
    """A record of one cell; ``cell`` overrides names, ``settings`` the config; failed if ``error`` is given.

    A budget's name says its kind and size, a fraction is a fact, too.
    """
    names = {
        "data": "toyworld", "subject": "0", "budget": "linf_8", "protect": "eudp", "attack": "impress",
        "task": "dreambooth", "surrogate": "micro", "victim": "micro", "purifier": "micro", "seed": 0, **cell,
    }  # fmt: skip
    kind, _, eps = str(names["budget"]).partition("_")
    fraction = float(names.get("protected_fraction", 1.0))
    stage = {
        "name": f"protect {names['protect']}",
        "key": "ab12",
        "seconds": 24.0,
        "peak_mb": 900.0,
        "cached": False,
        "device": "cpu",
        "commit": None,
    }
    return {
        "schema": 2,
        "status": "failed" if error else "ok",
        "cell": names,  # type: ignore[typeddict-item]
        "label": label,
        "facts": {
            "budget": {"kind": kind, "eps": float(eps)}, "preset": "matched", "edits": False, "embedded": True,
            "protected_fraction": fraction, **(facts or {}),
        },
        "knowledge": {"same_vae": True, "same_unet": True, "same_prompt": False},
        "arms": {} if error else {arm: make_arm(*pair) for arm, pair in scores.items()},
        "perturbation": {"protected": {"linf": 8.0, "rms": 5.25, "psnr": 33.1}, "noise": {"linf": 8.0, "rms": 8.0}},
        "counts": {"unet_image": 600},
        "stages": [stage],  # type: ignore[list-item]
        "config": {"budget": {"_target_": "udpbench.core.budget.Linf", "eps": 8}, "protect": {}, **(settings or {})},
        "provenance": {"commit": "0123456789abcdef", "dirty": False, "packages": {"torch": "2.8.0"}, "device": "cpu: x",
                       "python": "3.11.7"},
        "flags": [],
        "error": error,
    }  # fmt: skip


def shifted(by: float, **arms: float) -> dict[str, tuple[float, float]]:
    """SCORES with ``by`` added to every distance, and further for single arms."""
    return {arm: (d + by + arms.get(arm, 0.0), s) for arm, (d, s) in SCORES.items()}


def as_text(record: Record, width: int = 100) -> str:
    """The table of a cell without colour, every line at most ``width`` characters, no trailing blanks."""
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(cell_table(record, width))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
