"""Where weights that nobody may download for the user are looked for."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from udpbench.core.digest import known_sha256

# The end of the line on a missing file: whoever knows the name of that setting puts it there.
OR_GIVEN = ", or give its path as the setting `weights` of what needs it"


def weights_file(what: str, file: str, source: str, given: str | Path | None = None) -> Path:
    """The weights ``given``, or ``file`` in the torch hub's checkpoints folder.

    Nothing is downloaded. Raises ValueError if it is missing (``OR_GIVEN`` ends the line), or if ``file`` names the
    start of a sha256 (torch hub's habit) that is not the content's.
    """
    path = Path(given).expanduser() if given else Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.is_file():
        url, home = f"{source}/{file}", Path.home()  # the line goes into records: it names no home of one machine
        place = Path("~", path.relative_to(home)) if path.is_relative_to(home) else path
        if given:
            raise ValueError(f"{what}: there is no file {place}; the weights are {url}")
        raise ValueError(f"{what}: weights are missing; put {url} at {place}{OR_GIVEN}")
    wanted = re.search(r"-([0-9a-f]{8})\.", file)
    if wanted:
        found = known_sha256(path)
        if not found.startswith(wanted[1]):
            raise ValueError(f"{what}: {path} is not {file}: its sha256 starts with {found[:8]}, not {wanted[1]}")
    return path
