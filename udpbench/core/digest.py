"""Digests of files and folders: SHA-256 over names and contents, 16 hex digits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from udpbench.core.atomic import atomic_write


def folder_digest(folder: Path, skip: str = "") -> str:
    """Of all files in ``folder`` but those named ``skip``; where the folder lies does not matter."""
    return _digest((str(p.relative_to(folder)), p) for p in folder.rglob("*") if p.is_file() and p.name != skip)


def files_digest(paths: Iterable[Path]) -> str:
    """Of the files, in the order of their names; where they lie does not matter."""
    return _digest((p.name, p) for p in paths)


def _digest(named: Iterable[tuple[str, Path]]) -> str:
    total = hashlib.sha256()
    for name, file in sorted(named):
        total.update(f"{name} {_file_digest(file)}\n".encode())
    return total.hexdigest()[:16]


def _file_digest(file: Path) -> str:
    """SHA-256 of a file.

    Those over 16 MiB are remembered in the user's cache folder by path, size and modification time.
    """
    stat = file.stat()
    if stat.st_size < 1 << 24:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    cache = Path.home() / ".cache" / "udpbench" / "digests.json"
    known = json.loads(cache.read_text()) if cache.exists() else {}
    key = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    if key not in known:
        with file.open("rb") as stream:
            known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        with suppress(OSError), atomic_write(cache) as beside:  # only a cache: without it, digests are computed anew
            beside.write_text(json.dumps(known))
    return known[key]
