"""What goes into the cache keys of stages beside the keys of parts: tasks, of which training and sampling read other
settings, and attacks on training."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, Literal

from udpbench.benchmark.cell import Cell, Part
from udpbench.core.component import Component, inside
from udpbench.interfaces import Task
from udpbench.optim.training import TrainingTask

# Methods of tasks by which those from outside the package change what is trained.
OF_TRAINING = frozenset({"train", "trainable", "loss", "caption", "adapted", "fit"})


def task_key(cell: Cell) -> dict[str, Any]:
    """What names a task in a key; somebody's own class, which inherits a version, by its name and source, too."""
    key, kind = {"task": cell.task.name, "version": cell.task.component.version}, type(cell.task.component)
    if not is_own(cell.task):
        return key
    return key | {"class": f"{kind.__module__}.{kind.__qualname__}"} | cell.task.source


def is_own(part: Part) -> bool:
    """Whether its class is somebody's own, from outside the package."""
    return not type(part.component).__module__.startswith("udpbench.")


def task_settings(part: Part, method: Literal["training_key", "sampling_key"]) -> dict[str, Any]:
    """Settings of a task in a key: those that its ``method`` gives; what it reads from disk by its digests, wherever it
    lies. Of somebody's own class without such a method all that the class of the package that it derives from does
    not know; in the key of a training that it changes itself, all that change more than speed and memory."""
    task: Task = part.component
    settings, given, kind = getattr(task, method)(), part.key["settings"], type(task)
    if is_own(part) and getattr(kind, method).__module__.startswith("udpbench."):
        base: Any = next(base for base in kind.__mro__ if base.__module__.startswith("udpbench."))
        known = {f.name for f in fields(base)} if is_dataclass(base) else set()
        if method == "training_key" and _trains_itself(kind):
            known = set(task.of_speed) if isinstance(task, TrainingTask) else set()
        settings = {name: value for name, value in given.items() if name not in known} | settings
    # Components are no JSON; of those that no setting names, the source says what they are.
    settings = {k: given.get(k) if _holds_components(v) else v for k, v in settings.items() if k not in task.places}
    return settings | task.identity() | ({"inside": part.key["inside"]} if "inside" in part.key else {})


def _trains_itself(kind: type) -> bool:
    """Whether a class from outside the package overrides anything that trainings are made of."""
    own = (base for base in kind.__mro__ if not base.__module__.startswith("udpbench."))
    return any(name in OF_TRAINING for base in own for name in vars(base))


def _holds_components(value: Any) -> bool:
    return isinstance(value, Component) or any(_holds_components(held) for _, held in inside(value))


def made_key(cell: Cell) -> dict[str, Any]:
    """What generated pictures and edits depend on beside their inputs."""
    return task_key(cell) | {"sampling": task_settings(cell.task, "sampling_key"), "victim": cell.victim.key}


def attack_key(attack: Part | None) -> dict[str, Any]:
    return {"attack": attack.key} if attack else {}
