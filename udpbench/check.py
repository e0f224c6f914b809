"""Mistakes that only show when the parts of a cell meet, found before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from udpbench.mistakes import ConfigError, Mistakes
from udpbench.pipeline import Cell, Part, arms

NEEDS = {
    "latent": "an autoencoder",
    "text": "prompts",
    "denoise": "a UNet that takes no masks beside latents",
    "pixel": "a model of pixels",
}  # capability of a model -> words


def check(cell: Cell, asked_for: tuple[str, ...] = ()) -> Cell:
    """Mistakes that only show when the parts meet; metrics that cannot be computed are left out with the reason.

    Raises ConfigError; a metric in ``asked_for`` that cannot be computed is a mistake, too.
    """
    errors = Mistakes()
    for part, model, role in (
        (cell.protect, cell.surrogate, "surrogate"),
        (cell.attack, cell.attacker, "attacker"),
        (cell.task, cell.victim, "victim"),
    ):
        lacking = part.thing.needs - model.thing.capabilities
        if lacking:
            wanted = " and ".join(NEEDS.get(need, need) for need in sorted(lacking))
            errors.append(f"{part.name}: needs {wanted}, which {role} {model.name} lacks; choose model@{role}=...")
    if getattr(cell.protect.thing, "wants_like", False) and cell.like is None:
        errors.append(f"protect={cell.protect.name}: say whose strength it shall match, e.g. protect@like=eudp")
    if cell.like and getattr(cell.like.thing, "wants_like", False):
        errors.append(f"protect@like={cell.like.name}: has no strength of its own; give a protection, e.g. eudp")
    errors += [reason for part in (cell.data, cell.protect, cell.attack) if (reason := _lacking(part.thing))]
    if cell.protected_share < 1 and not cell.task.thing.trains:
        errors.append(f"protected_share: task {cell.task.name} trains on nothing that could be mixed; give 1")
    finds = (_no_weights, _none_protected, _no_arms, _no_masks, _no_word)
    errors += [reason for find in finds if (reason := find(cell))]
    errors += [f"metric {name}: {why}" for name, m in cell.cloak_metrics.items() if (why := _not_of_changes(m.thing))]
    errors += [*_same_scores("metrics", cell.metrics), *_same_scores("metrics@cloak", cell.cloak_metrics)]
    absent = {name: reason for name, m in cell.metrics.items() if (reason := _obstacle(cell, m))}
    errors += [f"metric {name}: {reason}" for name, reason in absent.items() if name in asked_for]
    if errors:
        raise ConfigError("\n".join(dict.fromkeys(errors)))
    kept = {name: m for name, m in cell.metrics.items() if name not in absent}
    if not kept:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
        raise ConfigError(f"metrics: none can be computed for this cell ({reasons or 'none is chosen'})")
    return replace(cell, metrics=kept, absent=absent)


def _no_weights(cell: Cell) -> str | None:
    """Why nothing can start from a model's weights, or None."""
    starts = (
        ("task", cell.task, "init", "copy", cell.victim, "victim"),
        ("protect", cell.protect, "surrogate_init", "victim_task", cell.surrogate, "surrogate"),
    )
    for group, part, setting, value, model, role in starts:
        if getattr(part.thing, setting, None) == value and not model.thing.trained:
            return (
                f"{part.name}: {group}.{setting}={value} starts from the weights of {role} {model.name}, "
                f"which has learned nothing; say {group}.{setting}=random, or choose model@{role}=pixel {role}.path=DIR"
            )
    return None


def _none_protected(cell: Cell) -> str | None:
    train = cell.data.thing.sizes["train"]
    if cell.protect.name == "none" or cell.share_of(train) > 0:
        return None
    return f"protected_share: {cell.protected_share:g} of {train} training pictures is none"


def _no_arms(cell: Cell) -> str | None:
    if arms(cell):
        return None
    given = f"protect={cell.protect.name} attack={cell.attack.name} task={cell.task.name}"
    return f"arms: none of {list(cell.arms)} means anything for {given}"


def _no_word(cell: Cell) -> str | None:
    """Why the word that the task learns cannot be learned, or None."""
    word, token = getattr(cell.task.thing, "word", None), getattr(cell.data.thing, "token", None)
    if word is None:
        return None
    if word == token:
        errors = Mistakes()
        for text in cell.data.thing.texts() if hasattr(cell.data.thing, "texts") else ():
            errors.attempt(cell.task.thing.caption, text)
        return errors[0] if errors else None
    has = f"calls its subject {token!r}; give task.word={token}" if token else "has no word for a subject"
    return f"task {cell.task.name}: learns the word {word!r}, but data {cell.data.name} {has}"


def _not_of_changes(thing: Any) -> str | None:
    """Why a metric cannot be computed of the change of each picture, or None."""
    if thing.against != "input":
        return "does not compare a changed picture with its original; it belongs to metrics, not to metrics@cloak"
    return _lacking(thing)


def _same_scores(group: str, metrics: Mapping[str, Part]) -> list[str]:
    """A line for every score that two metrics of other settings would give: one would hide the other."""
    first: dict[str, str] = {}
    pairs = [(score, name) for name, metric in metrics.items() for score in metric.thing.scores]
    shared = [(score, first.setdefault(score, name), name) for score, name in pairs]
    twice = [(score, one, other) for score, one, other in shared if metrics[one].settings != metrics[other].settings]
    return [f"{group}: {one} and {other} both give the score {score}; leave one out" for score, one, other in twice]


def _no_masks(cell: Cell) -> str | None:
    """Why the task's masks cannot be had, or None."""
    mask, data = getattr(cell.task.thing, "mask", None), cell.data
    if mask == "data" and not getattr(data.thing, "has_masks", False):
        return f"task {cell.task.name}: data {data.name} has no masks; give task.mask=centre or a folder of masks"
    if mask in (None, "data", "centre") or not hasattr(data.thing, "files"):
        return None
    errors = Mistakes()
    errors.attempt(cell.task.thing.check_masks, data.thing.files())
    return errors[0] if errors else None


def _obstacle(cell: Cell, metric: Part) -> str | None:
    """Why a metric cannot be computed for a cell, or None."""
    thing, sizes = metric.thing, cell.data.thing.sizes
    known = getattr(cell.data.thing, "truth", None)
    if thing.against == "truth" and known is None:
        return f"data {cell.data.name} has no truth that a judge could know"
    if thing.against == "truth" and known != thing.truth:
        return f"judges a {thing.truth}, data {cell.data.name} shows a {known}"
    if thing.against == "input":
        return "compares a changed picture with its original; it belongs to metrics@cloak"
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
    """How many pictures the smallest set would have that ``metric`` compares with another (the ceiling's counts, too;
    validation pictures, if the thief chooses by it)."""
    sizes = cell.data.thing.sizes
    parts = ["reference", *(["heldout"] if "ceiling" in cell.arms else [])]
    chooses = len(cell.task.thing.curve) > 1 and bool(set(metric.scores) & set(cell.primary))
    parts += ["validation"] if chooses else []
    return min(cell.task.thing.made(sizes["train"]), *(sizes[part] for part in parts if sizes.get(part)))


def _lacking(thing: Any) -> str | None:
    """What a component says is missing on this machine (weights); asked before the work starts."""
    errors = Mistakes()
    if hasattr(thing, "check"):
        errors.attempt(thing.check)
    return errors[0] if errors else None
