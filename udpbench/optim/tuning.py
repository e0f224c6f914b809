"""Fine-tuning of a text-to-image latent model on captioned pictures: what DreamBooth, LoRA, styles and textual
inversion share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from udpbench.core.images import fit_square, read_folder, read_metadata
from udpbench.interfaces import Run
from udpbench.models.sample import sample
from udpbench.optim.training import TrainingTask, over_prompts, write_made

if TYPE_CHECKING:
    from udpbench.models.diffusion import Cond
    from udpbench.models.latent import LatentDiffusion


@dataclass
class Trainable:
    """A model in training: ``model`` has what is trained in place of the victim's own parts."""

    model: LatentDiffusion
    parameters: list[nn.Parameter]
    save: Callable[[Path], None]  # writes what was trained into a folder
    text: bool = False  # whether what is trained has a part in the prompts' embeddings


@dataclass(kw_only=True)
class Tuning(TrainingTask):
    """The thief's fine-tuning and its pictures; subclasses say what is trained (``trainable``).

    Args:
        guidance: of the generation (Ho & Salimans 2022); 1: none.
        sample_latents: draw latents from the posterior at each step (as the released scripts do) or use its mean.
        gradient_checkpointing: less memory, more time.
        prior_weight: weight of the prior-preservation loss on class pictures (Ruiz et al. 2023, eq. 2); 0: none.
        prior_images: how many class pictures the pretrained model generates.
    """

    guidance: float
    sample_latents: bool = False
    gradient_checkpointing: bool = False
    prior_weight: float = 0.0  # type: ignore[misc]  # a setting here, nothing in other tasks
    prior_images: int = 0
    solver: str = "dpmpp"

    needs: ClassVar[frozenset[str]] = frozenset({"denoise", "latent", "text"})
    of_sampling: ClassVar[tuple[str, ...]] = (*TrainingTask.of_sampling, "guidance")
    of_speed: ClassVar[tuple[str, ...]] = (*TrainingTask.of_speed, "gradient_checkpointing")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior_weight < 0 or (self.prior_weight > 0 and self.prior_images < 1):
            raise ValueError(
                f"{self.name}: prior_weight must be >= 0, and above 0 needs prior_images >= 1, "
                f"given {self.prior_weight} and {self.prior_images}"
            )

    def trainable(self, victim: LatentDiffusion, run: Run) -> Trainable:
        """What is trained, starting from ``victim``."""
        raise NotImplementedError

    def caption(self, text: str) -> str:
        """The prompt that the model is given for a caption or prompt of the data."""
        return text

    def train(
        self, images: Path, out: Path, victim: LatentDiffusion, run: Run, class_images: Path | None = None
    ) -> None:
        """Tune on the pictures in ``images`` (captions in its metadata.jsonl); write ``out/step_N/`` for every point
        of the curve."""
        trainable = self.trainable(victim.to(run.device), run)
        subject = Latents(trainable, images, self, run)
        prior = Latents(trainable, class_images, self, run) if class_images else None

        def loss(step: int) -> Tensor:
            value = self._loss(trainable, subject, run, ("subject", step))
            if prior is not None:
                value = value + self.prior_weight * self._loss(trainable, prior, run, ("prior", step))
            return value

        self.fit(trainable.parameters, loss, trainable.save, out, run)

    def _loss(self, trainable: Trainable, data: Latents, run: Run, key: tuple[str, int]) -> Tensor:
        rng, model = run.rng("train", *key), trainable.model
        z, index = data.draw(self.batch, rng)
        t = torch.randint(len(model.alpha_bar), (self.batch,), generator=rng).to(run.device)
        noise = torch.randn(z.shape, generator=rng).to(run.device)
        run.tally("unet_victim", self.batch)
        return model.loss(z, data.cond(index), t, noise).mean()

    def generate(
        self, tuned: Path | None, out: Path, victim: LatentDiffusion, prompts: Sequence[str], run: Run
    ) -> None:
        """Write ``pictures`` PNGs over ``prompts`` in turn, by the model in ``tuned`` (None: the pretrained one).

        Those there are kept.
        """
        model = victim.to(run.device)
        self._write(model.with_tuned(tuned) if tuned else model, prompts, self.pictures, out, run, tuned is not None)

    def class_pictures(self, out: Path, victim: LatentDiffusion, prompt: str, run: Run) -> None:
        """Write ``prior_images`` PNGs of the class, by the pretrained model, from other noise than scored pictures."""
        self._write(victim.to(run.device), [prompt], self.prior_images, out, run, tuned=False, noise="class")

    def _write(
        self,
        model: LatentDiffusion,
        prompts: Sequence[str],
        n: int,
        out: Path,
        run: Run,
        tuned: bool,
        noise: str | None = None,
    ) -> None:
        rows = over_prompts(prompts, n)
        said = [self.caption(row["text"]) if tuned else row["text"] for _, row in rows]
        settings = {"steps": self.sample_steps, "guidance": self.guidance, "solver": self.solver}

        def make(left: list[int]) -> Iterator[Tensor]:
            keys = [(noise, i) if noise else i for i in left]
            return sample(model, [said[i] for i in left], keys, run, **settings)  # type: ignore[arg-type]

        write_made(rows, out, run, make)


class Latents:
    """Latents (or their posterior) and prompts of a folder of pictures, computed once."""

    def __init__(self, trainable: Trainable, folder: Path, task: Tuning, run: Run) -> None:
        captions, pictures = read_metadata(folder), read_folder(folder)
        prompts = [task.caption(captions[name]["text"]) for name in pictures]
        self.prompts = sorted(set(prompts))
        self.which = torch.tensor([self.prompts.index(p) for p in prompts])
        self.trainable, self.sampled, model = trainable, task.sample_latents, trainable.model
        with torch.no_grad():
            x = torch.stack([fit_square(p, model.size) for p in pictures.values()])
            moments = [model.moments(part.to(run.device)) for part in x.split(run.batch)]
            self.mean, self.std = (torch.cat(parts) for parts in zip(*moments, strict=True))
            self.embedded: Cond = model.embed(self.prompts)

    def draw(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """``n`` latents with replacement and their indices."""
        index = torch.randint(len(self.mean), (n,), generator=rng)
        z = self.mean[index]
        if self.sampled:
            z = z + self.std[index] * torch.randn(z.shape, generator=rng).to(z.device)
        return z, index

    def cond(self, index: Tensor) -> Cond:
        """Prompt embeddings of the pictures at ``index``; anew if what makes them is in training."""
        embedded = self.trainable.model.embed(self.prompts) if self.trainable.text else self.embedded
        return embedded.take(self.which[index])
