"""A unit of work, with a key that is known before anything runs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from udpbench.interfaces import Run

Work = Callable[[Path, dict[str, Path], Run], None]


def hash_of(value: Any) -> str:
    """Sixteen hex digits of the SHA-256 of ``value`` as canonical JSON.

    Raises TypeError if it cannot be written as JSON.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Stage:
    """A unit of work: ``work(out, parents, run)`` reads the parents' folders and fills ``out``.

    ``work`` must be a function of ``settings``, ``seed`` and the parents' folders only. A ``resumable`` stage finds
    in ``out`` what an interrupted attempt left there; any other starts from an empty folder.
    """

    name: str
    settings: Mapping[str, Any]
    work: Work = field(compare=False)
    parents: Mapping[str, Stage] = field(default_factory=dict)
    seed: int = 0
    title: str = ""
    resumable: bool = False

    @cached_property
    def key(self) -> str:
        """The key by which the stage is planned, locked and looked up."""
        return self.key_on({k: p.key for k, p in self.parents.items()})

    def key_on(self, parents: Mapping[str, str]) -> str:
        """The key of this work on parents of these keys; on parents of these contents, the key by which equal work on
        equal inputs is found."""
        return hash_of(
            {"stage": self.name, "settings": dict(self.settings), "seed": self.seed, "parents": dict(parents)}
        )

    def __str__(self) -> str:
        return f"{self.name} {self.title}".strip()


def empty(out: Path) -> None:
    """Remove what a stage's work wrote into its folder, which no later attempt may go on from."""
    for path in out.glob("[!_]*"):  # the others are notes of the store
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def with_ancestors(wanted: Iterable[Stage], done: Callable[[Stage], bool] = lambda stage: False) -> list[Stage]:
    """The stages and their ancestors, each once, parents first; neither those that are ``done`` nor their parents."""
    found: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key not in found and not done(stage):
            for parent in stage.parents.values():
                visit(parent)
            found[stage.key] = stage

    for stage in wanted:
        visit(stage)
    return list(found.values())
