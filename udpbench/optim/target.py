"""The picture that a protection leads others to: a file of the user's."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from udpbench.core.images import fit_square, read


def check_target(method: str, target: Path | None, without: str) -> None:
    """ValueError if the ``target`` of ``method`` is not there; ``without``: what None stands for."""
    if target is not None and not target.is_file():
        raise ValueError(f"{method}: no picture {target}; give a file or target=null ({without})")


def target_picture(target: Path, size: tuple[int, ...]) -> Tensor:
    """The target for pictures of ``size`` (height, width): its centre square, cut to that; 1CHW [0,1]."""
    return fit_square(read(target), max(size))[None, :, : size[0], : size[1]]
