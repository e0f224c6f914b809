"""The common part of the rendered data sets: numbers of pictures by folder, and one loop that writes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from udpbench.core.component import check_numbers
from udpbench.core.folders import numbered, write_pictures
from udpbench.core.images import write_masks
from udpbench.interfaces import Dataset, Run
from udpbench.world import renderer

PARTS = ("train", "reference", "validation", "heldout", "extra_clean")
OWNED = ("train", "extra_clean")  # the owner's
CHUNK = 256  # pictures rendered at once


@dataclass(kw_only=True)
class Rendered(Dataset):
    """Pictures of the embedded world. They do not depend on the run's seed.

    Args:
        size: side in pixels.
        train, reference, validation, heldout: how many pictures of each kind.
        extra_clean: how many further clean pictures the owner has, which are not protected.
    """

    size: int
    train: int
    reference: int
    validation: int
    heldout: int
    extra_clean: int = 0

    rendered = True
    name: ClassVar[str]  # in messages
    most: ClassVar[float] = math.inf  # training pictures at most
    digits: ClassVar[int] = 4  # of the names of files

    def __post_init__(self) -> None:
        self.sizes = {part: vars(self)[part] for part in PARTS}
        check_numbers(f"data {self.name}", least=16, size=self.size)
        check_numbers(f"data {self.name}", least=1, most=self.most, train=self.train)
        check_numbers(f"data {self.name}", least=0, **self.sizes)

    def shortest_side(self) -> int:
        return self.size

    def scenery(self, part: str, n: int) -> renderer.Scenery:
        """The ``n`` scenes of the folder ``part``."""
        raise NotImplementedError

    def captions(self, part: str, s: renderer.Scenery) -> list[str]:
        """One for each of the scenes of a folder."""
        raise NotImplementedError

    def finished(self, x: Tensor) -> Tensor:
        """The data's pictures, of rendered ones; NCHW [0,1] both."""
        return x

    def write(self, out: Path, run: Run) -> None:
        """Write every folder of ``sizes``, the masks of the training pictures, if the data has them, and ``facts``."""
        with run.log.bar("render", sum(self.sizes.values()), "img") as advance:
            for part, n in self.sizes.items():
                if not n:
                    continue
                s = self.scenery(part, n)
                parts = (s.take(slice(first, first + CHUNK)) for first in range(0, n, CHUNK))
                pictures = (picture for some in parts for picture in self.finished(renderer.render(some, self.size)))
                names = write_pictures(out / part, numbered(pictures, self.digits), self.captions(part, s), advance)
                if part == "train" and self.has_masks:
                    write_masks(out / "masks", names, renderer.silhouettes(s, self.size))
        if facts := self.facts():
            facts.write(out)
