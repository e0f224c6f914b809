"""What a person is told of a disk that is full or may not be written."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NO_MORE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # nothing more can be written there
FULL = 1_000_000  # bytes that are left on a disk where nothing can be written any more


def disk_error(error: Exception, runtime: Mapping[str, Any] | None = None) -> str | None:
    """One line with the place and the setting that moves it, if ``error`` is that of a disk; None if not.

    ``runtime``: the settings of what was written, if they are known: then a place that denies it counts, too. Without
    them it may be the store or a folder that was given. torch, safetensors and others have errors of their own for a
    full disk, which do not say where: the disks are looked at.
    """
    places = {f"runtime.{name}": Path(runtime[name]) for name in ("out", "store", "records")} if runtime else {}
    full = next((name for name, path in places.items() if path.exists() and shutil.disk_usage(path).free < FULL), None)
    if isinstance(error, OSError) and error.errno in (*NO_MORE, *([errno.EACCES] if places else [])):
        path = Path(error.filename) if error.filename else places.get(full or "runtime.out")
        within = (name for name, place in places.items() if path and path.absolute().is_relative_to(place.absolute()))
        setting = next(within, full or ("runtime.out" if places else None))
        what = f"cannot write{f' {path}' if path else ''}: {error.strerror}"
    elif full and not isinstance(error, ValueError):
        what, setting = f"{places[full]} is full", full
    else:
        return None
    how = f"with {setting}=DIR" if setting else "(runtime.store=DIR moves the store)"
    return f"{what}; free some space, or write elsewhere {how}"
