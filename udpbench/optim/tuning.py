"""Fine-tuning of a text-to-image latent model on captioned pictures: what DreamBooth, LoRA, styles and textual
inversion have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from udpbench.core.images import fit_square, read_folder, read_metadata
from udpbench.interfaces import BARE, Run, Thief
from udpbench.models.diffusion import Trainable
from udpbench.models.sample import sample
from udpbench.optim.fit import weighted_loss
from udpbench.optim.training import TrainingTask, over_prompts, write_made
from udpbench.optim.training_set import Augment, TrainingSet

if TYPE_CHECKING:
    from udpbench.models.latent import LatentDiffusion


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

    def train(self, images: Path, out: Path, victim: LatentDiffusion, run: Run, thief: Thief = BARE) -> None:
        attack, size = thief.attack, victim.to(run.device).size
        squares = {name: fit_square(x, size) for name, x in read_folder(images).items()}
        trainable = self.trainable(attack.adapt(victim, list(squares.values()), run), run)
        augment = attack.augment if "augment" in attack.hooks else None
        sets = {"subject": (1.0, self._training_set(trainable, squares, images, run, augment))}
        if thief.class_images:
            prior = {name: fit_square(x, size) for name, x in read_folder(thief.class_images).items()}
            sets["prior"] = (self.prior_weight, self._training_set(trainable, prior, thief.class_images, run))
        loss = weighted_loss(sets, self.batch, lambda name, step: run.rng("train", name, step))
        self.fit(trainable, loss, out, run)

    def _training_set(
        self, trainable: Trainable, pictures: dict[str, Tensor], folder: Path, run: Run, augment: Augment | None = None
    ) -> TrainingSet:
        captions = read_metadata(folder)
        return TrainingSet(
            trainable,
            list(pictures.values()),
            [self.caption(captions[name]["text"]) for name in pictures],
            run,
            sample_latents=self.sample_latents,
            augment=augment,
            counted="unet_victim",
        )

    def generate(self, tuned: Path | None, out: Path, victim: LatentDiffusion, run: Run, thief: Thief) -> None:
        rows = over_prompts(thief.prompts, self.pictures)
        model, texts, keys = victim.to(run.device), [row["text"] for _, row in rows], range(len(rows))
        if tuned is None:
            self._write(model, rows, texts, keys, out, run)
        else:
            model, texts = model.with_tuned(tuned), [self.caption(text) for text in texts]
            self._write(model, rows, texts, keys, out, run, thief.attack.sampling())

    def class_pictures(self, out: Path, victim: LatentDiffusion, run: Run, thief: Thief) -> None:
        rows = over_prompts([thief.class_prompt], self.prior_images)
        keys = [("class", i) for i in range(len(rows))]
        self._write(victim.to(run.device), rows, [thief.class_prompt] * len(rows), keys, out, run)

    def _write(
        self,
        model: LatentDiffusion,
        rows: Sequence[tuple[str, dict[str, Any]]],
        said: Sequence[str],
        keys: Sequence[object],
        out: Path,
        run: Run,
        further: dict[str, Any] | None = None,
    ) -> None:
        def make(left: list[int]) -> Iterator[Tensor]:
            prompts, mine = [said[i] for i in left], [keys[i] for i in left]
            steps, guidance, solver = self.sample_steps, self.guidance, self.solver
            return sample(model, prompts, mine, run, steps=steps, guidance=guidance, solver=solver, further=further)

        write_made(rows, out, run, make)
