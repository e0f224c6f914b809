"""What every task that trains a victim has: a length, a curve over it, and pictures at its points."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from udpbench.core.atomic import sync
from udpbench.core.component import check_choice
from udpbench.core.digest import difference
from udpbench.core.images import at_once, readable, write_metadata, write_png
from udpbench.interfaces import Attack, Run, Task
from udpbench.models.diffusion import Trainable
from udpbench.models.fingerprint import Fingerprint
from udpbench.models.sample import SOLVERS
from udpbench.optim.fit import FitSettings, fit

PARTS = "parts.json"  # of a model folder: the names and sizes of its files
ADAPTING = "adapt"  # folder of a training for the state of an attack's adaptation, gone once the training is done


@dataclass(kw_only=True)
class TrainingTask(FitSettings, Task):
    """Settings and arithmetic of a task that trains; what is trained is the subclass's affair.

    Args:
        steps, lr, weight_decay, ...: of the training (see ``FitSettings``); ``batch``: pictures in a step.
        pictures: how many pictures are generated for scoring, over the data's prompts in turn.
        sample_steps, solver: of the generation.
        curve: step multipliers at which it is scored, all from one training of ``max(curve) * steps`` steps: a
            cosine falls to 0 at the last of them only, so the others are no trainings of their own length then.
    """

    batch: int
    pictures: int
    sample_steps: int
    solver: str
    save_every: int = 100
    curve: Sequence[float] = (1.0,)

    name: ClassVar[str]
    solvers: ClassVar[tuple[str, ...]] = SOLVERS
    # Settings of the generation alone, and those that change speed and memory only; all others make the model.
    of_sampling: ClassVar[tuple[str, ...]] = ("pictures", "sample_steps", "solver")
    of_speed: ClassVar[tuple[str, ...]] = ("save_every",)

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = [self.steps, self.batch, self.pictures, self.sample_steps]
        if min(counts) < 1:
            given = ", ".join(map(str, counts))
            raise ValueError(f"{self.name}: steps, batch, pictures and sample_steps must be >= 1, given {given}")
        check_choice(f"{self.name}: unknown solver", self.solver, self.solvers)
        self.curve = sorted(float(c) for c in self.curve)
        if 1.0 not in self.curve or self.curve[0] <= 0:
            raise ValueError(f"{self.name}: curve must hold 1 and numbers > 0, given {self.curve}")

    def check_model(self, model: Any) -> None:
        model.check_steps(self.name, sample_steps=self.sample_steps)

    def steps_at(self, multiplier: float) -> int:
        return max(1, round(multiplier * self.steps))

    @property
    def curve_steps(self) -> list[int]:
        """Numbers of steps at the points of the curve."""
        return [self.steps_at(multiplier) for multiplier in self.curve]

    def fit(self, trainable: Trainable, loss: Callable[[int], Tensor], out: Path, run: Run) -> None:
        """Train ``trainable`` on ``loss(step)`` to the last point of the curve; write ``out/step_N/`` for every point.

        Goes on from ``out/checkpoint.pt``.
        """
        checkpoint, own = out / "checkpoint.pt", {f.name: vars(self)[f.name] for f in fields(FitSettings)}
        if broken := [folder.name for folder in out.glob("step_*") if not _whole(folder)]:
            run.log.say(f"{broken[0]} of an interrupted attempt is broken; this begins anew")
            checkpoint.unlink(missing_ok=True)
        fit(
            trainable.parameters,
            loss,
            FitSettings(**own | {"steps": self.curve_steps[-1]}),
            run,
            checkpoint=checkpoint,
            curve_steps=self.curve_steps,
            at_curve_step=lambda step: publish(out / f"step_{step}", trainable.save),
        )
        checkpoint.unlink(missing_ok=True)
        shutil.rmtree(out / ADAPTING, ignore_errors=True)

    def adapted(self, attack: Attack, victim: Any, images: Sequence[Tensor], out: Path, run: Run) -> Any:
        """The victim as ``attack`` adapts it to ``images`` (CHW); goes on with what is in ``out/adapt``.

        Raises ValueError if ``victim`` itself, which other trainings start from, is not as it was; nothing is gone on
        from then.
        """
        if "adapt" not in attack.hooks:
            return victim
        (out / ADAPTING).mkdir(parents=True, exist_ok=True)
        before = Fingerprint(victim.on(run))
        adapted = attack.adapt(victim, images, replace(run, scratch=out / ADAPTING))
        before.check(f"attack {attack.known_as}", "victim", lambda: shutil.rmtree(out / ADAPTING))
        return adapted

    def generated_count(self, train: int) -> int:
        return self.pictures

    def training_key(self) -> dict[str, Any]:
        """All settings but those of the generation and those that change speed and memory only."""
        apart = {*self.of_sampling, *self.of_speed}
        key = {f.name: vars(self)[f.name] for f in fields(self) if f.name not in apart}
        if "prior_images" in key and not self.prior_weight:  # none are made
            key["prior_images"] = 0
        if self.ema_warmup == "ratio":  # what there was before there was a choice: those trainings keep their keys
            del key["ema_warmup"]
        if self.decay == "cosine" and self.warmup:  # these do not: the cosine once began with the warm-up
            key["cosine"] = "after warmup"
        return key

    def sampling_key(self) -> dict[str, Any]:
        """The settings of the generation."""
        return {name: vars(self)[name] for name in self.of_sampling}


def publish(folder: Path, save: Callable[[Path], None]) -> None:
    """Let ``save`` write a model folder: beside first, then renamed.

    A folder that is there is replaced: an attempt that was interrupted after these steps comes by them once more. All
    of it is on the disk before it is: a checkpoint of later steps relies on it.
    """
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save(beside)
    sizes = {str(path.relative_to(beside)): [path.stat().st_size, ""] for path in beside.rglob("*") if path.is_file()}
    (beside / PARTS).write_text(json.dumps(sizes, sort_keys=True), encoding="utf-8")
    sync(*beside.rglob("*"), beside)
    if folder.exists():
        shutil.rmtree(folder)
    beside.rename(folder)
    sync(folder.parent)


def _whole(folder: Path) -> bool:
    """Whether a published model folder holds what was written, as far as sizes show it: a power loss cuts files."""
    try:
        listing = json.loads((folder / PARTS).read_text(encoding="utf-8"))
        return not difference(folder, listing, PARTS, digests=False)
    except (OSError, ValueError, TypeError, AttributeError):  # of older code, or cut itself
        return False


def write_made(
    rows: Sequence[tuple[str, dict[str, Any]]],
    out: Path,
    run: Run,
    make: Callable[[list[int]], Iterable[Tensor]],
    size: int,
    title: str = "generate",
) -> None:
    """One PNG per (name, metadata) of ``rows`` and ``metadata.jsonl``, ``size`` pixels a side; those of a batch that
    are there and whole are kept.

    ``make(indices)`` yields batches (n, 3, H, W) [0,1] of the rows at ``indices``, in order. A batch of which one is
    missing is made anew as it was: with fewer pictures in it, networks would round otherwise.
    """
    n = at_once(run.batch, size, size)
    begun = {i // n for i, (name, _) in enumerate(rows) if not readable(out / name)}
    left = [i for i in range(len(rows)) if i // n in begun]
    with run.log.bar(title, len(rows), "img") as advance:
        advance(len(rows) - len(left))
        rest: Iterator[int] = iter(left)
        for made in make(left) if left else ():
            for picture in made:
                write_png(out / rows[next(rest)][0], picture)
            advance(len(made))
    write_metadata(out, dict(rows))


def over_prompts(prompts: Sequence[str], n: int) -> list[tuple[str, dict[str, Any]]]:
    """Rows of ``write_made`` for ``n`` pictures named by number, over ``prompts`` in turn."""
    return [(f"{i:05d}.png", {"text": prompts[i % len(prompts)], "seed": i}) for i in range(n)]
