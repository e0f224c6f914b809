"""IMPRESS's observation: protected pictures reconstruct inconsistently (Cao et al., NeurIPS 2023, section 4.1)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch

from udpbench.interfaces import Run
from udpbench.metrics.pairs import Measure, PairMetric
from udpbench.models.latent import LatentDiffusion


class Inconsistency(PairMetric):
    """How far a picture is from its autoencoder reconstruction, and whether that gives a protection away.

    ``inconsistency``: mean over pictures of mean |x - D(E(x))|, in 8-bit levels. ``inconsistency_auc``: probability
    that a changed picture's is larger than an original one's, ties counting half (the area under the ROC curve of
    that detector): 0.5 gives nothing away. ``inconsistency_auc_vs_noise``: the same with pictures under noise of the
    same budget in place of the originals: at or below 0.5, it is being changed that shows, not being protected.
    """

    version: ClassVar[int] = 1

    def __init__(self, model: LatentDiffusion) -> None:
        if "latent" not in model.capabilities:
            raise ValueError(f"inconsistency: model {model.name} has no autoencoder; give a latent model")
        self.model = model
        self.scores = {"inconsistency": "down", "inconsistency_auc": "down"}

    def identity(self) -> dict[str, str]:
        """Of the model's autoencoder."""
        found = self.model.identity()
        return {k: found[k] for k in ("vae", "hub", "revision", "dtype") if k in found}

    def prepare(self, device: torch.device) -> Measure:
        """Inconsistency of the changed pictures and of the original ones."""
        model = self.model.to(device)

        def of(x: torch.Tensor) -> torch.Tensor:
            return 255 * (model.round_trip(x) - x).abs().flatten(1).mean(1)

        return lambda changed, original: {"inconsistency": of(changed), "original": of(original)}

    def __call__(self, got: Path, ref: Path, run: Run) -> dict[str, float]:
        """Mean and AUC of the folder ``got`` (changed) against ``ref`` (original)."""
        changed, original = self._both(got, ref, run)
        return {"inconsistency": float(changed.mean()), "inconsistency_auc": _auc(changed, original)}

    def against_noise(self, got: Path, noise: Path, run: Run) -> dict[str, float]:
        """The AUC of the folder ``got`` (changed) against ``noise``, the same pictures under noise instead."""
        return {"inconsistency_auc_vs_noise": _auc(*self._both(got, noise, run))}

    def _both(self, got: Path, ref: Path, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
        rows = list(self.per_image(got, ref, run).values())
        return torch.tensor([row["inconsistency"] for row in rows]), torch.tensor([row["original"] for row in rows])


def _auc(changed: torch.Tensor, original: torch.Tensor) -> float:
    larger = (changed[:, None] > original).double() + 0.5 * (changed[:, None] == original).double()
    return float(larger.mean())
