"""Pictures that were purified elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from udpbench.core.digest import files_digest
from udpbench.core.images import list_images
from udpbench.core.paired import check_paired, read_paired
from udpbench.interfaces import Attack, Dataset, Images, Run, Texts


@dataclass(kw_only=True)
class Folder(Attack):
    """Takes the purified pictures from ``path``, paired by name (any suffix).

    A picture that is missing or of another size is an error.

    Args:
        path: the folder.
        clean: the folder with the clean pictures after the same attack; None: there is no arm ``clean_attacked``, and
            where something is trained no residual.
    """

    path: str | Path
    clean: str | Path | None = None

    places = ("path", "clean")

    def on_clean(self) -> Folder | None:
        return None if self.clean is None else Folder(path=self.clean)

    def identity(self) -> dict[str, str]:
        return {"pictures": files_digest(list_images(Path(self.path).expanduser()))}

    def check_data(self, data: Dataset) -> None:
        """ValueError if a picture is missing or of another size than the data's."""
        for folder in (self.path, *([self.clean] if self.clean else [])):
            check_paired(Path(folder).expanduser(), data.known_sizes())

    def purify(self, images: Images, names: Texts, prompts: Texts, model: Any, run: Run) -> list[Tensor]:
        pictures = read_paired(Path(self.path).expanduser(), names, images)
        return [x.to(image.device) for x, image in zip(pictures, images, strict=True)]
