"""The kinds of stages, over folders: data, protect, attack, mixed, train, class, generate, edit, upper_bound, score.

Each function names one kind: what it is made of, what it reads, and what work it does. ``graph.py`` puts them together.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from udpbench.benchmark.batches import batches_of_names, png_path
from udpbench.benchmark.cell import Cell, Part
from udpbench.benchmark.keys import attack_key, is_own, made_key, task_key, task_settings
from udpbench.benchmark.process_state import Generators
from udpbench.benchmark.stage import Stage, Work, empty
from udpbench.core.folders import pictures_in, read_data_facts
from udpbench.core.images import (
    checked_pictures,
    iterate,
    list_images,
    read,
    read_folder,
    read_metadata,
    write_metadata,
    write_png,
)
from udpbench.interfaces import Metric, Owner, Run, Thief
from udpbench.models.fingerprint import Fingerprint
from udpbench.optim.tuning import write_class_pictures

MIXED = "mixed"
SCORE = "score"
# Of the class pictures for a protection's surrogate; those of a task are sampled as the task samples, from other noise.
OWNERS_NOISE = "owner_class"
CLASS_SAMPLING: dict[str, Any] = {"steps": 25, "guidance": 5.0, "solver": "dpmpp"}


def data_stage(cell: Cell) -> Stage:
    """The pictures: ``train``, ``reference``, ``validation``, ``heldout`` folders and ``data.json``."""

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        cell.data.component.write(out, run)

    return Stage("data", cell.data.key, _checked(work, cell.data), title="clean")


def protect_stage(cell: Cell, protect: Part, data: Stage, like: Stage | None = None) -> Stage:
    """``protect`` on the training pictures.

    A control that matches another's strength reads that one's pictures, ``like``.
    """
    loads = protect.component.needs - {"class_images"}

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        surrogate = cell.surrogate.component.on(run) if loads else None
        folder = parents["data"] / "train"
        further = parents.get("like"), parents.get("class")
        with _scratch(out) as scratch:
            inside = replace(run, scratch=scratch)
            parts = batches_of_names(folder, out, inside, protect.component.couples_images)
            for owner in _owners(cell, parents["data"], parts, *further):
                clean = [x.clone() for x in owner.images]  # a method may change what it is given
                made = protect.component.protect(owner, cell.budget.component, surrogate, inside)
                checked_pictures(f"protect {protect.name}", made, dict(zip(owner.names, clean, strict=True)))
                finished = cell.budget.component.finished(protect.name, made, clean, owner.names, run)
                _write(out, owner.names, finished)
        _write_captions(out, folder)

    parents = {"data": data} | ({"like": like} if like else {})
    if protect.component.class_images:
        parents["class"] = surrogate_class_stage(cell, protect.component.class_images, data)
    key: dict[str, Any] = {"protect": protect.key, "budget": cell.budget.key}
    if protect.component.needs:
        key |= {"surrogate": cell.surrogate.key}
    if protect.component.needs or is_own(protect):  # of the built-in ones, those without a model read no prompts
        key |= {"owner_prompt": cell.owner_prompt}
    given = cell.surrogate if loads else None
    checked_work = _checked(work, protect, model=given, who=f"protect {protect.name}", argument="surrogate")
    return Stage("protect", key, checked_work, parents, cell.seed, protect.name, resumable=True)


def attack_stage(cell: Cell, images: Stage, attack: Part) -> Stage:
    """A purification attack on a folder of pictures."""

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        folder = pictures_in(parents["images"])
        captions, model = read_metadata(folder), cell.purifier.component.on(run) if attack.component.needs else None
        with _scratch(out) as scratch:
            inside = replace(run, scratch=scratch)
            for names in batches_of_names(folder, out, inside, attack.component.couples_images):
                pictures, prompts = _read(folder, names), [captions[name]["text"] for name in names]
                made = attack.component.purify(pictures, names, prompts, model, inside)
                checked_pictures(f"attack {attack.name}", made, dict(zip(names, pictures, strict=True)))
                _write(out, names, made)
        _write_captions(out, folder)

    key = {"attack": attack.key} | ({"purifier": cell.purifier.key} if attack.component.needs else {})
    given = cell.purifier if attack.component.needs else None
    checked_work = _checked(work, attack, model=given, who=f"attack {attack.name}", argument="model")
    return Stage(
        "attack", key, checked_work, {"images": images}, cell.seed, f"{attack.name} on {images.title}", resumable=True
    )


def mixed_stage(cell: Cell, images: Stage, data: Stage) -> Stage:
    """A fraction of the pictures in ``images`` among clean ones: which, is drawn once for all arms and methods."""

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        changed, clean = parents["images"], parents["data"] / "train"
        names = [path.name for path in list_images(clean)]
        # This name seeds the drawing: another one would draw other pictures and change published numbers.
        order = torch.randperm(len(names), generator=run.rng("protected_share")).tolist()
        kept = {names[i] for i in order[: cell.protected_of(len(names))]}
        for name in names:
            png = Path(name).with_suffix(".png").name
            write_png(out / png, read(changed / png if name in kept else clean / name))
        write_metadata(out, read_metadata(changed))

    parents, key = {"images": images, "data": data}, {"fraction": cell.protected_fraction}
    return Stage(MIXED, key, work, parents, cell.seed, f"some {images.title}")


def train_stage(cell: Cell, images: Stage, class_pictures: Stage | None, attack: Part | None) -> Stage:
    """The thief's training on a folder of pictures, with what his attack does to the training."""
    task, changes = cell.task.component, _attack_changing(attack, "adapt", "augment")

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        thief = Thief(class_images=parents.get("class"), **_attack_argument(changes))
        task.train(pictures_in(parents["images"]), out, cell.victim.component, run, thief)

    parents = {"images": images} | ({"class": class_pictures} if class_pictures else {})
    settings = task_settings(cell.task, "training_key")
    key = task_key(cell) | {"training": settings, "victim": cell.victim.key} | attack_key(changes)
    checked_work = _checked(work, cell.task, changes, model=cell.victim, who=f"task {cell.task.name}")
    return Stage("train", key, checked_work, parents, cell.seed, _attacked_title(changes, images.title), resumable=True)


def class_stage(cell: Cell, data: Stage) -> Stage:
    """Class pictures for a task's prior preservation, by the pretrained victim."""
    task = cell.task.component

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        thief = Thief(class_prompt=read_data_facts(parents["data"])["class_prompt"])
        task.class_pictures(out, cell.victim.component, run, thief)

    sampling = {k: v for k, v in task_settings(cell.task, "sampling_key").items() if k != "pictures"}
    key = task_key(cell) | {"sampling": sampling, "noise": "class", "n": task.prior_images, "victim": cell.victim.key}
    checked_work = _checked(work, cell.task, model=cell.victim, who=f"task {cell.task.name}")
    return Stage("class", key, checked_work, {"data": data}, cell.seed, "class pictures", resumable=True)


def surrogate_class_stage(cell: Cell, n: int, data: Stage) -> Stage:
    """``n`` class pictures for a protection, by the pretrained surrogate, from other noise than the thief's."""

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        model, prompt = cell.surrogate.component.on(run), read_data_facts(parents["data"])["class_prompt"]
        write_class_pictures(model, prompt, n, out, run, OWNERS_NOISE, **CLASS_SAMPLING)

    key = {"sampling": CLASS_SAMPLING, "noise": OWNERS_NOISE, "n": n, "surrogate": cell.surrogate.key}
    checked_work = _checked(work, model=cell.surrogate, who="class pictures", argument="surrogate")
    return Stage(
        "class", key, checked_work, {"data": data}, cell.seed, "class pictures of the surrogate", resumable=True
    )


def generate_stage(
    cell: Cell, data: Stage, model: Stage | None, multiplier: float = 1.0, attack: Part | None = None
) -> Stage:
    """The thief's pictures, by the model after ``multiplier`` times its steps; by the pretrained victim without one."""
    task, changes = cell.task.component, _attack_changing(attack, "sampling")

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        tuned = parents["model"] / f"step_{task.steps_at(multiplier)}" if model else None
        thief = Thief(prompts=read_data_facts(parents["data"])["prompts"], **_attack_argument(changes))
        task.generate(tuned, out, cell.victim.component, run, thief)

    parents = {"data": data} | ({"model": model} if model else {})
    title = (model.title if multiplier == 1 else f"{model.title} x{multiplier:g}") if model else "pretrained"
    key = made_key(cell) | {"multiplier": multiplier if model else 0} | attack_key(changes)
    checked_work = _checked(work, cell.task, changes, model=cell.victim, who=f"task {cell.task.name}")
    return Stage("generate", key, checked_work, parents, cell.seed, title, resumable=True)


def edit_stage(cell: Cell, images: Stage, data: Stage, noise: str = "first") -> Stage:
    """The thief's edits of a folder of pictures; ``noise`` names the random numbers, the same for all arms but one."""
    task = cell.task.component

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        prompt, masks = read_data_facts(parents["data"])["class_prompt"], parents["data"] / "masks"
        clean, masks_or_none = parents["data"] / "train", masks if masks.is_dir() else None
        thief = Thief(class_prompt=prompt, masks=masks_or_none, clean=clean)
        task.edit(pictures_in(parents["images"]), out, cell.victim.component, run, thief, noise)

    parents, key = {"images": images, "data": data}, made_key(cell) | {"noise": noise}
    checked_work = _checked(work, cell.task, model=cell.victim, who=f"task {cell.task.name}")
    return Stage("edit", key, checked_work, parents, cell.seed, f"{images.title} edited", resumable=True)


def upper_bound_stage(cell: Cell, data: Stage) -> Stage:
    """A perfect victim: held-out pictures of the subject, of a victim's size, after one round trip through its
    autoencoder; no more of them than a victim makes, for some scores depend on how many there are."""
    sizes = cell.data.component.sizes
    most = min(sizes["heldout"], cell.task.component.generated_count(sizes["train"]))

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        model, held = cell.victim.component.on(run), parents["data"] / "heldout"
        kept = {path.name for path in list_images(held)[:most]}
        for names, x in iterate(held, run.batch, model.size):
            chosen = [i for i, name in enumerate(names) if name in kept]
            if not chosen:
                continue
            with torch.inference_mode():
                back = model.round_trip(x[chosen].to(run.device)).clamp(0, 1).cpu()
            for i, picture in zip(chosen, back, strict=True):
                write_png(out / names[i], picture)
        write_metadata(out, {name: row for name, row in read_metadata(held).items() if name in kept})

    key = {"version": 2, "victim": cell.victim.key} | ({"most": most} if most < sizes["heldout"] else {})
    checked_work = _checked(work, model=cell.victim, who="upper bound")
    return Stage("upper_bound", key, checked_work, {"data": data}, title="upper bound")


def score_stage(metric: Part, pictures: Stage, data: Stage, against: str, other: Stage | None = None) -> Stage:
    """One metric of one folder of pictures; writes ``scores.json``.

    ``against``: what it is compared with, as ``Metric.against``, or ``validation``, or ``noise``; ``other``: the stage
    that made that, if it is no folder of the data.
    """

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        folders = pictures_in(parents["pictures"]), compared_with(against, parents)
        scores = scores_of(metric.component, *folders, run, noise=against == "noise")
        (out / "scores.json").write_text(json.dumps(scores, sort_keys=True), encoding="utf-8")

    # No seed: what a metric draws must not differ between cells, and pictures shared by cells are scored once.
    parents = {"pictures": pictures, "data": data} | ({"other": other} if other else {})
    key = metric.key | {"against": against}
    return Stage(SCORE, key, _checked(work, metric), parents, title=pictures.title)


def scores_of(metric: Metric, got: Path, ref: Path, run: Run, *, noise: bool = False) -> dict[str, float]:
    """What a metric measures of the folder ``got`` against ``ref``, or against ``noise`` in it, that is finite.

    Raises ValueError for scores that the metric does not declare; those against noise are further ones.
    """
    measured = metric.against_noise(got, ref, run) if noise else metric(got, ref, run)
    if not noise and (odd := sorted(map(str, measured.keys() - metric.scores.keys()))):
        declared = ", ".join(metric.scores)
        raise ValueError(f"metric {metric.known_as}: returned {', '.join(odd)}; its scores are {declared}")
    return finite(measured)


def finite(scores: Mapping[str, float]) -> dict[str, float]:
    """Of what a metric measured, what a record can hold."""
    return {score: value for score, value in scores.items() if math.isfinite(value)}


def compared_with(against: str, parents: Mapping[str, Path]) -> Path:
    """The folder that a score's pictures are compared with; ``parents``: the folders of those of its stage."""
    folders = {"train_clean": "train", "input": "train", "truth": ""}
    return parents["other"] if "other" in parents else parents["data"] / folders.get(against, against)


def _checked(
    work: Work, *methods: Part | None, model: Part | None = None, who: str = "", argument: str = "victim"
) -> Work:
    """``work`` of ``methods`` that fails if what they or their ``model`` read from disk was exchanged before it was
    done, or if ``who``, which was given that as ``argument``, left it changed: other stages use the same object.

    Of methods from outside the package it says if they draw from generators that belong to no picture.
    """
    used = [part for part in (*methods, model) if part]

    def checked(out: Path, parents: dict[str, Path], run: Run) -> None:
        discard = partial(empty, out)  # what a resumable stage finds there it keeps
        before = Fingerprint(model.component.on(run)) if model else None
        generators = Generators() if any(map(is_own, used)) else None
        work(out, parents, run)
        if generators and (drawn := generators.moved()):
            run.log.say(f"drew from {drawn}: a rerun may differ; use run.rng")
        if before:
            before.check(who, argument, discard)
        for part in used:
            part.check_unchanged(discard)

    return checked


# -- what an attack changes beside pictures ----------------------------------------------------------------------------


def _attack_changing(attack: Part | None, *hooks: str) -> Part | None:
    """The attack, if it changes what ``hooks`` name."""
    return attack if attack and attack.component.hooks & set(hooks) else None


def _attacked_title(attack: Part | None, title: str) -> str:
    """The title of what an attack changes beside the pictures; pictures that it purified name it already."""
    return f"{attack.name} on {title}" if attack and "purify" not in attack.component.hooks else title


def _attack_argument(attack: Part | None) -> dict[str, Any]:
    return {"attack": attack.component} if attack else {}


# -- folders -----------------------------------------------------------------------------------------------------------


def _owners(
    cell: Cell, data: Path, parts: Iterable[list[str]], like: Path | None, class_pictures: Path | None
) -> Iterator[Owner]:
    """What the protector holds, from a data folder, with the pictures of each of ``parts`` (names) in turn; prompts
    need not be the thief's (see ``Cell.owner_prompt``)."""
    facts, captions = read_data_facts(data), read_metadata(data / "train")
    extra_clean, classes, masks = _all(data / "extra_clean"), _all(class_pictures), data / "masks"
    prompt_of = {
        "class": lambda name: facts["class_prompt"],
        "data": lambda name: captions[name]["text"],
        "empty": lambda name: "",
    }
    for names in parts:
        yield Owner(
            images=_read(data / "train", names),
            names=names,
            prompts=[prompt_of[cell.owner_prompt](name) for name in names],
            masks=[_mask(masks, name) for name in names] if masks.is_dir() else None,
            extra_clean=extra_clean,
            token=cell.data.component.token or "",
            class_prompt=facts["class_prompt"],
            class_images=classes,
            like=_read(like, names) if like else None,
        )


def _mask(folder: Path, name: str) -> torch.Tensor:
    return (read((folder / name).with_suffix(".png"))[:1] > 0.5).float()


def _all(folder: Path | None) -> list[torch.Tensor]:
    return list(read_folder(folder).values()) if folder and folder.is_dir() else []


def _read(folder: Path, names: Sequence[str]) -> list[torch.Tensor]:
    return [read(folder / name) for name in names]


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A folder in ``out`` for intermediate state, gone once the block is done; an interrupted one leaves it there."""
    scratch = out / "scratch"
    scratch.mkdir(exist_ok=True)
    yield scratch
    shutil.rmtree(scratch)


def _write(out: Path, names: Sequence[str], pictures: Sequence[torch.Tensor]) -> None:
    for name, picture in zip(names, pictures, strict=True):
        write_png(png_path(out, name), picture.cpu())


def _write_captions(out: Path, source: Path) -> None:
    """The captions of the folder that the pictures in ``out`` were made from."""
    write_metadata(out, {str(Path(k).with_suffix(".png")): v for k, v in read_metadata(source).items()})
