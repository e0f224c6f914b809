"""Digests of files and folders: SHA-256 over names and contents, 16 hex digits."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from udpbench.core.atomic import atomic_text

Listing = Mapping[str, Sequence[Any]]  # name in a folder -> its bytes and its digest
LITTER = ("Thumbs.db", "desktop.ini")  # of file managers, beside hidden files
SETTLED = 3 * 10**9  # nanoseconds: within them a file may change twice and bear the same times


def folder_digest(folder: Path) -> str:
    """Of all files in ``folder`` but what a file manager leaves there; where the folder lies does not matter."""
    files = (path for path in _files(folder) if not _is_litter(path))
    return _digest((str(path.relative_to(folder)), known_sha256(path)) for path in files)


def files_digest(paths: Iterable[Path]) -> str:
    """Of the files, in the order of their names; where they lie does not matter."""
    return _digest((path.name, known_sha256(path)) for path in paths)


def file_digest(file: Path) -> str:
    """Of a file's contents, as listings have it."""
    return _sha256(file)[:16]


def listed(folder: Path, skip: str = "") -> tuple[str, Listing]:
    """The digest of ``folder``, and the size and digest of every file in it but those named ``skip``, as
    ``difference`` takes them."""
    files = sorted(path for path in _files(folder) if path.name != skip)
    digests = {str(path.relative_to(folder)): _sha256(path) for path in files}
    listing = {name: [(folder / name).stat().st_size, digest[:16]] for name, digest in digests.items()}
    return _digest(digests.items()), listing


def difference(folder: Path, listing: Listing, skip: str, digests: bool = True) -> str:
    """What of a folder is not as it was listed, in words that name one file; nothing: "".

    ``skip``: the name of files that were not listed. ``digests``: look at contents, too, not only at names and sizes.
    What a file manager leaves in a folder (hidden files, ``LITTER``) is nothing unless it was listed. Raises OSError
    for what cannot be read.
    """
    there = {str(path.relative_to(folder)): path for path in _files(folder) if path.name != skip}
    for name, (size, digest) in listing.items():
        if (path := there.pop(name, None)) is None:
            return f"{name} is missing"
        try:
            if (now := path.stat().st_size) != size:
                return f"{name} has {now} bytes, not {size}"
            if digests and file_digest(path) != digest:
                return f"{name} is not what was written"
        except FileNotFoundError:
            return f"{name} is missing"
    odd = sorted(name for name, path in there.items() if not _is_litter(path))
    return f"{odd[0]} does not belong there" if odd else ""


def _is_litter(path: Path) -> bool:
    return path.name.startswith(".") or path.name in LITTER


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _digest(named: Iterable[tuple[str, str]]) -> str:
    total = hashlib.sha256()
    for name, digest in sorted(named):
        total.update(f"{name} {digest}\n".encode(errors="surrogatepass"))  # names need not be text
    return total.hexdigest()[:16]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_sha256(file: Path) -> str:
    """SHA-256 of a file.

    Once it has not been written to for some seconds it is remembered by path, size, times of change and inode: of files
    over 16 MiB in the user's cache folder, of smaller ones, the same for cell after cell, within the process.
    """
    stat = file.stat()
    if 0 <= time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) < SETTLED:
        return _sha256(file)
    seen = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino  # unpacking may keep the time of modification
    if stat.st_size >= 1 << 24:
        return remembered(f"{file.resolve()} {seen}", lambda: _sha256(file))
    return _settled_digest(file, *seen)


@lru_cache(maxsize=1 << 17)  # fewer than a data folder has would never be met again
def _settled_digest(file: Path, *seen: int) -> str:
    """``_sha256`` of a file in the state ``seen``."""
    return _sha256(file)


def remembered(key: str, compute: Callable[[], str]) -> str:
    """What ``compute`` returned for this key, in this process or in an earlier one of this user."""
    known, place = _cached(), hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
    if place not in known:
        value = compute()
        known[place] = f"{value} {_check(place, value)}"
        with suppress(OSError, RuntimeError):
            atomic_text(_cache(), json.dumps(known))
    return known[place].rpartition(" ")[0]


def _check(place: str, value: str) -> str:
    return hashlib.sha256(f"{place} {value}".encode()).hexdigest()[:16]


def _cache() -> Path:
    """RuntimeError for a user without a home."""
    return Path.home() / ".cache" / "udpbench" / "digests.json"


def _cached() -> dict[str, str]:
    """What is remembered: only a cache, so one that cannot be read is an empty one."""
    with suppress(OSError, ValueError, RuntimeError):
        stat = _cache().stat()
        return dict(_read_cache(_cache(), stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return {}


@lru_cache(maxsize=1)
def _read_cache(file: Path, *seen: int) -> dict[str, str]:
    """What a cache in the state ``seen`` remembers; it is never changed in place."""
    if not isinstance(known := json.loads(file.read_text(encoding="utf-8")), dict):
        return {}
    values = {place: str(kept).rpartition(" ") for place, kept in known.items()}
    return {place: known[place] for place, (value, _, sum_) in values.items() if sum_ == _check(place, value)}
