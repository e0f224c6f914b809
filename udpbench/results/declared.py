"""Whether what a record calls itself is what its configuration builds: names of methods and models, facts, directions
of scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from udpbench.benchmark.build import make_part
from udpbench.benchmark.cell import ROLES, Part
from udpbench.benchmark.signatures import KINDS
from udpbench.core.component import Component
from udpbench.core.digest import folder_digest
from udpbench.core.package import CONF
from udpbench.core.source import targets
from udpbench.models.micro.judge import WEIGHTS
from udpbench.results.record import metrics_of
from udpbench.results.schema import EMBEDDED, Record

METHODS = ("data", "protect", "attack", "task")


def contradictions(record: Record) -> Iterator[str]:
    """A line for everything that the record says of itself and that its configuration or digests say otherwise.

    What is built are components of the package alone, whose constructors keep numbers; nothing is loaded or run.
    """
    config = record["config"]
    settings = {name: config.get(name) for name in METHODS}
    settings |= {role: config.get(role) or config.get("model") for role in ROLES}
    parts: dict[str, Part] = {}
    for name, mine in settings.items():
        called = str(record["cell"][name])  # type: ignore[literal-required]
        group = "model" if name in ROLES else name
        try:
            parts[name] = _built(group, called, mine)
        except ValueError as error:
            yield f"config.{name} is none that this version builds ({error}): run the cell again"
            continue
        label, kind = parts[name].component.label, type(parts[name].component).__name__
        if label:
            if label != called:
                yield f"cell.{name} is {called}, the configuration's is {label}"
        elif (known := _class_of(group, called)) is None:
            yield f"cell.{name} is {called}, which is no option of conf/{group}: add it first"
        elif known.rpartition(".")[2] != kind:
            yield f"cell.{name} is {called}, the configuration's is of class {kind}"
    yield from _facts(record, parts)
    for role in ROLES:
        if role in parts:
            yield from _weights(record, role, parts[role])
    yield from _directions(record)


def _facts(record: Record, parts: Mapping[str, Part]) -> Iterator[str]:
    """Facts and label, by what is built."""
    facts = record["facts"]
    known: dict[str, Any] = {"protected_fraction": record["config"].get("protected_fraction", 1.0)}
    known |= {"preset": parts["protect"].preset} if "protect" in parts else {}
    known |= {"edits": not parts["task"].component.trains} if "task" in parts else {}
    if "victim" in parts:
        known["embedded"] = parts["victim"].component.embedded
        label = EMBEDDED if known["embedded"] else parts["victim"].name
        if record["label"] != label:
            yield f"label {record['label']!r}: of victim {parts['victim'].name} it is {label!r}"
    for name, value in known.items():
        if facts[name] != value:  # type: ignore[literal-required]
            yield f"facts say {name} {facts[name]}, the configuration {value}"  # type: ignore[literal-required]


def _weights(record: Record, role: str, part: Part) -> Iterator[str]:
    """Weights that come with the package are told by their digests, whatever a model is called."""
    named: Any = (record["provenance"].get("parts") or {}).get(role)
    identity: Any = named.get("identity") if isinstance(named, Mapping) else None
    if not isinstance(identity, Mapping):  # of older code; there is another line on that
        return
    if not part.component.embedded:
        if shipped := [name for name in _shipped() if _digests(name)["unet"] == identity.get("unet")]:
            yield f"{role} {part.name} has the weights of {', '.join(shipped)}, which come with the package"
        return
    own = Path(part.component.path).name
    if own not in _shipped() or own != part.name:
        yield f"{role} {part.name}: its path is that of {own}; with the package come {', '.join(_shipped())}"
    elif odd := [at for at in part.component.parts if identity.get(at) != _digests(own).get(at)]:
        yield f"{role} {part.name}: {', '.join(odd)} has other digests than the model that comes with the package"


def _directions(record: Record) -> Iterator[str]:
    """A metric of the package knows which way its scores go; one that this version does not build says nothing."""
    bundles = record["config"].get("metrics") or {}
    for metric, settings in {**(bundles.get("bundle") or {}), **(bundles.get("extra") or {})}.items():
        if settings is None:
            continue
        try:
            ways = _built("metric", metric, settings).component.scores
        except ValueError:
            continue
        for score, about in metrics_of([record]).items():
            if ways.get(score, about["better_protected"]) != about["better_protected"]:
                yield f"metric {score}: better_protected is {about['better_protected']}, of the metric {ways[score]}"


# -- components of the package -----------------------------------------------------------------------------------------


def _built(group: str, called: str, settings: Any) -> Part:
    """The part of a group that ``settings`` make, ``called`` so unless it has a label; ValueError if none."""
    if not isinstance(settings, Mapping):
        raise ValueError(f"given {settings!r}")
    return _made(group, called, json.dumps(settings, sort_keys=True))


@cache
def _made(group: str, called: str, settings: str) -> Part:
    node = json.loads(settings)
    if odd := next((target for target in targets(node) if not _is_component(target)), None):
        raise ValueError(f"{odd} is no component of udpbench")
    try:
        return make_part(OmegaConf.create(node), called, KINDS[group])
    except Exception as error:  # records come from anywhere, and so what constructors are given
        raise ValueError(" ".join(str(error).split())) from error


@cache
def _is_component(target: str) -> bool:
    """Whether ``target`` names a component where the package defines it: nothing else is ever called."""
    module, _, name = target.rpartition(".")
    if module.partition(".")[0] != "udpbench":
        return False
    try:
        kind: Any = vars(import_module(module)).get(name)
    except ImportError:
        return False
    return isinstance(kind, type) and issubclass(kind, Component) and kind.__module__ == module


@cache
def _class_of(group: str, option: str) -> str | None:
    """The class that an option of the package configures, its own or that of the one it begins with."""
    file = CONF / group / f"{option}.yaml"
    if "/" in option or not file.is_file():
        return None
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    inherited = [name for name in found.get("defaults", ()) if isinstance(name, str) and name != "_self_"]
    return found.get("_target_") or next(filter(None, (_class_of(group, name) for name in reversed(inherited))), None)


@cache
def _shipped() -> tuple[str, ...]:
    """The diffusion models that come with the package."""
    return tuple(sorted(path.parent.name for path in WEIGHTS.glob("*/model_index.json")))


@cache
def _digests(name: str) -> dict[str, str]:
    """Folder -> digest, of a model that comes with the package."""
    return {path.name: folder_digest(path) for path in (WEIGHTS / name).iterdir() if path.is_dir()}
