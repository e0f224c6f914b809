"""The common part of the rendered data sets: numbers of pictures by folder, and one loop that writes them."""

from __future__ import annotations

import math
from collections.abc import Callable
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
    option: ClassVar[str]  # its name, in messages and in the keys of its random numbers
    most: ClassVar[float] = math.inf  # training pictures at most

    def __post_init__(self) -> None:
        self.sizes = {part: vars(self)[part] for part in PARTS}
        check_numbers(f"data {self.option}", least=16, size=self.size)
        check_numbers(f"data {self.option}", least=1, most=self.most, train=self.train)
        check_numbers(f"data {self.option}", least=0, **self.sizes)

    def shortest_side(self) -> int:
        return self.size

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
