"""The benchmark's stages over folders: data -> protect -> attack -> train -> generate -> score.

Each function below names one kind of stage: what it is made of, what it reads, and what work it does. ``arms.py`` puts
them together.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from udpbench.benchmark.store import Stage
from udpbench.core.images import iterate, list_images, read, read_folder, read_metadata, write_metadata, write_png
from udpbench.interfaces import Owner, Run

ARMS = (
    "pretrained",
    "upper_bound",
    "clean",
    "reseeded",
    "noise",
    "noise_rms",
    "protected",
    "purified",
    "clean_attacked",
)


@dataclass(frozen=True)
class Part:
    """One configured component: its option's name, the settings it was built from, and the object."""

    name: str
    settings: Mapping[str, Any]
    thing: Any
    preset: str = "matched"  # or "released": settings as the authors published them

    @cached_property
    def key(self) -> dict[str, Any]:
        """What of it goes into a recipe: settings, version, and the digests of what it reads from disk (``identity``).

        Settings that say where a thing lies and not what it is (``places``) are no part of it: digests are.
        """
        identity = self.thing.identity() if hasattr(self.thing, "identity") else {}
        settings = {k: v for k, v in self.settings.items() if k not in getattr(self.thing, "places", ())}
        return {"settings": settings, "version": getattr(self.thing, "version", 1), "identity": identity}


@dataclass(frozen=True)
class Cell:
    """One cell of the benchmark, everything built and checked."""

    data: Part
    budget: Part
    protect: Part
    noise: Part
    noise_rms: Part
    attack: Part
    task: Part
    surrogate: Part
    victim: Part
    purifier: Part
    seed: int
    like: Part | None = None  # the protection whose strength protect=noise_rms matches
    arms: tuple[str, ...] = ARMS
    protected_fraction: float = 1.0  # of the training pictures that stay changed; the others are clean in every arm
    owner_prompt: str = "class"  # class | data | empty: what the owner writes as prompt while protecting
    metrics: Mapping[str, Part] = field(default_factory=dict)
    perturbation_metrics: Mapping[str, Part] = field(default_factory=dict)
    primary: tuple[str, ...] = ()  # names of scores
    absent: Mapping[str, str] = field(default_factory=dict)  # metrics that cannot be computed here, and why

    @property
    def names(self) -> dict[str, Any]:
        """The cell in words, as records and tables show it."""
        parts = ("protect", "attack", "task", "surrogate", "victim", "purifier")
        return {
            "data": self.data.name,
            "subject": str(getattr(self.data.thing, "subject", "")),
            "budget": self.budget.thing.name,
            **{k: getattr(self, k).name for k in parts},
            "owner_prompt": self.owner_prompt,
            **({"protected_fraction": self.protected_fraction} if self.protected_fraction < 1 else {}),
            "seed": self.seed,
        }

    def share_of(self, n: int) -> int:
        """How many of ``n`` training pictures stay changed."""
        return round(self.protected_fraction * n)


# -- stages ------------------------------------------------------------------------------------------------------------


def data_stage(cell: Cell) -> Stage:
    """The pictures: ``train``, ``reference``, ``validation``, ``heldout`` folders and ``data.json``."""
    return Stage("data", cell.data.key, lambda out, parents, run: cell.data.thing(out, run), title="clean")


def protect_stage(cell: Cell, protect: Part, like: Stage | None = None) -> Stage:
    """``protect`` on the training pictures.

    A control that matches another's strength reads that one's pictures, ``like``.
    """

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        owner = _owner(parents["data"], cell.owner_prompt, parents.get("like"))
        surrogate = cell.surrogate.thing.to(run.device) if protect.thing.needs else None
        scratch = out / "scratch"
        scratch.mkdir(exist_ok=True)
        made = protect.thing(owner, cell.budget.thing, [surrogate], replace(run, scratch=scratch))
        _write_like(out, parents["data"] / "train", owner.names, made)
        shutil.rmtree(scratch)

    parents = {"data": data_stage(cell), **({"like": like} if like else {})}
    key: dict[str, Any] = {"protect": protect.key, "budget": cell.budget.key}
    if protect.thing.needs:
        key |= {"surrogate": cell.surrogate.key, "owner_prompt": cell.owner_prompt}
    return Stage("protect", key, work, parents, cell.seed, protect.name, resumable=True)


def protected_stage(cell: Cell) -> Stage:
    """The cell's protection on the owner's pictures; of a control on its own (``protect=noise_rms protect@like=eudp``)
    with the strength of the pictures that it shall match."""
    wanted = getattr(cell.protect.thing, "wants_like", False)
    return protect_stage(cell, cell.protect, protect_stage(cell, cell.like) if wanted and cell.like else None)


def attack_stage(cell: Cell, images: Stage, attack: Part) -> Stage:
    """A purification attack on a folder of pictures."""

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        folder = _pictures(parents["images"])
        pictures, captions = read_folder(folder), read_metadata(folder)
        model = cell.purifier.thing.to(run.device) if attack.thing.needs else None
        prompts = [captions[name]["text"] for name in pictures]
        made = attack.thing.purify(list(pictures.values()), list(pictures), prompts, model, run)
        _write_like(out, folder, list(pictures), made)

    key = {"attack": attack.key} | ({"purifier": cell.purifier.key} if attack.thing.needs else {})
    return Stage("attack", key, work, {"images": images}, cell.seed, f"{attack.name} on {images.title}")


def mixed_stage(cell: Cell, images: Stage) -> Stage:
    """A share of the pictures in ``images`` among clean ones: which, is drawn once for all arms and methods."""

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        changed, clean = parents["images"], parents["data"] / "train"
        names = [path.name for path in list_images(clean)]
        order = torch.randperm(len(names), generator=run.rng("protected_share")).tolist()
        kept = {names[i] for i in order[: cell.share_of(len(names))]}
        for name in names:
            png = Path(name).with_suffix(".png").name
            write_png(out / png, read(changed / png if name in kept else clean / name))
        write_metadata(out, read_metadata(changed))

    parents = {"images": images, "data": data_stage(cell)}
    return Stage("mixed", {"share": cell.protected_fraction}, work, parents, cell.seed, f"some {images.title}")


def train_stage(cell: Cell, images: Stage) -> Stage:
    """The thief's training on a folder of pictures."""
    task = cell.task.thing

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        extra = [parents["class"]] if "class" in parents else []
        task.train(_pictures(parents["images"]), out, cell.victim.thing, run, *extra)

    parents = {"images": images} | ({"class": class_stage(cell)} if task.prior_weight else {})
    key = _task_key(cell) | {"training": task.training_key(), "victim": cell.victim.key}
    return Stage("train", key, work, parents, cell.seed, images.title, resumable=True)


def class_stage(cell: Cell) -> Stage:
    """Class pictures for prior preservation, by the pretrained victim."""
    task = cell.task.thing

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        prompt = _facts(parents["data"])["class_prompt"]
        task.class_pictures(out, cell.victim.thing, prompt, run)

    sampling = {k: v for k, v in task.sampling_key().items() if k != "pictures"}
    key = _task_key(cell) | {"sampling": sampling, "noise": "class", "n": task.prior_images, "victim": cell.victim.key}
    return Stage("class", key, work, {"data": data_stage(cell)}, cell.seed, "class pictures", resumable=True)


def _task_key(cell: Cell) -> dict[str, Any]:
    """What names a task in a key; somebody's own class, which inherits a version, by its name, too."""
    key = {"task": cell.task.name, "version": cell.task.thing.version}
    own = type(cell.task.thing)
    return key if own.__module__.startswith("udpbench.") else key | {"class": f"{own.__module__}.{own.__qualname__}"}


def _made_key(cell: Cell) -> dict[str, Any]:
    """What generated pictures and edits depend on beside their inputs."""
    return _task_key(cell) | {"sampling": cell.task.thing.sampling_key(), "victim": cell.victim.key}


def generate_stage(cell: Cell, model: Stage | None, share: float = 1.0) -> Stage:
    """The thief's pictures, by the model after ``share`` of its steps; by the pretrained victim without one."""
    task = cell.task.thing

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        tuned = parents["model"] / f"step_{task.steps_at(share)}" if model else None
        task.generate(tuned, out, cell.victim.thing, _facts(parents["data"])["prompts"], run)

    parents = {"data": data_stage(cell)} | ({"model": model} if model else {})
    title = (model.title if share == 1 else f"{model.title} x{share:g}") if model else "pretrained"
    return Stage(
        "generate", _made_key(cell) | {"share": share if model else 0}, work, parents, cell.seed, title, resumable=True
    )


def edit_stage(cell: Cell, images: Stage, draw: str = "first") -> Stage:
    """The thief's edits of a folder of pictures; ``draw`` names the noise, the same for all arms but one."""
    task = cell.task.thing

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        said, masks = _facts(parents["data"])["class_prompt"], parents["data"] / "masks"
        folder, clean = _pictures(parents["images"]), parents["data"] / "train"
        task.edit(folder, out, cell.victim.thing, said, masks if masks.is_dir() else None, run, draw, clean)

    parents = {"images": images, "data": data_stage(cell)}
    return Stage(
        "edit", _made_key(cell) | {"draw": draw}, work, parents, cell.seed, f"{images.title} edited", resumable=True
    )


def upper_bound_stage(cell: Cell) -> Stage:
    """A perfect victim: held-out pictures of the subject after one round trip through the victim's autoencoder; no
    more of them than a victim makes, for some scores depend on how many there are."""
    sizes = cell.data.thing.sizes
    most = min(sizes["heldout"], cell.task.thing.made(sizes["train"]))

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        model, held = cell.victim.thing.to(run.device), parents["data"] / "heldout"
        kept = {path.name for path in list_images(held)[:most]}
        for names, x in iterate(held, run.batch):
            chosen = [i for i, name in enumerate(names) if name in kept]
            if not chosen:
                continue
            with torch.inference_mode():
                back = model.round_trip(x[chosen].to(run.device)).clamp(0, 1).cpu()
            for i, picture in zip(chosen, back, strict=True):
                write_png(out / names[i], picture)
        write_metadata(out, {name: row for name, row in read_metadata(held).items() if name in kept})

    key = {"victim": cell.victim.key} | ({"most": most} if most < sizes["heldout"] else {})
    return Stage("upper_bound", key, work, {"data": data_stage(cell)}, title="upper_bound")


def score_stage(cell: Cell, metric: Part, pictures: Stage, clean: Stage, against: str = "") -> Stage:
    """One metric of one folder of pictures against what it is measured against; writes ``scores.json``."""
    against = against or metric.thing.against
    measure = metric.thing.against_noise if against == "noise" else metric.thing

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        data = parents["data"]
        places = {
            "reference": data / "reference",
            "validation": data / "validation",
            "train_clean": data / "train",
            "input": data / "train",
            "truth": data,
            "clean_arm": parents.get("clean_arm"),
            "noise": parents.get("noise"),
        }
        scores = measure(_pictures(parents["pictures"]), places[against], run)
        (out / "scores.json").write_text(json.dumps(scores, sort_keys=True))

    # No seed: what a metric draws must not differ between cells, and pictures shared by cells are scored once.
    parents = {"pictures": pictures, "data": clean}
    if against == "clean_arm":
        parents["clean_arm"] = edit_stage(cell, clean)
    if against == "noise":
        parents["noise"] = protect_stage(cell, cell.noise)
    return Stage("score", metric.key | {"against": against}, work, parents, title=pictures.title)


# -- folders -----------------------------------------------------------------------------------------------------------


def _facts(data: Path) -> dict[str, Any]:
    return json.loads((data / "data.json").read_text())


def _pictures(folder: Path) -> Path:
    """Where a stage's pictures are: in ``train`` for a data folder, else in the folder itself."""
    return folder / "train" if (folder / "data.json").exists() else folder


def _owner(data: Path, owner_prompt: str, like: Path | None) -> Owner:
    """What the protector holds: the training pictures, and prompts that need not be the thief's."""
    facts, pictures, captions = _facts(data), read_folder(data / "train"), read_metadata(data / "train")
    said = {
        "class": lambda name: facts["class_prompt"],
        "data": lambda name: captions[name]["text"],
        "empty": lambda name: "",
    }
    return Owner(
        images=list(pictures.values()),
        names=list(pictures),
        prompts=[said[owner_prompt](name) for name in pictures],
        class_prompt=facts["class_prompt"],
        like=list(read_folder(like).values()) if like else None,
    )


def _write_like(out: Path, source: Path, names: list[str], pictures: list[torch.Tensor]) -> None:
    """Write pictures under the names and captions of the folder they were made from."""
    for name, picture in zip(names, pictures, strict=True):
        write_png((out / name).with_suffix(".png"), picture.cpu())
    write_metadata(out, {str(Path(k).with_suffix(".png")): v for k, v in read_metadata(source).items()})
