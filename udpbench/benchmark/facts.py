"""What a finished stage says of itself, in a file beside what it wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from udpbench.benchmark.stage import hash_of
from udpbench.core.atomic import atomic_text

# What a finished stage says of itself; the one file in its folder that is not part of its content.
FACTS = "_stage.json"
BEGUN = "_begun.json"  # what of that is known when a stage begins; until it is finished
CHECKSUM = "checksum"  # of everything else in the facts


def read_facts(folder: Path) -> dict[str, Any]:
    """What a finished stage says of itself (see ``Store.facts``).

    Raises OSError or ValueError if that cannot be read or is not what was written.
    """
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    if not isinstance(facts, dict) or (
        ("files" in facts or CHECKSUM in facts) and (facts.pop(CHECKSUM, None) != hash_of(facts))
    ):
        raise ValueError(f"{folder / FACTS}: broken")
    return facts


def bytes_of(folder: Path, facts: Mapping[str, Any] | None = None) -> int:
    """Bytes of what a finished stage wrote, by its ``facts``, so also where only these are left."""
    with suppress(OSError, ValueError):
        if files := (facts or read_facts(folder)).get("files"):
            return sum(size for size, _ in files.values())
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """The facts with a checksum of what reading them will give."""
    checksum = hash_of(json.loads(json.dumps(facts)))
    atomic_text(folder / FACTS, json.dumps({**facts, CHECKSUM: checksum}, indent=1, sort_keys=True))
