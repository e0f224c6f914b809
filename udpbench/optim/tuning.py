"""Fine-tuning of a text-to-image latent model on captioned pictures: what DreamBooth, LoRA, styles and textual
inversion have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from udpbench.core.folders import Facts
from udpbench.core.images import read_folder, read_metadata
from udpbench.interfaces import BARE, Run, Thief
from udpbench.models.diffusion import Trainable
from udpbench.models.latent import LatentDiffusion
from udpbench.models.sample import sample
from udpbench.optim.fit import weighted_loss
from udpbench.optim.training import TrainingTask, over_prompts, write_made
from udpbench.optim.training_set import Augment, TrainingSet


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

    needs = frozenset({"denoise", "latent", "text"})
    of_sampling: ClassVar[tuple[str, ...]] = (*TrainingTask.of_sampling, "guidance")
    of_speed: ClassVar[tuple[str, ...]] = (*TrainingTask.of_speed, "gradient_checkpointing")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior_weight < 0 or (self.prior_weight > 0 and self.prior_images < 1):
            given = f"given {self.prior_weight} and {self.prior_images}"
            raise ValueError(f"{self.name}: prior_weight must be >= 0, and above 0 needs prior_images >= 1, {given}")

    def trainable(self, victim: LatentDiffusion, run: Run) -> Trainable:
        """What is trained, starting from ``victim``."""
        raise NotImplementedError

    def model_prompts(self, facts: Facts) -> list[str]:
        return [facts.instance_prompt, *facts.filled(), *([facts.class_prompt or ""] if self.prior_weight else [])]

    def caption(self, text: str) -> str:
        """The prompt that the model is given for a caption or prompt of the data."""
        return text

    def train(self, images: Path, out: Path, victim: LatentDiffusion, run: Run, thief: Thief = BARE) -> None:
        attack, size = thief.attack, victim.on(run).size
        squares = read_folder(images, size)
        adapted = self.adapted(attack, victim, list(squares.values()), out, run)
        trainable = with_further(self.trainable(adapted, run), adapted.parts_unlike(victim))
        augment = attack.augment if "augment" in attack.hooks else None
        sets = {"subject": (1.0, self._training_set(trainable, squares, images, run, augment))}
        if thief.class_images:
            prior = read_folder(thief.class_images, size)
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
        model, texts = victim.on(run), [row["text"] for _, row in rows]
        further: dict[str, Any] = {}
        if tuned is not None:
            model, texts, further = model.with_tuned(tuned), [*map(self.caption, texts)], thief.attack.sampling()
        write_sampled(model, rows, texts, range(len(rows)), out, run, **self._sampling(), further=further)

    def class_pictures(self, out: Path, victim: LatentDiffusion, run: Run, thief: Thief) -> None:
        model = victim.on(run)
        write_class_pictures(model, thief.class_prompt, self.prior_images, out, run, **self._sampling())

    def _sampling(self) -> dict[str, Any]:
        return {"steps": self.sample_steps, "guidance": self.guidance, "solver": self.solver}


def with_further(trainable: Trainable, parts: Mapping[str, Any]) -> Trainable:
    """``trainable`` that saves ``parts`` of the model, too, but those that are saved because they were trained: what an
    attack made of the thief's model is what he generates with."""

    def save(folder: Path) -> None:
        trainable.save(folder)
        for name, part in parts.items():
            if not (folder / name).exists():
                part.save_pretrained(folder / name)

    return replace(trainable, save=save) if parts else trainable


def write_class_pictures(
    model: LatentDiffusion, prompt: str, n: int, out: Path, run: Run, noise: str = "class", **sampling: Any
) -> None:
    """Write ``n`` PNGs of the class by ``model`` as it is, from other noise than scored pictures.

    ``noise`` names the random numbers; ``sampling``: keywords of ``models.sample.sample``. Pictures that are there are
    kept.
    """
    keys = [(noise, i) for i in range(n)]
    write_sampled(model, over_prompts([prompt], n), [prompt] * n, keys, out, run, **sampling)


def write_sampled(
    model: LatentDiffusion,
    rows: Sequence[tuple[str, dict[str, Any]]],
    texts: Sequence[str],
    keys: Sequence[object],
    out: Path,
    run: Run,
    **sampling: Any,
) -> None:
    """Write a PNG by ``model`` for each of ``rows`` (see ``write_made``), of its prompt and the noise of its key."""

    def make(left: list[int]) -> Iterator[Tensor]:
        return sample(model, [texts[i] for i in left], [keys[i] for i in left], run, **sampling)

    write_made(rows, out, run, make, model.size)
