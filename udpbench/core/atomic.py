"""Atomic writes: under its name a file is complete, or it is not there; also after a power loss."""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile


@contextmanager
def atomic_write(path: Path, synced: bool = True) -> Iterator[Path]:
    """A name beside ``path`` to write to, which becomes ``path`` when the block ends.

    If it does not, ``path`` stays as it was. The folder is made. Names that end in ``.part`` are
    those of incomplete files. ``synced``: the file is on the disk before it gets its name, so that a power loss leaves
    it whole, too; without, it may be empty then (half a millisecond a file, which many pictures are not worth: they
    are looked at when they are read).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    short = f"{zlib.crc32(os.fsencode(path.name)):08x}"  # a name may be as long as names can be
    beside = path.with_name(f".{short}.{secrets.token_hex(4)}.part")  # ids of processes are the same in two containers
    try:
        yield beside
        if synced:
            sync(beside)
        os.replace(beside, path)
        if synced:
            sync(path.parent)
    except OSError as error:
        if str(beside) in (error.filename, error.filename2):  # nobody knows that name
            error.filename, error.filename2 = str(path), None
        name_file(error, path)
        raise
    finally:
        beside.unlink(missing_ok=True)


def atomic_text(path: Path, text: str, synced: bool = True, newline: str | None = None) -> None:
    """``text`` as a file in UTF-8, by an atomic write; ``newline`` as of ``open``."""
    with atomic_write(path, synced) as beside:
        beside.write_text(text, encoding="utf-8", newline=newline)


def try_folder(path: Path) -> None:
    """Make a folder and see, before any work, that files can be written there; ValueError in one line if not."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to the folder {path}: {error.strerror}; give another one") from error


def name_file(error: OSError, path: Path) -> None:
    """Have an error of the system say where: a write to a full disk does not."""
    if error.errno and not error.filename:
        error.filename = str(path)


def sync(*paths: Path) -> None:
    """Have files and folders written to the disk; a file system that cannot sync a folder is left to itself."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError:
            if not path.is_dir():
                raise
        finally:
            os.close(handle)
