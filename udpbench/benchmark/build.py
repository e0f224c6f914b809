"""From a configuration to a cell: build everything, check everything, before anything is done."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from udpbench.benchmark.check import check
from udpbench.benchmark.stages import ARMS, Cell, Part
from udpbench.core.errors import ConfigError, Errors, check_whole

PRESETS = ("matched", "released")  # of a protection: work made equal for all, or as its authors published it
OWNER_PROMPTS = ("class", "data", "empty")


def build(cfg: DictConfig, choices: Mapping[str, str | None]) -> Cell:
    """The cell of a composed configuration; ``choices`` are the options chosen by group.

    Raises ConfigError.
    """
    errors = Errors()

    def part(group: str) -> Any:
        """The part chosen in ``group``: ``protect``, or, mounted elsewhere, ``protect@noise``."""
        node = group.split("@")[-1]
        return errors.attempt(lambda: make_part(cfg[node], choices.get(group) or node))

    def model(role: str) -> Any:
        return part(f"model@{role}" if choices.get(f"model@{role}") else "model")

    parts = {name: part(name) for name in ("data", "budget", "protect", "attack", "task")}
    parts |= {name: part(f"protect@{name}") for name in ("noise", "noise_rms")}
    parts |= _shared({role: model(role) for role in ("surrogate", "victim", "purifier")})
    parts["like"] = part("protect@like") if choices.get("protect@like") else None
    _check_choice(errors, "owner_prompt", [cfg.owner_prompt], OWNER_PROMPTS)
    _check_choice(errors, "arms", cfg.arms, ARMS)
    share = cfg.protected_fraction
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        errors.append(f"protected_fraction: must be a number above 0 and at most 1, given {share!r}")
    errors.attempt(check_whole, "seed", cfg.seed, 0)
    metrics = _metrics(cfg.metrics.bundle, errors) | _metrics(cfg.metrics.get("extra") or {}, errors)
    cloak = _metrics(cfg.perturbation.bundle, errors)
    if not errors:
        every = tuple(score for metric in metrics.values() for score in metric.thing.scores)
        _check_choice(errors, "metrics.primary", cfg.metrics.primary, every)
    for thing in (*parts.values(), *metrics.values(), *cloak.values()):
        if thing is not None:  # its key reads what it depends on: folders, weights
            errors.attempt(getattr, thing, "key")
    if errors:
        raise ConfigError("\n".join(dict.fromkeys(errors)))
    cell = Cell(
        **parts,
        seed=cfg.seed,
        protected_fraction=float(cfg.protected_fraction),
        arms=tuple(cfg.arms),
        owner_prompt=cfg.owner_prompt,
        metrics=metrics,
        perturbation_metrics=cloak,
        primary=tuple(cfg.metrics.primary),
    )
    return check(cell, asked_for=tuple(cfg.metrics.get("extra") or {}))


def _shared(models: dict[str, Part | None]) -> dict[str, Part | None]:
    """The same object for the same settings: a model that plays several roles is loaded once."""
    first: dict[str, Part] = {}
    return {role: part and first.setdefault(repr(part.settings), part) for role, part in models.items()}


def make_part(node: DictConfig, name: str) -> Part:
    """Build the component of a configuration node; one with a ``label`` (name and strength) goes by that.

    Raises ValueError naming the settings that are missing or of another kind than the component takes.
    """
    if missing := sorted(OmegaConf.missing_keys(node)):
        raise ValueError(f"{name}: give {', '.join(f'{key}=...' for key in missing)}")
    settings: dict[str, Any] = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    preset = settings.pop("preset", PRESETS[0])
    if preset not in PRESETS:
        raise ValueError(f"{name}: unknown preset {preset!r}; allowed are {', '.join(PRESETS)}")
    try:
        wrong = _mistyped(settings)
    except (ImportError, ValueError) as error:  # the path of no object
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from error
    if wrong:
        raise ValueError(f"{name}: {'; '.join(wrong)}")
    thing = instantiate(settings, _convert_="all")
    return Part(getattr(thing, "label", name), settings, thing, preset)


_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "int": ("a whole number", (int,)),
    "float": ("a number", (int, float)),
    "str": ("a text", (str,)),
    "bool": ("true or false", (bool,)),
    "Sequence": ("a list", (list,)),
}


def _mistyped(settings: Mapping[str, Any]) -> list[str]:
    """What of a part's settings is of another kind than the annotations of its ``_target_`` say, if they say a simple
    one; parts of parts included."""
    parts = {key: value for key, value in settings.items() if isinstance(value, dict) and "_target_" in value}
    wrong = [f"{key}.{line}" for key, part in parts.items() for line in _mistyped(part)]
    takes = get_object(settings["_target_"])
    try:
        parameters = inspect.signature(takes).parameters
    except (TypeError, ValueError):  # not everything that can be called tells what it takes
        return wrong
    for key, parameter in parameters.items():
        kind, _, none = str(parameter.annotation).partition(" | ")
        value = settings.get(key)
        if kind.partition("[")[0] not in _KINDS or none not in ("", "None") or value is None:
            continue
        words, allowed = _KINDS[kind.partition("[")[0]]
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            wrong.append(f"{key} must be {words}, given {value!r}")
    return wrong


def _metrics(nodes: Mapping[str, DictConfig], errors: Errors) -> dict[str, Part]:
    made = {name: errors.attempt(make_part, node, name) for name, node in nodes.items() if node}
    return {name: part for name, part in made.items() if part}


def _check_choice(errors: Errors, name: str, given: Iterable[str] | None, allowed: tuple[str, ...]) -> None:
    if given is None or isinstance(given, str):
        errors.append(f"{name}: must be a list, given {given!r}; allowed in it are {', '.join(allowed)}")
        return
    wrong = [g for g in given if g not in allowed]
    if wrong:
        errors.append(f"{name}: unknown {', '.join(map(str, wrong))}; allowed are {', '.join(allowed)}")


def find_device(wanted: str) -> torch.device:
    """``auto`` is the first GPU, or the CPU.

    Raises ConfigError for a device that is not there.
    """
    torch.backends.cudnn.allow_tf32 = False  # fp32 is float32: numbers must not depend on what a GPU would rather do
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"no device to compute on: {device.type}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"runtime.device: {wanted!r} cannot be used ({str(error).splitlines()[0]}); "
            "allowed are auto, cpu, cuda, cuda:N"
        ) from error
    return device
