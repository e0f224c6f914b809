"""Pictures that were purified elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from udpbench.core.digest import files_digest
from udpbench.core.images import list_images, read_paired
from udpbench.interfaces import Run


class Folder:
    """Takes the purified pictures from ``path``.

    Paired by name (any suffix), of the same sizes, everything else is an error. ``clean``: the folder with what the
    same attack made of the clean pictures; without it there is no arm ``clean_attacked``, and where something is
    trained no residual.
    """

    version: ClassVar[int] = 1
    places: ClassVar[tuple[str, ...]] = ("path", "clean")
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, path: str | Path, clean: str | Path | None = None) -> None:
        self.path, self.clean = Path(path).expanduser(), None if clean is None else Path(clean).expanduser()

    def on_clean(self) -> Folder | None:
        """The same attack on the clean pictures; None if its pictures are not there."""
        return None if self.clean is None else Folder(self.clean)

    def identity(self) -> dict[str, str]:
        """Digest of the pictures."""
        return {"pictures": files_digest(list_images(self.path))}

    def purify(
        self, images: Sequence[Tensor], names: Sequence[str], prompts: Sequence[str], model: Any, run: Run
    ) -> list[Tensor]:
        """CHW float32 [0,1] each -> the picture of the same name in the folder, CHW float32 [0,1]."""
        return [x.to(image.device) for x, image in zip(read_paired(self.path, names, images), images, strict=True)]
