"""Digests of folders and big files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path


def folder_digest(folder: Path, skip: str = "") -> str:
    """SHA-256 (16 hex digits) over names and contents of all files in ``folder`` but those named ``skip``."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != skip):
        digest.update(f"{file.relative_to(folder)} {_file_digest(file)}\n".encode())
    return digest.hexdigest()[:16]


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
        cache.parent.mkdir(parents=True, exist_ok=True)
        beside = cache.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(known))
        os.replace(beside, cache)
    return known[key]
