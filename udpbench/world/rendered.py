"""The common part of the rendered data sets: numbers of pictures by folder, and one loop that writes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from udpbench.core.folders import numbered, write_pictures
from udpbench.core.images import write_masks
from udpbench.interfaces import Dataset, Run
from udpbench.world import renderer

CHUNK = 256  # pictures rendered at once


@dataclass(kw_only=True)
class Rendered(Dataset):
    """Pictures of the embedded world. They do not depend on the run's seed.

    Args:
        size: side in pixels.
        train, reference, validation, heldout: how many pictures of each kind.
    """

    size: int
    train: int
    reference: int
    validation: int
    heldout: int

    option: ClassVar[str]  # its name, in messages and in the keys of its random numbers
    most: ClassVar[int | None] = None  # training pictures at most

    def __post_init__(self) -> None:
        counts = {"train": self.train, "reference": self.reference, "validation": self.validation}
        self.sizes = {**counts, "heldout": self.heldout} | self.further()
        most = self.most or self.train
        if self.size < 16 or not 1 <= self.train <= most or min(self.sizes.values()) < 0:
            train = f"1 to {self.most}" if self.most else ">= 1"
            raise ValueError(
                f"data {self.option}: size must be >= 16, train {train}, the other numbers >= 0, "
                f"given {self.size}, {', '.join(map(str, self.sizes.values()))}"
            )

    def further(self) -> dict[str, int]:
        """Numbers of pictures in further folders."""
        return {}

    def render(
        self,
        out: Path,
        run: Run,
        draw: Callable[[str, int], renderer.Scenery],
        texts: Callable[[str, renderer.Scenery], list[str]],
        change: Callable[[Tensor], Tensor] = lambda x: x,
        digits: int = 4,
    ) -> None:
        """Write every folder of ``sizes`` and, if the data has them, the masks of the training pictures.

        ``draw(part, n)``: the scenes of a folder; ``texts(part, scenes)``: their captions; ``change``: of the rendered
        pictures, NCHW; ``digits``: of the file names.
        """
        with run.log.bar("render", sum(self.sizes.values()), "img") as advance:
            for part, n in self.sizes.items():
                if not n:
                    continue
                s = draw(part, n)
                parts = (s.take(slice(first, first + CHUNK)) for first in range(0, n, CHUNK))
                pictures = (picture for some in parts for picture in change(renderer.render(some, self.size)))
                names = write_pictures(out / part, numbered(pictures, digits), texts(part, s), advance)
                if part == "train" and self.has_masks:
                    write_masks(out / "masks", names, renderer.silhouettes(s, self.size))
