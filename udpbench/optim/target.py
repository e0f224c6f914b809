"""The picture that a protection moves others towards: a file of the user's, or a default."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from udpbench.core.digest import files_digest
from udpbench.core.images import fit_square, read


def check_target(method: str, target: str | None, default: str) -> None:
    """ValueError if the ``target`` of ``method`` is no file; ``default``: what None stands for."""
    if target is not None and not Path(target).expanduser().is_file():
        raise ValueError(f"{method}: no picture {target}; give a file or target=null ({default})")


def target_digest(target: str | None, default: str) -> str:
    """Digest of the file ``target``; ``default`` for None."""
    return default if target is None else files_digest([Path(target).expanduser()])


def target_picture(target: str, size: tuple[int, ...]) -> Tensor:
    """The target for pictures of ``size`` (height, width): its centre square, cut to that size; 1CHW [0,1]."""
    return fit_square(read(Path(target).expanduser()), max(size))[None, :, : size[0], : size[1]]
