"""The loss that a protection raised, measured again: of the saved pictures, with noise it was not made for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from udpbench.core.component import check_numbers
from udpbench.interfaces import Measure, PairMetric, Run
from udpbench.models.diffusion import Diffusion


@dataclass(kw_only=True)
class Denoising(PairMetric):
    """``denoising_ratio``: the pretrained model's mean denoising loss on changed pictures over that on the originals.

    Both see the same time steps (evenly spaced over the schedule) and the same noise, the same in every folder and
    run, and no prompt. 1: the change makes no difference to the model; UDP, EUDP and AdvDM raise it above 1.

    Args:
        model: whose loss.
        samples: time steps per picture.
    """

    model: Diffusion
    samples: int

    places = ("model",)  # ``identity`` says what of it counts
    version = 2  # 2: the loss is of the picture alone, not of what it is padded with
    scores = {"denoising_ratio": "up"}

    def __post_init__(self) -> None:
        check_numbers("denoising", least=1, samples=self.samples)
        if "denoise" not in self.model.capabilities:
            why = "needs a mask beside the noisy picture; give one that does not"
            raise ValueError(f"denoising: model {self.model.name} {why}")

    def identity(self) -> dict[str, str]:
        return {name: value for name, value in self.model.identity().items() if name != "compile"}  # it runs as it is

    def prepare(self, device: torch.device) -> Measure:
        """Mean losses of the changed pictures and of the original ones."""
        model = self.model.to(device)
        steps = len(model.alpha_bar)
        t = torch.tensor([int((k + 0.5) * steps / self.samples) for k in range(self.samples)], device=device)

        def of(x: Tensor) -> Tensor:
            z = model.encode(x)
            noise = torch.stack([torch.randn(z.shape[1:], generator=Run().rng("denoising", k)) for k in range(len(t))])
            cond = model.embed([""] * len(t))
            # One picture at a time: as many rows as samples, whatever the batch.
            return torch.stack([model.loss(row.expand_as(noise), cond, t, noise.to(device)).mean() for row in z])

        return lambda changed, original: {"changed": of(changed), "original": of(original)}

    def __call__(self, got: Path, ref: Path, run: Run) -> dict[str, float]:
        """The ratio of the mean losses of the folders ``got`` (changed) and ``ref`` (original)."""
        rows = self.per_image(got, ref, run).values()
        return {"denoising_ratio": sum(row["changed"] for row in rows) / sum(row["original"] for row in rows)}
