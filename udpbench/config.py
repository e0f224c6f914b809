"""From a configuration to a cell: build everything, check everything, before anything is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from udpbench.pipeline import ARMS, Cell, Part

OWNER_PROMPTS = ("class", "data", "empty")
T = TypeVar("T")


class ConfigError(ValueError):
    """What is wrong with a configuration: one line per mistake, all of them at once."""


class _Errors(list[str]):
    """Collects mistakes instead of stopping at the first."""

    def attempt(self, do: Callable[..., T], *arguments: Any) -> T | None:
        """``do(*arguments)``, or None and one more line in the list."""
        try:
            return do(*arguments)
        except InstantiationException as error:
            self.append(_root(error))
        except (ValueError, OmegaConfBaseException) as error:
            self.append(str(error).splitlines()[0])
        return None


def build(cfg: DictConfig, choices: Mapping[str, str | None]) -> Cell:
    """The cell of a composed configuration; ``choices`` are the options chosen by group.

    Raises ConfigError.
    """
    errors = _Errors()

    def part(group: str) -> Any:
        """The part chosen in ``group``: ``protect``, or, mounted elsewhere, ``protect@noise``."""
        node = group.split("@")[-1]
        return errors.attempt(lambda: make_part(cfg[node], choices.get(group) or node))

    def model(role: str) -> Any:
        return part(f"model@{role}" if choices.get(f"model@{role}") else "model")

    parts = {name: part(name) for name in ("data", "budget", "protect", "attack", "task")}
    parts |= {name: part(f"protect@{name}") for name in ("noise", "noise_rms")}
    parts |= _shared({role: model(role) for role in ("surrogate", "victim", "attacker")})
    parts["like"] = part("protect@like") if choices.get("protect@like") else None
    _check_choice(errors, "owner_prompt", [cfg.owner_prompt], OWNER_PROMPTS)
    _check_choice(errors, "arms", cfg.arms, ARMS)
    share = cfg.protected_share
    if not isinstance(share, int | float) or not 0 < share <= 1:
        errors.append(f"protected_share: must be a number above 0 and at most 1, given {share!r}")
    if not isinstance(cfg.seed, int) or cfg.seed < 0:
        errors.append(f"seed: must be a whole number >= 0, given {cfg.seed!r}")
    metrics = _metrics(cfg.metrics.bundle, errors) | _metrics(cfg.metrics.get("extra") or {}, errors)
    cloak = _metrics(cfg.cloak.bundle, errors)
    for thing in (*parts.values(), *metrics.values(), *cloak.values()):
        if thing is not None:  # its key reads what it depends on: folders, weights
            errors.attempt(getattr, thing, "key")
    if errors:
        raise ConfigError("\n".join(dict.fromkeys(errors)))
    cell = Cell(
        **parts,
        seed=cfg.seed,
        protected_share=float(cfg.protected_share),
        arms=tuple(cfg.arms),
        owner_prompt=cfg.owner_prompt,
        metrics=metrics,
        cloak_metrics=cloak,
        primary=tuple(cfg.metrics.primary),
    )
    return check(cell, asked_for=tuple(cfg.metrics.get("extra") or {}))


def _shared(models: dict[str, Part | None]) -> dict[str, Part | None]:
    """The same object for the same settings: a model that plays several roles is loaded once."""
    first: dict[str, Part] = {}
    return {role: part and first.setdefault(repr(part.settings), part) for role, part in models.items()}


def make_part(node: DictConfig, name: str) -> Part:
    """Build the component of a configuration node; one with a ``label`` (name and strength) goes by that."""
    settings = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    thing = instantiate(node, _convert_="all")
    return Part(getattr(thing, "label", name), settings, thing)  # type: ignore[arg-type]


def check(cell: Cell, asked_for: tuple[str, ...] = ()) -> Cell:
    """Mistakes that only show when the parts meet; metrics that cannot be computed are left out with the reason.

    Raises ConfigError; a metric in ``asked_for`` that cannot be computed is a mistake, too.
    """
    errors = _Errors()
    for part, model, role in (
        (cell.protect, cell.surrogate, "surrogate"),
        (cell.attack, cell.attacker, "attacker"),
        (cell.task, cell.victim, "victim"),
    ):
        lacking = part.thing.needs - model.thing.capabilities
        if lacking:
            errors.append(
                f"{part.name}: needs a {role} that can {', '.join(sorted(lacking))}; model {model.name} cannot"
            )
    if getattr(cell.protect.thing, "wants_like", False) and cell.like is None:
        errors.append(f"protect={cell.protect.name}: say whose strength it shall match, e.g. protect@like=eudp")
    errors += [reason for part in (cell.protect, cell.attack) if (reason := _lacking(part.thing))]
    if cell.protected_share < 1 and not cell.task.thing.trains:
        errors.append(f"protected_share: task {cell.task.name} trains on nothing that could be mixed; give 1")
    errors += [reason] if (reason := _no_masks(cell)) else []
    errors += [f"metric {name}: {why}" for name, m in cell.cloak_metrics.items() if (why := _lacking(m.thing))]
    absent = {name: reason for name, m in cell.metrics.items() if (reason := _obstacle(cell, m))}
    errors += [f"metric {name}: {reason}" for name, reason in absent.items() if name in asked_for]
    if errors:
        raise ConfigError("\n".join(dict.fromkeys(errors)))
    kept = {name: m for name, m in cell.metrics.items() if name not in absent}
    return replace(cell, metrics=kept, absent=absent)


def _no_masks(cell: Cell) -> str | None:
    """Why the task's masks cannot be had, or None."""
    if getattr(cell.task.thing, "mask", None) != "data" or getattr(cell.data.thing, "has_masks", False):
        return None
    return f"task {cell.task.name}: data {cell.data.name} has no masks; give task.mask=centre or a folder of masks"


def _obstacle(cell: Cell, metric: Part) -> str | None:
    """Why a metric cannot be computed for a cell, or None."""
    thing, sizes = metric.thing, cell.data.thing.sizes
    known = getattr(cell.data.thing, "truth", None)
    if thing.against == "truth" and known is None:
        return f"data {cell.data.name} has no truth that a judge could know"
    if thing.against == "truth" and known != thing.truth:
        return f"judges a {thing.truth}, data {cell.data.name} shows a {known}"
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
    errors = _Errors()
    if hasattr(thing, "check"):
        errors.attempt(thing.check)
    return errors[0] if errors else None


def _metrics(nodes: Mapping[str, DictConfig], errors: _Errors) -> dict[str, Part]:
    made = {name: errors.attempt(make_part, node, name) for name, node in nodes.items() if node}
    return {name: part for name, part in made.items() if part}


def _check_choice(errors: _Errors, name: str, given: Iterable[str] | None, allowed: tuple[str, ...]) -> None:
    if given is None or isinstance(given, str):
        errors.append(f"{name}: must be a list, given {given!r}; allowed in it are {', '.join(allowed)}")
        return
    wrong = [g for g in given if g not in allowed]
    if wrong:
        errors.append(f"{name}: unknown {', '.join(map(str, wrong))}; allowed are {', '.join(allowed)}")


def _root(error: BaseException) -> str:
    """The line of the innermost cause: the component's own words, not Hydra's (but for those that say too little)."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return str(cause).splitlines()[0] if isinstance(cause, ValueError) else " ".join(str(error).split())


def find_device(wanted: str) -> torch.device:
    """``auto`` is the first GPU, or the CPU.

    Raises ConfigError for a device that is not there.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"runtime.device: {wanted!r} cannot be used ({str(error).splitlines()[0]}); "
            "allowed are auto, cpu, cuda, cuda:N"
        ) from error
    return device
