"""Data set of the embedded world: thousands of small pictures, for models that are trained from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from udpbench.core.component import check_numbers
from udpbench.core.folders import Facts
from udpbench.interfaces import Run
from udpbench.world import renderer
from udpbench.world.rendered import Rendered


@dataclass(kw_only=True)
class ToyWorldMany(Rendered):
    """Renderings of the whole pretraining world, without words: every caption and prompt is empty.

    There is no subject: what is learned is the distribution, and ``reference``, ``validation`` and ``heldout`` are
    further samples of it. Held-out combinations never occur.

    Args:
        draw: which pictures of all kinds; what is chosen on one draw is tried on others.
    """

    size: int = 32
    train: int = 1000
    reference: int = 1000
    validation: int = 1000
    heldout: int = 1000
    draw: int = 0

    version = 2
    name = "toyworld_many"
    digits = 5
    later = {"draw": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers("data toyworld_many", least=0, draw=self.draw)
        self.subject = f"draw_{self.draw}" if self.draw else ""

    def scenery(self, part: str, n: int) -> renderer.Scenery:
        return renderer.draw(n, Run(0).rng("toyworld_many", part, *([self.draw] if self.draw else [])))

    def write(self, out: Path, run: Run) -> None:
        super().write(out, run)
        Facts("toyworld, many objects").write(out)

    def captions(self, part: str, s: renderer.Scenery) -> list[str]:
        return [""] * len(s)
