"""Protections that move pictures towards a target: a file of the user's, or a default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from udpbench.core.digest import files_digest
from udpbench.core.images import centre_square, read, resize
from udpbench.interfaces import Protection


@dataclass(kw_only=True)
class Targeted(Protection):
    """A protection with a target.

    Args:
        target: file of the target picture; None: ``default``.
    """

    target: str | None = None

    places: ClassVar[tuple[str, ...]] = ("target",)
    option: ClassVar[str]  # its name in messages
    default: ClassVar[str]  # what no file stands for

    def check(self) -> None:
        if self.target is not None and not Path(self.target).expanduser().is_file():
            raise ValueError(
                f"{self.option}: no picture {self.target}; give a file or target=null (the default: {self.default})"
            )

    def identity(self) -> dict[str, str]:
        self.check()
        return {"target": files_digest([Path(self.target).expanduser()]) if self.target else self.default}

    def picture(self, size: tuple[int, ...]) -> Tensor | None:
        """The target for pictures of ``size`` (height, width): its centre square, resized to that; 1CHW [0,1]."""
        if self.target is None:
            return None
        return resize(centre_square(read(Path(self.target).expanduser()))[None], (size[0], size[1]))
