"""What of a folder of pictures is data for ``protect`` and ``purify``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from udpbench.core.captions import BESIDE as CAPTIONS
from udpbench.core.captions import is_table
from udpbench.core.errors import ConfigError
from udpbench.core.images import SUFFIXES, list_images

# Beside pictures, and no data: what cameras and editors of pictures or texts leave there.
BESIDE = (".aae", ".xmp", ".mov", ".thm", ".bak", ".orig")


def pictures_below(source: Path, *others: Path) -> int:
    """How many pictures are in subfolders of ``source`` that are neither hidden nor one of the ``others``."""
    found, apart = 0, {path.resolve() for path in others}
    for folder, inside, files in os.walk(source):
        at = Path(folder)
        inside[:] = [name for name in inside if not name.startswith(".") and (at / name).resolve() not in apart]
        names = (name for name in files if not name.startswith(".") and at != source)
        found += sum(Path(name).suffix.lower() in SUFFIXES for name in names)
    return found


def data_of(source: Path, below: int, captions: bool, scratch: Path) -> Path:
    """A folder in ``scratch``, of the name of ``source``, with links to what of that is data: no subfolders, nothing
    that lies beside pictures (``BESIDE``) and, unless asked for, no ``captions``.

    ``below``: how many pictures are in subfolders, for an error that says so if there are none elsewhere.
    """
    try:
        list_images(source)
    except ValueError as error:
        if below and str(error).startswith("images: no picture"):
            raise ValueError(f"images: no picture in {source}; subfolders are not read, they hold {below}") from error
        raise
    folder = scratch / source.resolve().name
    folder.mkdir(parents=True)
    for path in source.iterdir():
        suffix = path.suffix.lower()
        caption = suffix in CAPTIONS or is_table(path)
        beside = suffix in BESIDE or path.name.endswith("~") or (caption and not captions)
        if not (path.name.startswith(".") or path.is_dir() or beside):
            (folder / path.name).symlink_to(path.absolute())
    return folder


@contextmanager
def called(folder: Path, source: Path) -> Iterator[None]:
    """Within the block errors name ``source``, of which ``folder`` holds the data."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error).replace(str(folder.resolve()), str(source.resolve()))) from error
