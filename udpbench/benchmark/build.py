"""From a configuration to a cell: build everything before anything is done."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from udpbench.benchmark.arms import ARMS, DEFAULT
from udpbench.benchmark.cell import ROLES, Cell, Part
from udpbench.benchmark.signatures import KINDS, parts_in, wrong_settings
from udpbench.core.component import Component, check_choice, check_plain, held_in, inside, texts_in
from udpbench.core.errors import ConfigError, Errors, check_whole, instead, unresolved
from udpbench.core.text import CONTROL
from udpbench.interfaces import AGAINST, NEEDS, Dataset, Method, Metric

PRESETS = ("matched", "released")  # of a protection: work made equal for all, or as its authors published it
OWNER_PROMPTS = ("class", "data", "empty")
ROLE_OF = {"protect": "surrogate", "attack": "purifier"}  # whose model a method takes

READ = {
    "": (
        *("seed", "arms", "owner_prompt", "protected_fraction", "family", "metrics", "perturbation", "data", "budget"),
        *("model", "surrogate", "victim", "purifier", "noise", "noise_rms", "like", "inner", "protect", "attack"),
        *("task", "runtime", "track", "hydra"),
    ),
    "runtime": (
        *("device", "batch", "grad_batch", "stages", "low_memory", "workers", "threads", "max_pixels", "out", "store"),
        *("verify", "records"),
    ),
    "metrics": ("bundle", "extra", "primary"),
    "perturbation": ("bundle", "primary"),
}  # place -> the settings in it that somebody reads; parts say themselves which they take


def build(cfg: DictConfig, choices: Mapping[str, str | None], alone: str = "") -> Cell:
    """The cell of a composed configuration; ``choices`` are the options chosen by group.

    ``alone``: the one method of it that will be used (protect | attack); then models that it does not need may be
    missing. Raises ConfigError with one line for everything that is wrong.
    """
    errors = Errors()

    def part(group: str) -> Any:
        """The part chosen in ``group``: ``protect``, or, mounted elsewhere, ``protect@noise``."""
        kind, _, mounted = group.partition("@")
        node = mounted or kind
        return errors.attempt(lambda: make_part(cfg[node], choices.get(group) or node, KINDS[kind]))

    def model(role: str) -> Any:
        return part(f"model@{role}" if choices.get(f"model@{role}") else "model")

    parts = {name: part(name) for name in ("data", "budget", "protect", "attack", "task")}
    parts |= {name: part(f"protect@{name}") for name in ("noise", "noise_rms")}
    parts |= _shared({role: model(role) for role in ROLES})
    parts["like"] = part("protect@like") if choices.get("protect@like") else None
    bundles: dict[str, Any] = {name: errors.attempt(group_of, cfg, name) or {} for name in ("metrics", "perturbation")}
    metrics = _metrics(bundles["metrics"], "bundle", errors) | _metrics(bundles["metrics"], "extra", errors)
    of_perturbation = _metrics(bundles["perturbation"], "bundle", errors)
    _check_settings(cfg, errors)
    if not errors:
        _check_choice(errors, "metrics.primary", cfg.metrics.primary, _scores(metrics))
        if (primary := bundles["perturbation"].get("primary")) is not None:
            _check_choice(errors, "perturbation.primary", primary, _scores(of_perturbation))
    used = [made for name, made in parts.items() if made and name not in _unused(parts, alone)]
    for made in (*used, *metrics.values(), *of_perturbation.values()):
        errors.attempt(lambda made=made: made.key)  # which reads what it depends on: folders, weights
    errors.raise_any()
    cell = Cell(
        **parts,
        seed=cfg.seed,
        family=cfg.family,
        protected_fraction=float(cfg.protected_fraction),
        arms=DEFAULT if cfg.arms is None else tuple(cfg.arms),
        owner_prompt=cfg.owner_prompt,
        metrics=metrics,
        perturbation_metrics=of_perturbation,
        primary=tuple(cfg.metrics.primary),
    )
    for name, text in cell.names.items():
        if CONTROL.search(str(text)):
            raise ConfigError(f"{name}: {text!r} has control characters, which no table can show; give another name")
    return cell


def _unused(parts: Mapping[str, Part | None], alone: str) -> list[str]:
    """The roles whose models the method ``alone`` (or what it matches) does not need; of a whole cell none."""
    methods = (parts[alone], parts["like"]) if alone else ()
    needed = ROLE_OF.get(alone) if any(method and method.component.needs for method in methods) else None
    return [role for role in ROLES if alone and role != needed]


def _check_settings(cfg: DictConfig, errors: Errors) -> None:
    """What is wrong with the settings that belong to no part, and what of any the record could not hold."""
    errors.attempt(lambda: check_plain(_plain(cfg), "configuration"))
    errors.extend(_unread(cfg))
    _check_choice(errors, "owner_prompt", [cfg.owner_prompt], OWNER_PROMPTS)
    if cfg.arms is not None:
        _check_choice(errors, "arms", cfg.arms, tuple(ARMS))
    fraction = cfg.protected_fraction
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        errors.append(f"protected_fraction: must be a number above 0 and at most 1, given {fraction!r}")
    errors.attempt(check_whole, "seed", cfg.seed, 0)


def _unread(cfg: DictConfig) -> Iterator[str]:
    """What is wrong with settings that belong to no part and that nobody reads, as one of a YAML with a typing error.

    What another setting refers to (``+n=3 'protect.steps=${n}'``) is read.
    """
    for at, allowed in READ.items():
        node = cfg.get(at) if at else cfg
        for name in map(str, node if isinstance(node, DictConfig) else ()):
            if name not in allowed and not _referred_to(cfg, name):
                yield f"no setting '{at}{'.' if at else ''}{name}'{instead(name, allowed)}"


def _referred_to(cfg: DictConfig, name: str) -> bool:
    """Whether any setting is made from one of that name."""
    return re.search(rf"\$\{{[\w.]*\b{re.escape(name)}\b", OmegaConf.to_yaml(cfg)) is not None


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration without Hydra's own, resolved."""
    nodes = {str(key): "???" if OmegaConf.is_missing(cfg, key) else cfg[key] for key in cfg if key != "hydra"}
    return {k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in nodes.items()}


def _shared(models: dict[str, Part | None]) -> dict[str, Part | None]:
    """The same object for the same settings: a model that plays several roles is loaded once."""
    first: dict[str, Part] = {}
    return {role: part and first.setdefault(repr(part.settings), part) for role, part in models.items()}


def make_part(node: DictConfig, name: str, kind: type[Component]) -> Part:
    """Build the component of a configuration node; one with a ``label`` (name and strength) goes by that.

    Raises ValueError naming the settings that are missing, that the component does not take or takes as another type,
    or saying that it is no ``kind``.
    """
    if not isinstance(node, DictConfig):
        raise ValueError(f"{name}: {_NO_OPTION} {node!r}")
    try:
        if missing := sorted(OmegaConf.missing_keys(node)):
            raise ValueError(f"{name}: give {', '.join(f'{key}=...' for key in missing)}")
        settings: dict[str, Any] = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    except InterpolationKeyError as error:  # it refers to a setting that does not exist
        raise ValueError(unresolved(error)) from error
    except OmegaConfBaseException as error:  # or to itself
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from error
    if odd := next((text for text in texts_in(settings) if "${" in text), ""):  # Hydra would look for a setting again
        raise ValueError(f"{name}: {odd!r}: no text can hold ${{, which begins a reference to a setting")
    preset = _preset(settings, name)
    try:
        wrong = wrong_settings(settings)
    except ValueError as error:  # no object has that path
        raise ValueError(f"{name}: {error}") from error
    if wrong:
        raise ValueError(f"{name}: {'; '.join(wrong)}")
    try:
        component = instantiate(settings, _convert_="all")
    except SystemExit as error:
        raise ValueError(f"{name}: its constructor tried to end the process (SystemExit {error.code})") from error
    _check_kind(component, name, kind)
    if implausible := next(_implausible_numbers(settings, component, component), ""):
        raise ValueError(f"{name}: {implausible}")
    return Part(component.label or name, settings, component, preset)


def _preset(settings: dict[str, Any], name: str) -> str:
    """The preset that a part's settings say they are, taken out of them: ``released`` if any of its parts is.

    Raises ValueError for an unknown one.
    """
    preset = settings.pop("preset", PRESETS[0])
    check_choice(f"{name}: unknown preset", preset, PRESETS)
    inner = {_preset(part, f"{name}.{at}") for at, part in parts_in(settings)}
    return max({preset, *inner}, key=PRESETS.index)


def _check_kind(component: Any, name: str, kind: type[Component]) -> None:
    own = f"{type(component).__module__}.{type(component).__qualname__}"
    if not isinstance(component, kind):
        raise ValueError(f"{name}: {no_kind(own, kind)}")
    if isinstance(component, Method):
        if not isinstance(component.needs, set | frozenset):
            raise ValueError(f"{name}: needs of {own} must be a set, such as {{'latent'}}, given {component.needs!r}")
        if unknown := sorted(component.needs - NEEDS.keys()):
            raise ValueError(f"{name}: {own} needs unknown {', '.join(unknown)}; allowed are {', '.join(NEEDS)}")
    if isinstance(component, Dataset) and "train" not in component.sizes:
        raise ValueError(f"{name}: {own} must have sizes, with the number of training pictures, such as {{'train': 4}}")
    if isinstance(component, Metric):
        check_choice(f"{name}: {own} compares with unknown", component.against, AGAINST)
        if {*component.scores.values()} not in ({"up"}, {"down"}, {"up", "down"}):
            raise ValueError(f"{name}: scores of {own} must say of each whether up or down is better protected")


def no_kind(own: str, kind: type[Component]) -> str:
    """That the class ``own`` is none of its group's, in words."""
    return f"{own} is no {kind.__name__}; derive it from {kind.__module__}.{kind.__name__}"


def group_of(cfg: DictConfig, name: str) -> DictConfig:
    """The settings of a group that is no part; ConfigError if there are none."""
    if not isinstance(node := cfg.get(name), DictConfig):
        raise ConfigError(f"{name}: {_NO_OPTION} {node!r}")
    return node


_NO_OPTION = "must be an option of its group (python -m udpbench --help lists them), given"
MOST = 1e7  # no count, size or rate that could be meant is larger


def _implausible_numbers(settings: Any, held: Any, component: Component, *at: str) -> Iterator[str]:
    """Numbers, at any depth of a part's settings, that are negative, not finite or larger than anything there is, or
    0 where that means nothing.

    ``held``: what was built from the settings; ``component``: the innermost one around them, which says what may be.
    """
    component = held if isinstance(held, Component) else component
    if settings == 0 and at[-1] in component.nonzero:
        yield f"{'.'.join(at)} must be > 0, given {settings!r}"
    if isinstance(settings, int | float) and not 0 <= settings <= MOST:
        yield f"{'.'.join(at)} must be a number from 0 to {MOST:g}, given {settings!r}"
    parts = dict(held_in(held))
    for name, value in inside(settings):
        if name not in component.unbounded:
            yield from _implausible_numbers(value, parts.get(name), component, *at, str(name))


def _metrics(bundles: Mapping[str, Any], name: str, errors: Errors) -> dict[str, Part]:
    """The metrics in ``bundles[name]``, by name; one that is null is left out."""
    nodes = {} if bundles.get(name) is None else bundles[name]
    if not isinstance(nodes, Mapping | DictConfig):
        errors.append(f"metrics: {name} must hold metrics by name, given {nodes!r}")
        return {}
    made = {name: errors.attempt(make_part, node, name, Metric) for name, node in nodes.items() if node is not None}
    return {name: part for name, part in made.items() if part}


def _scores(metrics: Mapping[str, Part]) -> tuple[str, ...]:
    return tuple(score for metric in metrics.values() for score in metric.component.scores)


def _check_choice(errors: Errors, name: str, given: Any, allowed: tuple[str, ...]) -> None:
    if isinstance(given, str) or not isinstance(given, Iterable):
        errors.append(f"{name}: must be a list, given {given!r}; allowed in it are {', '.join(allowed)}")
        return
    wrong = [g for g in given if g not in allowed]
    if wrong:
        errors.append(f"{name}: unknown {', '.join(map(str, wrong))}; allowed are {', '.join(allowed)}")
