"""One JSON file per cell: its schema, writing it whole, and reading a folder of them."""

import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, NotRequired, TypedDict, cast, get_args, get_origin, get_type_hints, is_typeddict

from udpbench.core.atomic import atomic_write
from udpbench.results.upgrade import upgraded

SCHEMA = 2


class ArmKind(NamedTuple):
    """What an arm is.

    ``of``: the names of a cell on which its pictures depend. ``control``: a random perturbation that protections are
    compared with.
    """

    description: str
    of: tuple[str, ...] = ()
    control: bool = False


ARMS = {  # in the order of tables
    "pretrained": ArmKind("no training"),
    "clean": ArmKind("clean pictures"),
    "reseeded": ArmKind("clean pictures, edited from other noise"),
    "noise": ArmKind("random sign noise of the budget", control=True),
    "noise_rms": ArmKind("random noise of the protection's RMS", of=("protect",), control=True),
    "protected": ArmKind("protected pictures", of=("protect",)),
    "purified": ArmKind("protected pictures after the attack", of=("protect", "attack")),
    "clean_attacked": ArmKind("clean pictures after the attack", of=("attack",)),
    "upper_bound": ArmKind("held-out references after the autoencoder: a perfect victim"),
}
CONTROLS = tuple(name for name, kind in ARMS.items() if kind.control)
DIRECTIONS = ("up", "down")
STATUS = ("ok", "failed")


class Score(TypedDict):
    """One metric of one arm.

    ``n``: generated pictures that went into it. ``better_protected``: "up" | "down". ``primary``: victims are judged
    by it.
    """

    value: float
    n: int
    better_protected: str
    primary: bool


class Arm(TypedDict):
    """What one arm scored.

    A metric is in ``metrics`` or, with the reason, in ``absent``; never a stand-in number. ``curve`` maps step
    multipliers ("0.5", "1", "2") to metric to value and is empty if not asked for; ``curve_validation`` is the same on
    validation references, on which the thief's best multiplier is chosen. ``key`` and ``images``: cache key and folder
    of the generated pictures.
    """

    metrics: dict[str, Score]
    absent: dict[str, str]
    key: str
    curve: dict[str, dict[str, float]]
    curve_validation: NotRequired[dict[str, dict[str, float]]]
    images: str


class Cell(TypedDict):
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


class Stage(TypedDict):
    """What one stage cost: ``seconds`` of wall clock, ``peak_mb`` of memory in MB; and the ``commit`` that did it
    (see provenance)."""

    name: str
    key: str
    seconds: float
    peak_mb: float
    cached: bool
    device: str
    commit: str | None


class Budget(TypedDict):
    """The bound on the perturbation: ``kind`` (linf | rms) and ``eps`` in units of 1/255 of a [0,1] pixel."""

    kind: str
    eps: float


class Facts(TypedDict):
    """What readers must know of a cell and would otherwise have to read out of names.

    ``preset``: "matched" in steps and work, or "released" as the authors published it. ``edits``: the task edits
    pictures, so scores are distances to the clean arm's edits. ``embedded``: the victim is a model of the embedded
    world. ``protected_fraction``: of the thief's pictures, 0 to 1.
    """

    budget: Budget | None
    preset: str
    edits: bool
    embedded: bool
    protected_fraction: float


class Record(TypedDict):
    """Everything about one cell.

    ``knowledge``: what the owner knew of the thief (same_vae, same_unet, same_prompt). ``perturbation``: arm -> what
    its training pictures measure against clean (linf and rms in 1/255, psnr in dB, ...). ``counts``: work of protection
    and attack. ``error``: the traceback of a failed cell.
    """

    schema: int
    status: str
    cell: Cell
    label: str
    facts: Facts
    knowledge: dict[str, bool]
    arms: dict[str, Arm]
    perturbation: dict[str, dict[str, float]]
    counts: dict[str, int]
    stages: list[Stage]
    config: dict[str, Any]
    provenance: dict[str, Any]
    flags: list[str]
    error: str | None


class MetricInfo(TypedDict):
    """What the records say of a metric."""

    better_protected: str
    primary: bool


CELL = tuple(name for name in Cell.__annotations__ if name in Cell.__required_keys__)
EXTRA = tuple(name for name in Cell.__annotations__ if name in Cell.__optional_keys__)
LONG = (
    *("label", "status", *CELL, *EXTRA, "budget_kind", "eps", "preset"),
    *("arm", "metric", "value", "n", "better_protected", "primary", "reason"),
)


def write(path: Path, record: Record) -> None:
    """Check ``record`` and write it whole (beside, then renamed), keys always in the same order.

    Raises ValueError for what the schema does not allow, NaN and infinity included: a metric without a value is
    absent.
    """
    check(record, path.name)
    _check_plain(record, path.name, ())
    given: Mapping[str, Any] = record
    ordered = {name: _sorted(given[name]) for name in (*Record.__annotations__, *sorted(given)) if name in given}
    ordered["arms"] = {arm: ordered["arms"][arm] for arm in ARMS if arm in record["arms"]}
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(ordered, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read(path: Path) -> Record:
    """The record in a file; ValueError naming the file if it is broken."""
    return check(_load(path), str(path))


def read_records(folder: Path) -> list[Record]:
    """Every record under ``folder``, sorted by path.

    Raises ValueError as ``read_files`` does.
    """
    return list(read_files(folder).values())


def read_files(*folders: Path) -> dict[Path, Record]:
    """Path -> record for every ``*.json`` under ``folders`` that is one (it has "schema" or "cell").

    Others are left alone.

    Raises ValueError naming the folder if it is missing or holds no record, and naming the file if it is broken.
    """
    found: dict[Path, Record] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"records: {folder} is not a folder; give one that holds record JSONs")
        loaded = {path: _load(path) for path in sorted(folder.rglob("*.json"))}
        records = {path: x for path, x in loaded.items() if isinstance(x, dict) and ("schema" in x or "cell" in x)}
        if not records:
            raise ValueError(f"records: no record JSON under {folder}; a finished cell writes one")
        found |= {path: check(record, str(path)) for path, record in records.items()}
    return found


def check(record: Mapping[str, Any], where: str) -> Record:
    """``record`` itself if it follows the schema, else ValueError naming ``where`` and what is wrong first."""
    if record.get("schema") != SCHEMA:
        raise ValueError(f"{where}: record schema {record.get('schema')!r} cannot be read; allowed are 1 and {SCHEMA}")
    _check_type(record, Record, where, "record")
    if record["status"] not in STATUS:
        raise ValueError(f"{where}: unknown status {record['status']!r}; allowed are {', '.join(STATUS)}")
    if (record["error"] is None) != (record["status"] == "ok"):
        raise ValueError(f"{where}: status {record['status']!r} does not go with error {record['error']!r}")
    for name, arm in record["arms"].items():
        if name not in ARMS:
            raise ValueError(f"{where}: unknown arm {name!r}; allowed are {', '.join(ARMS)}")
        if both := sorted(arm["metrics"].keys() & arm["absent"].keys()):
            raise ValueError(f"{where}: arm {name} has {both[0]} both measured and absent")
        for metric, score in arm["metrics"].items():
            _check_score(f"{where}: {name} {metric}", score)
    return cast(Record, record)


def _check_score(where: str, score: Score) -> None:
    if not math.isfinite(score["value"]):
        raise ValueError(f"{where}: value {score['value']} is not finite; a missing metric belongs in 'absent'")
    if score["n"] < 1:
        raise ValueError(f"{where}: n must be a count of pictures >= 1, given {score['n']}")
    if score["better_protected"] not in DIRECTIONS:
        allowed = " or ".join(DIRECTIONS)
        raise ValueError(f"{where}: better_protected must be {allowed}, given {score['better_protected']!r}")


def _check_type(value: Any, kind: Any, where: str, at: str) -> None:
    """Refuse a value that is not of its annotated type, or that lacks a field; ``at`` is its place in the record."""
    if isinstance(kind, UnionType):  # X | None
        kind = type(None) if value is None else get_args(kind)[0]
    if kind is Any:
        return
    base = dict if is_typeddict(kind) else get_origin(kind) or kind
    fits = isinstance(value, (int, float) if base is float else base)
    if not fits or (isinstance(value, bool) and base is not bool):
        raise ValueError(f"{where}: {at} must be {base.__name__}, given {type(value).__name__}")
    inside: dict[str, Any] = {}
    if is_typeddict(kind):
        if lacking := [name for name in kind.__annotations__ if name in kind.__required_keys__ - value.keys()]:
            raise ValueError(f"{where}: {at} lacks {', '.join(lacking)}")
        inside = {name: (value[name], hint) for name, hint in _hints(kind).items() if name in value}
    elif base is dict:
        inside = {name: (item, get_args(kind)[1]) for name, item in value.items()}
    elif base is list:
        inside = {str(i): (item, get_args(kind)[0]) for i, item in enumerate(value)}
    for name, (item, hint) in inside.items():
        _check_type(item, hint, where, f"{at}.{name}")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _check_plain(value: object, where: str, at: tuple[str, ...]) -> None:
    """Refuse what JSON cannot say or would say differently when read again."""
    if isinstance(value, Mapping):
        if odd := [name for name in value if not isinstance(name, str)]:
            raise ValueError(f"{where}: key {odd[0]!r} of {'.'.join(at)} is not text; JSON keys are")
        for name, inner in value.items():
            _check_plain(inner, where, (*at, name))
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            _check_plain(inner, where, (*at, str(i)))
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {'.'.join(at)} is {value}; leave it out and say why")
    elif not isinstance(value, (str, int, float, type(None))):
        allowed = "text, numbers, true, false, null"
        raise ValueError(f"{where}: {'.'.join(at)} is a {type(value).__name__}; allowed are {allowed}")


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _sorted(value[k]) for k in sorted(value)}
    return [_sorted(v) for v in value] if isinstance(value, (list, tuple)) else value


def _load(path: Path) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    try:
        loaded = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
        return upgraded(loaded) if isinstance(loaded, dict) and loaded.get("schema") == 1 else loaded
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: record of schema 1 cannot be read ({error})") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path}: cannot be read as JSON ({str(error).splitlines()[0]})") from error


def score_of(record: Record, arm: str, metric: str) -> Score | None:
    """The score of ``metric`` in ``arm``, None if there is none."""
    part = record["arms"].get(arm)
    return None if part is None else part["metrics"].get(metric)


def of_edits(*records: Record) -> bool:
    """Whether the task edited pictures: then nothing was trained, and the clean arm is compared with itself."""
    return any(record["facts"]["edits"] for record in records)


def metrics_of(records: Iterable[Record]) -> dict[str, MetricInfo]:
    """Every measured metric, primary ones first, then by name.

    Raises ValueError if two records disagree on the direction of better protection.
    """
    found: dict[str, MetricInfo] = {}
    for record in records:
        for arm in record["arms"].values():
            for name, score in arm["metrics"].items():
                known = found.setdefault(name, {"better_protected": score["better_protected"], "primary": False})
                if known["better_protected"] != score["better_protected"]:
                    raise ValueError(f"metric {name}: better_protected is up in one record and down in another")
                known["primary"] |= score["primary"]
    return dict(sorted(found.items(), key=lambda item: (not item[1]["primary"], item[0])))


def long_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """One row per cell, arm and metric, with the columns ``LONG``: ``pandas.DataFrame(long_rows(records))``.

    An absent metric has the value None and its ``reason``.
    """
    rows: list[dict[str, Any]] = []
    for record in records:
        budget = record["facts"]["budget"] or {"kind": None, "eps": None}
        names = {"label": record["label"], "status": record["status"], **record["cell"]}
        names |= {"budget_kind": budget["kind"], "eps": budget["eps"], "preset": record["facts"]["preset"]}
        for arm in (arm for arm in ARMS if arm in record["arms"]):
            part = record["arms"][arm]
            found = {name: dict(score) for name, score in sorted(part["metrics"].items())}
            found |= {name: {"reason": reason} for name, reason in sorted(part["absent"].items())}
            for name, score in found.items():
                known = {**names, "arm": arm, "metric": name, **score}
                rows.append({column: known.get(column) for column in LONG})
    return rows
