"""What a store holds, for who looks after it: finding, verifying and removing stages by their folders.

Nothing here knows a cell. Records say, by keys, which stages are needed.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import Timeout

from udpbench.benchmark import leases
from udpbench.benchmark.facts import BEGUN, FACTS, bytes_of, read_facts
from udpbench.benchmark.store import DAMAGED, DROPPED, KEPT, RECORDS, Store
from udpbench.core.atomic import atomic_write
from udpbench.core.digest import file_digest

REMOVED = "removed"  # folder of a store: what is being removed
NO_KINDS = ("locks", "content", RECORDS, KEPT, DAMAGED, DROPPED, REMOVED)  # folders of a store that hold no stages
STATES = ("finished", "unfinished", DAMAGED, DROPPED)
KEY = re.compile("[0-9a-f]{16}")
SHORTEST = 4  # hex digits by which a stage may be called


@dataclass(frozen=True)
class StageFolder:
    """One folder of a store.

    ``state``: finished; unfinished (begun, in a ``.part`` folder); damaged (put aside, or it says nothing of itself);
    dropped (only the facts are left). ``used``: when it was made or last read, in seconds since 1970. ``facts``: what
    it says of itself; of an unfinished one what was known when it began, of a damaged one nothing. ``also``: keys of
    equal work, whose folders are links to it. ``busy``: a process holds its lock.
    """

    folder: Path
    kind: str
    key: str
    state: str
    bytes: int
    used: float
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    also: tuple[str, ...] = ()
    busy: bool = False

    @property
    def keys(self) -> frozenset[str]:
        """Every key by which a cell may ask for it."""
        return frozenset((self.key, *self.also))

    @property
    def parents(self) -> Mapping[str, str]:
        """Name -> key of the stages that it was made of."""
        return self.facts.get("parents", {})

    @property
    def aside(self) -> bool:
        """Whether it was put aside."""
        return self.folder.parent.name == DAMAGED

    def __str__(self) -> str:
        return f"{self.kind}/{self.folder.name}" if not self.aside else f"{DAMAGED}/{self.folder.name}"


def contents(store: Store) -> list[StageFolder]:
    """Everything in the store, by kind, then by key; of other names of a folder, see ``StageFolder.also``.

    Folders that no stage is called like are somebody's, and left alone.
    """
    kinds = sorted(path for path in _folders(store.root) if path.name not in NO_KINDS)
    found = [kept for kind in kinds for kept in _of_kind(store, kind)]
    there = {(kept.kind, key) for kept in found if kept.state == "finished" for key in kept.keys}
    for folder in sorted(folder for kind in _folders(store.root / DROPPED) for folder in _folders(kind)):
        kind = folder.parent.name
        if (kind, folder.name) not in there:
            found.append(StageFolder(folder, kind, folder.name, DROPPED, *_seen(folder), _facts(folder)))
    for folder in sorted(_folders(store.root / DAMAGED)):
        kind, key, *_ = [*folder.name.split("-"), ""]
        size, _ = _seen(folder)
        found.append(StageFolder(folder, kind, key, DAMAGED, size, folder.stat().st_ctime))  # when it was put aside
    return found


def _of_kind(store: Store, place: Path) -> Iterator[StageFolder]:
    also: dict[str, list[str]] = {}
    for link in (path for path in sorted(place.iterdir()) if path.is_symlink()):
        also.setdefault(link.resolve().name, []).append(link.name)
    for folder in sorted(path for path in _folders(place) if not path.is_symlink()):
        if not KEY.fullmatch(key := folder.name.removesuffix(".part")):
            continue
        busy, others = _busy(store, place.name, key), tuple(also.get(folder.name, ()))
        if folder.name != key:
            yield StageFolder(folder, place.name, key, "unfinished", *_seen(folder), _begun(folder), (), busy)
        elif facts := _facts(folder):
            used = _modified(folder / FACTS)
            yield StageFolder(folder, place.name, key, "finished", bytes_of(folder, facts), used, facts, others, busy)
        else:
            yield StageFolder(folder, place.name, key, DAMAGED, *_seen(folder), {}, others, busy)


def _folders(place: Path) -> list[Path]:
    return [path for path in place.iterdir() if path.is_dir()] if place.is_dir() else []


def _facts(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return read_facts(folder)
    return {}


def _begun(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        if isinstance(begun := json.loads((folder / BEGUN).read_text(encoding="utf-8")), dict):
            return begun
    return {}


def _seen(folder: Path) -> tuple[int, float]:
    """Bytes of a folder's files, and when one of them was last written; others may be at work in it."""
    size, newest = 0, _modified(folder)
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            stat = path.stat()
            size, newest = size + stat.st_size * path.is_file(), max(newest, stat.st_mtime)
    return size, newest


def _modified(path: Path) -> float:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def _busy(store: Store, kind: str, key: str) -> bool:
    """Whether somebody holds its lock, or did so not long ago."""
    return time.time() - _modified(store.leases.file(kind, key)) < leases.LEASE


# -- choosing ----------------------------------------------------------------------------------------------------------


def called(store: Store, there: Sequence[StageFolder], text: str) -> list[StageFolder]:
    """What a person calls ``text``: a key or how it begins, KIND/KEY, a folder of the store, or a file in one or, as
    far as it is equal to one there, elsewhere.

    Raises ValueError if there is none, and for several keys.
    """
    path = Path(text).expanduser()
    place = (path if path.exists() else store.root / text).resolve()
    found = [kept for kept in there if place.is_relative_to(kept.folder.resolve())]
    if not found and path.is_file():
        size, digest = path.stat().st_size, file_digest(path)
        found = [kept for kept in there if [size, digest] in map(list, kept.facts.get("files", {}).values())]
    elif not found and len(text) >= SHORTEST:
        found = [kept for kept in there if any(key.startswith(text) for key in kept.keys)]
        if len(keys := {kept.key for kept in found}) > 1:
            some = ", ".join(sorted(keys)[:5])
            raise ValueError(f"store: {text!r} begins {len(keys)} keys ({some}); give more of it")
    if not found:
        raise ValueError(
            f"store: {text!r} is no stage of {store.root}; give a key or at least its first {SHORTEST} digits, a "
            "folder of the store, or a file that a stage wrote"
        )
    return found


def unneeded(there: Iterable[StageFolder], needed: Collection[str], before: float = math.inf) -> list[StageFolder]:
    """What is ``free``, what no key in ``needed`` asks for and what was last used ``before`` that time, in seconds
    since 1970; what was put aside as damaged is needed by nobody."""
    keys = frozenset(needed)
    return [kept for kept in free(there) if kept.aside or (not kept.keys & keys and kept.used < before)]


def free(there: Iterable[StageFolder]) -> list[StageFolder]:
    """The folders that no running process computes or reads."""
    there = list(there)
    read = {key for kept in there if kept.busy for key in kept.parents.values()}
    return [kept for kept in there if kept.aside or not (kept.busy or kept.keys & read)]


# -- changing ----------------------------------------------------------------------------------------------------------


@contextmanager
def _held(store: Store, kept: StageFolder) -> Iterator[bool]:
    """Hold its lock while the block runs; yields whether it is held and the folder is as it was seen."""
    try:
        with store.leases.of(kept.kind, kept.key):
            fresh = kept.state == "finished" and _modified(kept.folder / FACTS) != kept.used
            yield kept.folder.exists() and not fresh
    except Timeout:
        yield False


def remove(store: Store, kept: StageFolder, keep_facts: bool = False) -> bool:
    """Remove a folder and its other names; False if it was used since it was looked at, or a process computes it.

    ``keep_facts``: what a finished stage says of itself is kept, so that a record can still say what it took.
    """
    with _held(store, kept) as held:
        if not held:
            return False
        if keep_facts and kept.state == "finished":
            for key in kept.keys:
                with atomic_write(store.root / DROPPED / kept.kind / key / FACTS) as beside:
                    shutil.copyfile(kept.folder / FACTS, beside)
        gone = store.root / REMOVED / f"{kept.kind}-{kept.folder.name}-{secrets.token_hex(4)}"
        gone.parent.mkdir(exist_ok=True)
        kept.folder.rename(gone)  # at once: half a folder would be a damaged one
        for key in kept.also:
            (store.root / kept.kind / key).unlink(missing_ok=True)
    with suppress(FileNotFoundError):  # somebody tidied up
        shutil.rmtree(gone)
    return True


def put_aside(store: Store, kept: StageFolder) -> Path | None:
    """Move a damaged stage to ``damaged/``; where it is now, or None if a process computes it."""
    with _held(store, kept) as held:
        return store.move_aside(kept.folder) if held else None


def tidy(store: Store) -> None:
    """Remove what an interrupted removal left, and pointers to folders that are gone."""
    for gone in _folders(store.root / REMOVED):  # that folder stays: another process may be about to move one there
        shutil.rmtree(gone, ignore_errors=True)
    for pointer in (store.root / "content").glob("[!.]*"):
        with suppress(OSError, ValueError):
            if not (store.root / pointer.read_text(encoding="utf-8")).exists():
                pointer.unlink()
