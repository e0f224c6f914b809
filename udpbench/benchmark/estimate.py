"""How long a stage will take and how much it will write, from what finished stages of a store took.

Nothing is scaled and nothing is assumed: a stage is as its nearest finished relatives were, or unknown. A stage's
settings do not hold how many pictures there are and how large: an estimate is as good as the data sets are alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from udpbench.benchmark.cell import ROLES
from udpbench.benchmark.facts import FACTS, bytes_of, read_facts
from udpbench.benchmark.stage import Stage, hash_of
from udpbench.benchmark.store import DROPPED

NEAR = ("settings", "method", "kind")  # what a stage and its measurements have in common, budget aside; nearest first


@dataclass(frozen=True)
class Estimate:
    """Medians over finished stages.

    ``seconds`` of work, ``bytes`` on disk, ``near`` (one of ``NEAR``), and the finished folders it rests on.
    """

    seconds: float
    bytes: float
    near: str
    rests_on: frozenset[Path]

    @property
    def rough(self) -> bool:
        """Whether it rests on other stages than the same on other pictures or another seed."""
        return self.near != NEAR[0]


class History:
    """What the finished stages of a store took on one device, named as facts name it."""

    def __init__(self, root: Path, device: str) -> None:
        self.root, self.device = Path(root), device
        self._seconds: dict[str, dict[Path, float]] = {}  # by key of likeness, by folder
        self._estimates: dict[str, Estimate | None] = {}  # by the nearest key: cells of a grid ask the same
        self._read: set[str] = set()  # kinds of stages

    def estimate(self, stage: Stage) -> Estimate | None:
        """From the stages with the same settings on any pictures and seed; else of the same method; else of the same
        kind.

        None if there is none. Another model's stages are no measurement: theirs may take a thousand times as long.
        """
        if stage.name not in self._read:
            self._read_kind(stage.name)
        keys = _keys(stage.name, stage.settings)
        if keys[0] not in self._estimates:
            self._estimates[keys[0]] = self._nearest(keys)
        return self._estimates[keys[0]]

    def _nearest(self, keys: tuple[str, ...]) -> Estimate | None:
        for near, key in zip(NEAR, keys, strict=True):
            if found := self._seconds.get(key):
                return Estimate(median(found.values()), median(map(_size, found)), near, frozenset(found))
        return None

    def _read_kind(self, name: str) -> None:
        self._read.add(name)
        places = self.root / name, self.root / DROPPED / name  # of a dropped one, what it took is known all the same
        for path in sorted(path for place in places for path in place.glob(f"*/{FACTS}")):
            with suppress(OSError, ValueError, KeyError):  # a broken one measures nothing
                facts = read_facts(path.parent)
                # A link is another name of work that was done once.
                if facts["device"] == self.device and not path.parent.is_symlink():
                    for key in _keys(name, facts["settings"]):
                        self._seconds.setdefault(key, {})[path.parent] = facts["seconds"]


def _keys(name: str, settings: Mapping[str, Any]) -> tuple[str, str, str]:
    """A stage's keys of likeness, in the order of ``NEAR``."""
    settings = {k: v for k, v in settings.items() if k != "budget"}  # a larger change takes no longer
    models = {k: v for k, v in settings.items() if k in ROLES}
    methods = sorted(_methods({k: v for k, v in settings.items() if k not in ROLES}))
    return hash_of([name, settings]), hash_of([name, models, methods]), hash_of([name, models])


def _methods(settings: Any) -> Iterator[str]:
    """The classes and the task that settings name, in mappings at any depth; lists are not looked into."""
    for key, value in settings.items():
        if key in ("_target_", "task"):
            yield str(value)
        elif isinstance(value, Mapping):
            yield from _methods(value)


_size = cache(bytes_of)  # a finished folder does not change any more
