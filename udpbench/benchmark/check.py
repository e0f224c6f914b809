"""Errors that only show when the parts of a cell meet, found before anything is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from udpbench.benchmark.arms import arms
from udpbench.benchmark.stages import Cell, Part
from udpbench.core.errors import ConfigError, Errors

NEEDS = {
    "latent": "an autoencoder",
    "text": "prompts",
    "denoise": "a UNet that takes no masks beside latents",
    "pixel": "a model of pixels",
}  # capability of a model -> words


def check(cell: Cell, asked_for: tuple[str, ...] = ()) -> Cell:
    """Errors that only show when the parts meet; metrics that cannot be computed are left out with the reason.

    Raises ConfigError; a metric in ``asked_for`` that cannot be computed is a mistake, too.
    """
    errors = [line for find in CHECKS for line in find(cell)]
    absent = {name: reason for name, m in cell.metrics.items() if (reason := _obstacle(cell, m))}
    errors += [f"metric {name}: {reason}" for name, reason in absent.items() if name in asked_for]
    if errors:
        raise ConfigError("\n".join(dict.fromkeys(errors)))
    kept = {name: m for name, m in cell.metrics.items() if name not in absent}
    if not kept:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
        raise ConfigError(f"metrics: none can be computed for this cell ({reasons or 'none is chosen'})")
    return replace(cell, metrics=kept, absent=absent)


# -- mistakes: cell -> a line for each ---------------------------------------------------------------------------------


def _models_that_lack(cell: Cell) -> Iterator[str]:
    for part, model, role in (
        (cell.protect, cell.surrogate, "surrogate"),
        (cell.attack, cell.purifier, "purifier"),
        (cell.task, cell.victim, "victim"),
    ):
        lacking = part.thing.needs - model.thing.capabilities
        if lacking:
            wanted = " and ".join(NEEDS.get(need, need) for need in sorted(lacking))
            yield f"{part.name}: needs {wanted}, which {role} {model.name} lacks; choose model@{role}=..."


def _untrained_models(cell: Cell) -> Iterator[str]:
    """What starts from weights that have learned nothing."""
    for group, part, setting, value, model, role in (
        ("task", cell.task, "init", "copy", cell.victim, "victim"),
        ("protect", cell.protect, "surrogate_init", "victim_task", cell.surrogate, "surrogate"),
    ):
        if getattr(part.thing, setting, None) == value and not model.thing.trained:
            yield (
                f"{part.name}: {group}.{setting}={value} starts from the weights of {role} {model.name}, "
                f"which has learned nothing; say {group}.{setting}=random, or choose model@{role}=pixel {role}.path=DIR"
            )


def _strength_to_match(cell: Cell) -> Iterator[str]:
    if getattr(cell.protect.thing, "wants_like", False) and cell.like is None:
        yield f"protect={cell.protect.name}: say whose strength it shall match, e.g. protect@like=eudp"
    if cell.like and getattr(cell.like.thing, "wants_like", False):
        yield f"protect@like={cell.like.name}: has no strength of its own; give a protection, e.g. eudp"


def _missing_here(cell: Cell) -> Iterator[str]:
    """What components say is missing on this machine."""
    for part in (cell.data, cell.protect, cell.attack):
        if hasattr(part.thing, "check"):
            yield from _refused(part.thing.check)


def _share(cell: Cell) -> Iterator[str]:
    if cell.protected_fraction < 1 and not cell.task.thing.trains:
        yield f"protected_fraction: task {cell.task.name} trains on nothing that could be mixed; give 1"
    train = cell.data.thing.sizes["train"]
    if cell.protect.name != "none" and not cell.share_of(train):
        yield f"protected_fraction: {cell.protected_fraction:g} of {train} training pictures is none"


def _arms(cell: Cell) -> Iterator[str]:
    if not arms(cell):
        given = f"protect={cell.protect.name} attack={cell.attack.name} task={cell.task.name}"
        yield f"arms: none of {list(cell.arms)} means anything for {given}"


def _masks(cell: Cell) -> Iterator[str]:
    mask, data = getattr(cell.task.thing, "mask", None), cell.data
    if mask == "data" and not getattr(data.thing, "has_masks", False):
        yield f"task {cell.task.name}: data {data.name} has no masks; give task.mask=centre or a folder of masks"
    elif mask is not None and hasattr(data.thing, "files"):
        yield from _refused(lambda: cell.task.thing.check_masks(data.thing.files()))


def _word(cell: Cell) -> Iterator[str]:
    """Why the word that the task learns cannot be learned."""
    word, token = getattr(cell.task.thing, "word", None), getattr(cell.data.thing, "token", None)
    if word is not None and word != token:
        has = f"calls its subject {token!r}; give task.word={token}" if token else "has no word for a subject"
        yield f"task {cell.task.name}: learns the word {word!r}, but data {cell.data.name} {has}"
    elif word is not None and hasattr(cell.data.thing, "texts"):
        yield from _refused(lambda: [cell.task.thing.caption(text) for text in cell.data.thing.texts()])


def _perturbation_metrics(cell: Cell) -> Iterator[str]:
    for name, metric in cell.perturbation_metrics.items():
        if metric.thing.against != "input":
            what = "does not compare a changed picture with its original; it belongs to metrics, not to metrics@perturbation"
            yield f"metric {name}: {what}"
        elif reason := _lacking(metric.thing):
            yield f"metric {name}: {reason}"


def _same_scores(cell: Cell) -> Iterator[str]:
    """Scores that two metrics of other settings would give: one would hide the other."""
    for group, metrics in (("metrics", cell.metrics), ("metrics@perturbation", cell.perturbation_metrics)):
        first: dict[str, str] = {}
        for name, metric in metrics.items():
            for score in metric.thing.scores:
                other = first.setdefault(score, name)
                if metrics[other].settings != metric.settings:
                    yield f"{group}: {other} and {name} both give the score {score}; leave one out"


CHECKS: tuple[Callable[[Cell], Iterator[str]], ...] = (
    _models_that_lack, _untrained_models, _strength_to_match, _missing_here, _share, _arms, _masks, _word,
    _perturbation_metrics, _same_scores,
)  # fmt: skip


# -- metrics -----------------------------------------------------------------------------------------------------------


def _obstacle(cell: Cell, metric: Part) -> str | None:
    """Why a metric cannot be computed for a cell, or None."""
    thing, sizes = metric.thing, cell.data.thing.sizes
    known = getattr(cell.data.thing, "truth", None)
    if thing.against == "truth" and known is None:
        return f"data {cell.data.name} has no truth that a judge could know"
    if thing.against == "truth" and known != thing.truth:
        return f"judges a {thing.truth}, data {cell.data.name} shows a {known}"
    if thing.against == "input":
        return "compares a changed picture with its original; it belongs to metrics@perturbation"
    if (thing.against == "clean_arm") == cell.task.thing.trains:
        return f"task {cell.task.name} {'makes no edits' if cell.task.thing.trains else 'only makes edits'}"
    if thing.against == "reference" and not sizes.get("reference"):
        return f"data {cell.data.name} has no reference pictures"
    if thing.against == "reference" and not getattr(cell.data.thing, "compares_sets", True):
        return f"data {cell.data.name} has references that overlap the training pictures"
    if thing.against == "reference" and (n := _smallest_set(cell, thing)) < thing.minimum:
        return f"needs {thing.minimum} pictures a side, there are {n}"
    return _lacking(thing)


def _smallest_set(cell: Cell, metric: Any) -> int:
    """How many pictures the smallest set would have that ``metric`` compares with another (the upper_bound's counts, too;
    validation pictures, if the thief chooses by it)."""
    sizes = cell.data.thing.sizes
    parts = ["reference", *(["heldout"] if "upper_bound" in cell.arms else [])]
    chooses = len(cell.task.thing.curve) > 1 and bool(set(metric.scores) & set(cell.primary))
    parts += ["validation"] if chooses else []
    return min(cell.task.thing.made(sizes["train"]), *(sizes[part] for part in parts if sizes.get(part)))


def _lacking(thing: Any) -> str | None:
    """What a metric says is missing on this machine (weights); asked before the work starts."""
    return next(iter(_refused(thing.check)), None) if hasattr(thing, "check") else None


def _refused(do: Callable[[], Any]) -> list[str]:
    """The line of the ValueError that ``do`` raises, if it does."""
    errors = Errors()
    errors.attempt(do)
    return errors
