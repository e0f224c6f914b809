"""Data set of the embedded world: thousands of small pictures, for models that are trained from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from udpbench.core.folders import write_facts, write_pictures
from udpbench.core.images import write_metadata
from udpbench.interfaces import Run
from udpbench.world import renderer

CHUNK = 256  # pictures rendered at once


class ToyWorldMany:
    """Renderings of the whole pretraining world, without words: every caption and prompt is empty.

    There is no subject: what is learned is the distribution, and ``reference``, ``validation`` and ``heldout`` are
    further draws from it. Held-out combinations never occur. The pictures do not depend on the run's seed.
    """

    version: ClassVar[int] = 2
    subject: ClassVar[str] = ""

    def __init__(
        self, size: int = 32, train: int = 1000, reference: int = 1000, validation: int = 1000, heldout: int = 1000
    ) -> None:
        if size < 16 or train < 1 or min(reference, validation, heldout) < 0:
            raise ValueError(
                "data toyworld_many: size must be >= 16, train >= 1, the other numbers >= 0, "
                f"given {size}, {train}, {reference}, {validation}, {heldout}"
            )
        self.size = size
        self.sizes = {"train": train, "reference": reference, "validation": validation, "heldout": heldout}

    def __call__(self, out: Path, run: Run) -> None:
        """Write ``out`` as a data folder."""
        with run.log.bar("render", sum(self.sizes.values()), "img") as advance:
            for part, n in self.sizes.items():
                if not n:
                    continue
                scenery = renderer.draw(n, Run(0).rng("toyworld_many", part))
                pictures = (
                    (f"{first + i:05d}", picture)
                    for first in range(0, n, CHUNK)
                    for i, picture in enumerate(renderer.render(scenery.take(slice(first, first + CHUNK)), self.size))
                )
                names = write_pictures(out / part, pictures, advance)
                write_metadata(out / part, {name: {"text": ""} for name in names})
        write_facts(out, "toyworld, many objects", "", "", [""], sets=True)
