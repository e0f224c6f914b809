"""Pictures that were protected elsewhere: Glaze, Nightshade, a method's official code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.digest import files_digest
from udpbench.core.images import list_images, read_paired
from udpbench.interfaces import Owner, Run


class Folder:
    """Takes the protected pictures from ``path``.

    Paired by name (any suffix), of the same sizes, everything else is an error. The budget is not enforced on them:
    what they changed is measured, as for every protection.
    """

    version: ClassVar[int] = 1
    places: ClassVar[tuple[str, ...]] = ("path",)
    couples_images: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    keeps_budget: ClassVar[bool] = False

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def identity(self) -> dict[str, str]:
        """Digest of the pictures."""
        return {"pictures": files_digest(list_images(self.path))}

    def __call__(self, owner: Owner, budget: Budget, surrogates: Sequence, run: Run) -> list[Tensor]:
        """The pictures of the owner's names, CHW float32 [0,1]."""
        pictures = read_paired(self.path, owner.names, owner.images)
        return [x.to(clean.device) for x, clean in zip(pictures, owner.images, strict=True)]
