"""How far edits of changed pictures are from edits of the clean ones that started from the same noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from udpbench.interfaces import Run
from udpbench.metrics.pairs import PairMetric

FLIPPED = {"up": "down", "down": "up"}


class Edits:
    """A measure of pairs, of the arm's edits against the clean arm's: ``edit_`` and the measure's name.

    What the owner wants is turned round: a cloak shall not be seen, what it does to edits shall. The clean arm against
    itself is the measure's perfect value, or absent where that is not finite (PSNR, which so has scores and no
    effects); the arm ``reseeded``, clean pictures edited from other noise, shows how much edits differ for no reason
    at all.
    """

    against: ClassVar[str] = "clean_arm"
    minimum: ClassVar[int] = 1
    version: ClassVar[int] = 1

    def __init__(self, of: PairMetric) -> None:
        self.of = of
        self.scores = {f"edit_{name}": FLIPPED[wants] for name, wants in of.scores.items()}

    def identity(self) -> dict[str, Any]:
        """The version of the measure."""
        return {"of": self.of.version}

    def check(self) -> None:
        """ValueError saying what to do if weights are missing; nothing is loaded."""
        self.of.check()

    def __call__(self, got: Path, ref: Path, run: Run) -> dict[str, float]:
        """Means over the edits in ``got`` against those of the same name in ``ref``."""
        return {f"edit_{name}": value for name, value in self.of(got, ref, run).items()}
