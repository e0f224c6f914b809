"""IMPRESS's observation: protected pictures reconstruct inconsistently (Cao et al., NeurIPS 2023, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from udpbench.interfaces import Measure, PairMetric, Run
from udpbench.models.latent import LatentDiffusion


@dataclass(kw_only=True)
class Inconsistency(PairMetric):
    """Distance of a picture to its autoencoder reconstruction, and whether that tells protected pictures from others.

    ``inconsistency``: mean over pictures of mean |x - D(E(x))|, of 255. ``inconsistency_auc``: probability that the
    value of a changed picture is larger than that of an original one, ties counting half (the area under the ROC curve
    of that detector): 0.5 detects nothing. ``inconsistency_auc_vs_noise``: the same with pictures under noise of the
    same budget in place of the originals: at or below 0.5, the detector finds changes, not protections.
    """

    model: LatentDiffusion

    places = ("model",)  # ``identity`` says what of it counts
    version = 2  # 2: latents of the picture alone, not of what it is padded with
    scores = {"inconsistency": "down", "inconsistency_auc": "down"}
    compares_with_noise = True

    def __post_init__(self) -> None:
        if "latent" not in self.model.capabilities:
            raise ValueError(f"inconsistency: model {self.model.name} has no autoencoder; give a latent model")

    def identity(self) -> dict[str, str]:
        """Of the model's autoencoder, which is not compiled here, and its dtype."""
        found = self.model.identity()
        return {k: found[k] for k in ("vae", "file", "hub", "revision", "dtype") if k in found}

    def prepare(self, device: torch.device) -> Measure:
        """Inconsistency of the changed pictures and of the original ones."""
        model = self.model.to(device)

        def of(x: Tensor) -> Tensor:
            return 255 * (model.round_trip(x) - x).abs().flatten(1).mean(1)

        return lambda changed, original: {"inconsistency": of(changed), "original": of(original)}

    def __call__(self, got: Path, ref: Path, run: Run) -> dict[str, float]:
        """Mean and AUC of the folder ``got`` (changed) against ``ref`` (original)."""
        changed, original = self._both(got, ref, run)
        return {"inconsistency": float(changed.mean()), "inconsistency_auc": _auc(changed, original)}

    def against_noise(self, got: Path, noise: Path, run: Run) -> dict[str, float]:
        return {"inconsistency_auc_vs_noise": _auc(*self._both(got, noise, run))}

    def _both(self, got: Path, ref: Path, run: Run) -> tuple[Tensor, Tensor]:
        rows = list(self.per_image(got, ref, run).values())
        return torch.tensor([row["inconsistency"] for row in rows]), torch.tensor([row["original"] for row in rows])


def _auc(changed: Tensor, original: Tensor) -> float:
    # How many originals are smaller, and how many not larger, by their order: all pairs might not fit in memory.
    ordered = original.sort().values
    smaller, not_larger = (torch.searchsorted(ordered, changed, right=right).double() for right in (False, True))
    return float((smaller + not_larger).mean() / (2 * len(original)))
