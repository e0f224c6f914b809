"""The schema of records: what a record holds, and the check that one follows it.

Without ``from __future__ import annotations``: the check reads the types, and ``NotRequired`` is lost in their text.
"""

import math
import re
from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import Any, NotRequired, TypedDict, cast, get_args, get_origin, get_type_hints, is_typeddict

from udpbench.benchmark.arms import ARMS, CONTROLS
from udpbench.benchmark.cell import ROLES
from udpbench.core.component import check_choice, check_plain, inside
from udpbench.core.provenance import Provenance
from udpbench.core.text import CONTROL

SCHEMA = 2
HERE = ("runtime", "track")  # groups of a configuration that are a machine's and change no number
EMBEDDED = "embedded world (64 px)"  # label of the embedded models' results, which never share a board with others
DIRECTIONS = ("up", "down")
STATUS = ("ok", "failed")
LARGEST = 1e100  # of what is measured: means and squares of such numbers are finite


class Score(TypedDict):
    """One metric of one arm.

    ``n``: generated pictures that went into it, which may be fewer than there are. ``better_protected``: "up" |
    "down". ``primary``: victims are judged by it.
    """

    value: float
    n: int
    better_protected: str
    primary: bool


class ArmScores(TypedDict):
    """What one arm scored.

    A metric is in ``metrics`` or, with the reason, in ``absent``; never a stand-in number. ``curve`` maps step
    multipliers ("0.5", "1", "2") to metric to value and is empty if not asked for; ``curve_validation`` is the same on
    validation references, on which the thief's best multiplier is chosen. ``key`` and ``images``: cache key and folder
    of the generated pictures. ``pictures``: folder of those that were trained on or edited; older records lack it.
    """

    metrics: dict[str, Score]
    absent: dict[str, str]
    key: str
    curve: dict[str, dict[str, float]]
    curve_validation: NotRequired[dict[str, dict[str, float]]]
    images: str
    pictures: NotRequired[str]


class CellNames(TypedDict):
    """The names that say which cell this is; ``subject`` and ``seed`` together are the victim."""

    data: str
    subject: str
    budget: str
    protect: str
    attack: str
    task: str
    surrogate: str
    victim: str
    purifier: str
    seed: int
    owner_prompt: NotRequired[str]
    protected_fraction: NotRequired[float]


class StageCost(TypedDict):
    """What one stage cost: ``seconds`` of wall clock, ``peak_mb`` of memory in MB; and the ``commit`` that did it
    (see provenance)."""

    name: str
    key: str
    seconds: float
    peak_mb: float | None
    cached: bool
    device: str
    commit: str | None


class BudgetFacts(TypedDict):
    """The bound on the perturbation: ``kind`` (linf | rms | perceptual) and ``eps`` in units of 1/255 of a [0,1] pixel.

    Of ``perceptual``, ``inner`` (linf | rms) and ``eps`` are the bound in which the pictures were made, ``distance`` by
    ``network`` is what each was then scaled to, and ``score`` what a metric of perturbations measures it as.
    """

    kind: str
    eps: float
    inner: NotRequired[str]
    distance: NotRequired[float]
    network: NotRequired[str]
    score: NotRequired[str]


class Facts(TypedDict):
    """What readers must know of a cell and would otherwise have to read out of names.

    ``preset``: "matched" in steps and work, or "released" as the authors published it. ``edits``: the task edits
    pictures, so scores are distances to the clean arm's edits. ``embedded``: the victim is a model of the embedded
    world. ``protected_fraction``: of the thief's pictures, 0 to 1. ``captions_cut``: how many captions are longer than
    a text encoder takes. ``shared``: folder of pictures to compare with -> how many of them are training pictures.
    """

    budget: BudgetFacts | None
    preset: str
    edits: bool
    embedded: bool
    protected_fraction: float
    captions_cut: NotRequired[int]
    shared: NotRequired[dict[str, int]]


class Record(TypedDict):
    """Everything about one cell.

    ``knowledge``: what the owner knew of the thief (same_vae, same_unet, same_prompt). ``perturbation``: arm -> what
    its training pictures measure against clean (linf and rms in 1/255, psnr in dB, ...). ``counts``: work of protection
    and attack. ``error``: the traceback of a failed cell.
    """

    schema: int
    status: str
    cell: CellNames
    label: str
    facts: Facts
    knowledge: dict[str, bool]
    arms: dict[str, ArmScores]
    perturbation: dict[str, dict[str, float]]
    counts: dict[str, int]
    stages: list[StageCost]
    config: dict[str, Any]
    provenance: Provenance
    flags: list[str]
    error: str | None


CELL = tuple(name for name in CellNames.__annotations__ if name in CellNames.__required_keys__)
EXTRA = tuple(name for name in CellNames.__annotations__ if name in CellNames.__optional_keys__)
PARTS = ("data", "budget", "protect", "like", "attack", "task", "model", *ROLES, "metrics", *CONTROLS)
LONG = (
    *("label", "status", *CELL, *EXTRA, "budget_kind", "eps", "distance", "network", "preset"),
    *("arm", "metric", "value", "n", "better_protected", "primary", "reason"),
)


def check(record: Mapping[str, Any], where: str) -> Record:
    """``record`` itself if it follows the schema, else ValueError naming ``where`` and what is wrong first."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: is no record, which is a JSON object")
    if record.get("schema") != SCHEMA:
        raise ValueError(f"{where}: record schema {record.get('schema')!r} cannot be read; allowed are 1 and {SCHEMA}")
    _check_type(record, Record, where, "record")
    check_choice(f"{where}: unknown status", record["status"], STATUS)
    if (record["error"] is None) != (record["status"] == "ok"):
        raise ValueError(f"{where}: status {record['status']!r} does not go with error {record['error']!r}")
    for name, text in {**record["cell"], "label": record["label"]}.items():
        if CONTROL.search(str(text)):
            raise ValueError(f"{where}: {name} {text!r} has control characters")
    ways: dict[str, str] = {}  # metric -> where it goes as protection gets better
    for name, arm in record["arms"].items():
        check_choice(f"{where}: unknown arm", name, ARMS)
        if both := sorted(arm["metrics"].keys() & arm["absent"].keys()):
            raise ValueError(f"{where}: arm {name} has {both[0]} both measured and absent")
        for metric, score in arm["metrics"].items():
            if CONTROL.search(metric):
                raise ValueError(f"{where}: metric {metric!r} has control characters")
            _check_score(f"{where}: {name} {metric}", score)
            if (way := score["better_protected"]) != ways.setdefault(metric, way):
                raise ValueError(f"{where}: metric {metric}: better_protected is up in one arm and down in another")
        for step in {**arm["curve"], **arm.get("curve_validation", {})}:
            if not re.fullmatch(r"\d+(\.\d+)?(e[+-]\d+)?", step):  # as :g writes a number
                raise ValueError(f"{where}: arm {name} has a curve at {step!r}, which is no multiple of the steps")
    _check_budget(record["facts"]["budget"], where)
    if any(not stage["name"].strip() for stage in record["stages"]):
        raise ValueError(f"{where}: a stage has no name")
    _check_config(record["config"], where)
    check_plain(record, where)
    return cast(Record, record)


def _check_budget(budget: BudgetFacts | None, where: str) -> None:
    """A distance is one by a network, which a score measures."""
    if budget and "distance" in budget and (lacking := sorted({"network", "score"} - budget.keys())):
        raise ValueError(f"{where}: record.facts.budget has a distance and lacks {', '.join(lacking)}")


def _check_config(config: Mapping[str, Any], where: str) -> None:
    """What readers compare of the configuration: parts are objects, or null where there is none; classes have names."""
    parts = {name: config.get(name) for name in PARTS}
    if isinstance(metrics := parts["metrics"], dict):
        parts |= {f"metrics.{name}": metrics.get(name) for name in ("bundle", "extra")}
    for name, part in parts.items():
        if not isinstance(part, dict | None):
            raise ValueError(f"{where}: record.config.{name} must be dict, given {type(part).__name__}")
        _check_targets(part, where, f"record.config.{name}")


def _check_targets(value: Any, where: str, at: str) -> None:
    for name, inner in inside(value):
        if name == "_target_" and not isinstance(inner, str):
            raise ValueError(f"{where}: {at}._target_ must be str, given {type(inner).__name__}")
        _check_targets(inner, where, f"{at}.{name}")


def _check_score(where: str, score: Score) -> None:
    if not math.isfinite(score["value"]) or abs(score["value"]) > LARGEST:
        raise ValueError(f"{where}: value {score['value']} is not finite; a missing metric belongs in 'absent'")
    if score["n"] < 1:
        raise ValueError(f"{where}: n must be a count of pictures >= 1, given {score['n']}")
    if (way := score["better_protected"]) not in DIRECTIONS:
        raise ValueError(f"{where}: better_protected must be {' or '.join(DIRECTIONS)}, given {way!r}")


def _check_type(value: Any, kind: Any, where: str, at: str) -> None:
    """Refuse a value that is not of its annotated type, or that lacks a field; ``at`` is its place in the record."""
    if isinstance(kind, UnionType):  # X | None
        kind = type(None) if value is None else get_args(kind)[0]
    if kind is Any:
        return
    base = dict if is_typeddict(kind) else get_origin(kind) or kind
    fits = isinstance(value, (int, float) if base is float else base)
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"{where}: {at} is larger than any number that is measured")
    if not fits or (isinstance(value, bool) and base is not bool):
        raise ValueError(f"{where}: {at} must be {base.__name__}, given {type(value).__name__}")
    if is_typeddict(kind):
        if lacking := [name for name in kind.__annotations__ if name in kind.__required_keys__ - value.keys()]:
            raise ValueError(f"{where}: {at} lacks {', '.join(lacking)}")
        for name in (name for name in _hints(kind) if name in value):
            _check_type(value[name], _hints(kind)[name], where, f"{at}.{name}")
    for name, item in () if is_typeddict(kind) else inside(value):
        _check_type(item, get_args(kind)[-1], where, f"{at}.{name}")


_hints = cache(get_type_hints)
