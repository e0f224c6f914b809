"""Protections that move pictures towards a target: a file of the user's, or a default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from udpbench.core.digest import files_digest
from udpbench.core.images import read
from udpbench.core.pixels import centre_square, resize
from udpbench.interfaces import Owner, Protection


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of each of N, (N,)."""
    return (a - b).square().flatten(1).mean(1)


@dataclass(kw_only=True)
class Targeted(Protection):
    """A protection with a target.

    Args:
        target: file of the target picture; None: ``default``.
    """

    target: str | None = None

    places: ClassVar[tuple[str, ...]] = ("target",)
    name: ClassVar[str]  # in messages
    default: ClassVar[str]  # what no file stands for

    def check(self) -> None:
        if self.target is not None and not Path(self.target).expanduser().is_file():
            todo = f"give a file or target=null (the default: {self.default})"
            raise ValueError(f"{self.name}: no picture {self.target}; {todo}")

    def identity(self) -> dict[str, str]:
        self.check()
        return {"target": files_digest([Path(self.target).expanduser()]) if self.target else self.default}

    def picture(self, size: tuple[int, ...]) -> Tensor | None:
        """The target for pictures of ``size`` (height, width): its centre square, resized to that; 1CHW [0,1]."""
        if self.target is None:
            return None
        return resize(centre_square(read(Path(self.target).expanduser()))[None], (size[0], size[1]))

    def target_latents(self, model: Any, owner: Owner) -> list[Tensor]:
        """Latents (C, h, w), the posterior's mean, of the target at the size of each of the owner's pictures."""
        sizes = {tuple(x.shape[-2:]) for x in owner.images}
        found = {size: model.encode(self.picture(size).to(model.device))[0] for size in sizes}  # type: ignore[union-attr]
        return [found[tuple(x.shape[-2:])] for x in owner.images]


@dataclass(kw_only=True)
class Patterned(Targeted):
    """A protection whose default target is a pattern.

    The released codes aim at pictures of their own (Mist's MIST.png, ACE's NIPS.png: high contrast, periodic), which
    are not ours to pass on. The default is another one of that kind, a checkerboard; ``target`` takes theirs.
    """

    default: ClassVar[str] = "checkerboard"

    def picture(self, size: tuple[int, ...]) -> Tensor:
        found = super().picture(size)
        return checkerboard(size[0], size[1]) if found is None else found


def checkerboard(height: int, width: int) -> Tensor:
    """Black and white squares, eight along the shorter side, 1CHW [0,1]."""
    side = max(min(height, width) // 8, 1)
    rows, columns = torch.arange(height) // side, torch.arange(width) // side
    return ((rows[:, None] + columns) % 2).float().expand(1, 3, -1, -1)
