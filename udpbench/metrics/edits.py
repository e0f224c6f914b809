"""Distance of edits of changed pictures to edits of the clean ones that started from the same noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from udpbench.interfaces import Metric, PairMetric, Run

FLIPPED = {"up": "down", "down": "up"}


@dataclass(kw_only=True)
class Edits(Metric):
    """A metric of pairs, of the arm's edits against the clean arm's: ``edit_`` and the name of its scores.

    Directions are reversed: a perturbation should change the picture little and its edits much. The clean arm against
    itself is the metric's perfect value, or absent where that is not finite (PSNR, which so has scores and no effects);
    the arm ``reseeded``, clean pictures edited from other noise, shows how much edits differ by their noise alone.
    """

    of: PairMetric

    against = "clean_arm"

    def __post_init__(self) -> None:
        self.scores = {f"edit_{name}": FLIPPED[way] for name, way in self.of.scores.items()}
        self.least_side = self.of.least_side

    def check(self) -> None:
        self.of.check()

    def __call__(self, got: Path, ref: Path, run: Run) -> dict[str, float]:
        """Means over the edits in ``got`` against those of the same name in ``ref``."""
        return {f"edit_{name}": value for name, value in self.of(got, ref, run).items()}
