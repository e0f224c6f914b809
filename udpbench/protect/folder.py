"""Pictures that were protected elsewhere: by Glaze, Nightshade, the official code of a method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.digest import files_digest
from udpbench.core.images import list_images
from udpbench.core.paired import check_paired, read_paired
from udpbench.interfaces import Dataset, Owner, Protection, Run


@dataclass(kw_only=True)
class Folder(Protection):
    """Takes the protected pictures from ``path``, paired by name (any suffix).

    A picture that is missing or of another size is an error (``data.geometry=native`` has the owner's at the sizes they
    came in, as ``udpbench protect`` writes them). The budget is not enforced: what was changed is measured,
    as for every protection.
    """

    path: str | Path

    couples_images = False
    places = ("path",)
    keeps_budget = False

    def identity(self) -> dict[str, str]:
        return {"pictures": files_digest(list_images(Path(self.path).expanduser()))}

    def check_data(self, data: Dataset) -> None:
        """ValueError if a picture is missing or of another size than the data's."""
        check_paired(Path(self.path).expanduser(), data.known_sizes())

    def protect(self, owner: Owner, budget: Budget, surrogate: Any, run: Run) -> list[Tensor]:
        pictures = read_paired(Path(self.path).expanduser(), owner.names, owner.images)
        return [x.to(clean.device) for x, clean in zip(pictures, owner.images, strict=True)]
