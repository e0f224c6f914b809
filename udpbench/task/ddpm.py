"""Unconditional DDPM on pixels (Ho et al., NeurIPS 2020), trained from scratch or fine-tuned: UDP's first task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from udpbench.core.component import check_choice
from udpbench.core.images import iterate, to_uint8
from udpbench.core.memory import queued
from udpbench.interfaces import BARE, Run, Thief
from udpbench.models.pixel import PixelDiffusion
from udpbench.models.sample import PIXEL_SOLVERS, sample_pixels
from udpbench.optim.training import TrainingTask, over_prompts, write_made


@dataclass(kw_only=True)
class Ddpm(TrainingTask):
    """Train a pixel model on a folder of pictures and sample from it; captions and prompts are not used.

    Args:
        init: ``random``: fresh weights in the victim's shape (from scratch); ``copy``: the victim's own (fine-tuning).
        flip: mirror each training picture with probability 1/2.
    """

    init: str = "random"
    flip: bool = True
    solver: str = "ddpm"

    name: ClassVar[str] = "ddpm"
    needs = frozenset({"denoise", "pixel"})
    takes: ClassVar[frozenset[str]] = frozenset({"purify", "adapt", "augment"})
    solvers: ClassVar[tuple[str, ...]] = PIXEL_SOLVERS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("ddpm: unknown init", self.init, ("random", "copy"))

    @property
    def starts_from_weights(self) -> bool:
        return self.init == "copy"

    def sampling_key(self) -> dict[str, Any]:
        """The settings that generated pictures depend on; ``init`` makes the pretrained ones."""
        return super().sampling_key() | {"init": self.init}

    def train(self, images: Path, out: Path, victim: PixelDiffusion, run: Run, thief: Thief = BARE) -> None:
        attack, model = thief.attack, victim.on(run)
        data = load_pictures(images, model.size, run)
        if "adapt" in attack.hooks:  # which needs the pictures as floats, four times their size
            model = self.adapted(attack, model, list(data.cpu().float() / 255), out, run)
        trainable = model.trainable(run.rng("init"), self.init)

        def loss(step: int) -> Tensor:
            rng = run.rng("train", step)
            index = torch.randint(len(data), (self.batch,), generator=rng)
            mirrored = torch.rand(self.batch, generator=rng) < (0.5 if self.flip else 0.0)
            x = data[queued(index, data.device)].float() / 255
            x = torch.where(queued(mirrored, x.device).view(-1, 1, 1, 1), x.flip(-1), x)
            with torch.autocast(x.device.type, enabled=False):
                x = attack.augment(x, rng)
            run.tally("unet_victim", self.batch)
            return trainable.model.training_loss(model.encode(x), model.embed([""] * self.batch), rng).mean()

        self.fit(trainable, loss, out, run)

    def generate(self, tuned: Path | None, out: Path, victim: PixelDiffusion, run: Run, thief: Thief) -> None:
        """As the interface says; before any step with ``init`` random: by fresh weights."""
        model = victim.on(run)
        if tuned is not None:
            model = model.with_tuned(tuned)
        elif self.init == "random":
            model = model.having(unet=model.fresh_unet("random", run.rng("init")).eval())

        def make(left: list[int]) -> Iterator[Tensor]:
            return sample_pixels(model, left, run, steps=self.sample_steps, solver=self.solver)

        write_made(over_prompts([""], self.pictures), out, run, make, model.size)


def load_pictures(folder: Path, size: int, run: Run) -> Tensor:
    """All pictures of ``folder`` as squares: (N, 3, size, size) uint8 on the run's device, sorted by name."""
    return torch.cat([to_uint8(x) for _, x in iterate(folder, 512, size)]).to(run.device)
