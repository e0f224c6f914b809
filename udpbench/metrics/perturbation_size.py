"""How large the change of each picture is."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from udpbench.core.budget import measure
from udpbench.interfaces import Measure, PairMetric, Run


class PerturbationSize(PairMetric):
    """How large the change is, of 255: ``linf`` and ``rms_max`` of the worst picture, ``rms`` averaged over
    pictures."""

    version = 2
    scores = {"linf": "down", "rms": "down", "rms_max": "down"}

    def prepare(self, device: torch.device) -> Measure:
        def values(changed: Tensor, original: Tensor) -> dict[str, Tensor]:
            rows = [measure(clean, protected) for clean, protected in zip(original, changed, strict=True)]
            return {norm: torch.tensor([row[norm] for row in rows], dtype=torch.float64) for norm in ("linf", "rms")}

        return values

    def __call__(self, got: Path, ref: Path, run: Run) -> dict[str, float]:
        """The largest ``linf`` and ``rms``, and the mean ``rms``."""
        rows = self.per_image(got, ref, run).values()
        linf, rms = ([row[norm] for row in rows] for norm in ("linf", "rms"))
        return {"linf": max(linf), "rms": sum(rms) / len(rms), "rms_max": max(rms)}
