"""One JSON file per cell: its schema, writing it whole, and reading a folder of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

from udpbench.core.atomic import atomic_write
from udpbench.results.upgrade import upgraded

if TYPE_CHECKING:
    import pandas

SCHEMA = 2
ARMS = (
    "pretrained",
    "clean",
    "reseeded",
    "noise",
    "noise_rms",
    "protected",
    "purified",
    "clean_attacked",
    "upper_bound",
)
CELL = ("data", "subject", "budget", "protect", "attack", "task", "surrogate", "victim", "purifier", "seed")
EXTRA = ("owner_prompt", "protected_fraction")  # further names a cell may have
DIRECTIONS = ("up", "down")
STATUS = ("ok", "failed")
_TOP: dict[str, type | tuple[type, ...]] = {
    "schema": int, "status": str, "cell": dict, "label": str, "facts": dict, "knowledge": dict, "arms": dict, "perturbation": dict,
    "counts": dict, "stages": list, "config": dict, "provenance": dict, "flags": list, "error": (str, type(None)),
}  # fmt: skip


class Score(TypedDict):
    """One metric of one arm.

    ``n``: generated pictures that went into it. ``better_protected``: "up" | "down".
    """

    value: float
    n: int
    better_protected: str
    primary: bool


class Arm(TypedDict):
    """What one arm scored.

    A metric is in ``metrics`` or, with the reason, in ``absent``; never a stand-in number. ``curve`` maps multiples of
    the training steps ("0.5", "1", "2") to metric to value and is empty if not asked for; ``curve_validation`` is the
    same on validation references, on which the thief's best multiple is chosen.
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
    owner_prompt: NotRequired[str]
    protected_fraction: NotRequired[float]
    seed: int


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
    """The bound: ``kind`` (linf | rms) and ``eps`` of 255."""

    kind: str
    eps: float


class Facts(TypedDict):
    """What readers must know of a cell and would otherwise have to read out of names.

    ``preset``: "matched" in steps and work, or "released" as the authors published it. ``edits``: the task edits
    pictures, so scores are distances to the clean arm's edits. ``embedded``: the victim is a model of the embedded world.
    """

    budget: Budget | None
    preset: str
    edits: bool
    embedded: bool
    protected_fraction: float


class Record(TypedDict):
    """Everything about one cell.

    ``perturbation``: arm -> what its training pictures measure against clean (levels, dB, ...).
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


def write(path: Path, record: Record) -> None:
    """Check ``record`` and write it whole (beside, then renamed), keys always in the same order.

    Raises ValueError for what the schema does not allow, NaN and infinity included: a metric without a value is
    absent.
    """
    check(record, path.name)
    _check_plain(record, path.name, ())
    ordered: dict[str, Any] = {k: _sorted(record[k]) for k in _TOP}  # type: ignore[literal-required]
    ordered["arms"] = {arm: _sorted(record["arms"][arm]) for arm in ARMS if arm in record["arms"]}
    ordered |= {k: _sorted(v) for k, v in sorted(record.items()) if k not in _TOP}
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


def read_files(folder: Path) -> dict[Path, Record]:
    """Path -> record for every ``*.json`` under ``folder`` that is one (it has "schema" or "cell").

    Others are left alone.

    Raises ValueError naming the folder if it is missing or holds no record, and naming the file if it is broken.
    """
    if not folder.is_dir():
        raise ValueError(f"records: {folder} is not a folder; give one that holds record JSONs")
    found: dict[Path, Record] = {}
    for path in sorted(folder.rglob("*.json")):
        loaded = _load(path)
        if isinstance(loaded, dict) and ("schema" in loaded or "cell" in loaded):
            found[path] = check(loaded, str(path))
    if not found:
        raise ValueError(f"records: no record JSON under {folder}; a finished cell writes one")
    return found


def check(record: Mapping[str, Any], where: str) -> Record:
    """``record`` itself if it follows the schema, else ValueError naming ``where`` and what is wrong first."""
    if record.get("schema") != SCHEMA:
        raise ValueError(f"{where}: record schema {record.get('schema')!r} cannot be read; allowed are 1 and {SCHEMA}")
    for key, kind in _TOP.items():
        if key not in record or not isinstance(record[key], kind) or isinstance(record[key], bool):
            raise ValueError(f"{where}: record needs {key!r}, given {type(record.get(key)).__name__}")
    missing = [k for k in CELL if k not in record["cell"]]
    if missing:
        raise ValueError(f"{where}: cell lacks {', '.join(missing)}; needed are {', '.join(CELL)}")
    if record["status"] not in STATUS:
        raise ValueError(f"{where}: unknown status {record['status']!r}; allowed are {', '.join(STATUS)}")
    if (record["error"] is None) != (record["status"] == "ok"):
        raise ValueError(f"{where}: status {record['status']!r} does not go with error {record['error']!r}")
    for name, arm in record["arms"].items():
        _check_arm(name, arm, where)
    return cast(Record, record)


def _check_arm(name: str, arm: Mapping[str, Any], where: str) -> None:
    if name not in ARMS:
        raise ValueError(f"{where}: unknown arm {name!r}; allowed are {', '.join(ARMS)}")
    lacking = [k for k in ("metrics", "absent", "key", "curve", "images") if k not in arm]
    if lacking:
        raise ValueError(f"{where}: arm {name} lacks {', '.join(lacking)}")
    both = sorted(arm["metrics"].keys() & arm["absent"].keys())
    if both:
        raise ValueError(f"{where}: arm {name} has {both[0]} both measured and absent")
    for metric, score in arm["metrics"].items():
        _check_score(f"{where}: {name} {metric}", score)


def _check_score(where: str, score: Mapping[str, Any]) -> None:
    value, n = score.get("value"), score.get("n")
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(
            f"{where}: value {value!r} is no finite number; a missing metric belongs in 'absent' with its reason"
        )
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"{where}: n must be a count of pictures >= 1, given {n!r}")
    if score.get("better_protected") not in DIRECTIONS or not isinstance(score.get("primary"), bool):
        raise ValueError(
            f"{where}: needs better_protected ({' or '.join(DIRECTIONS)}) and primary (true or false), given {score}"
        )


def _check_plain(value: object, where: str, at: tuple[str, ...]) -> None:
    """Refuse what JSON cannot say or would say differently when read again."""
    if isinstance(value, Mapping):
        for k, v in value.items():
            if not isinstance(k, str):
                raise ValueError(f"{where}: key {k!r} of {'.'.join(at)} is not text; JSON keys are")
            _check_plain(v, where, (*at, k))
    elif isinstance(value, (list, tuple)):
        for i, v in enumerate(value):
            _check_plain(v, where, (*at, str(i)))
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {'.'.join(at)} is {value}; leave it out and say why")
    elif not isinstance(value, (str, int, float, type(None))):
        raise ValueError(
            f"{where}: {'.'.join(at)} is a {type(value).__name__}; allowed are text, numbers, true, false, null"
        )


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


class MetricInfo(TypedDict):
    """What the records say of a metric."""

    better_protected: str
    primary: bool


def of_edits(*records: Record) -> bool:
    """Whether the task edited pictures: then nothing was trained, and the clean arm is compared with itself."""
    return any(record["facts"]["edits"] for record in records)


def metrics_of(records: Iterable[Record]) -> dict[str, MetricInfo]:
    """Every measured metric, primary ones first, then by name.

    ValueError if two records disagree on what the owner wants.
    """
    found: dict[str, MetricInfo] = {}
    for record in records:
        for arm in record["arms"].values():
            for name, score in arm["metrics"].items():
                known = found.setdefault(name, {"better_protected": score["better_protected"], "primary": False})
                if known["better_protected"] != score["better_protected"]:
                    raise ValueError(f"metric {name}: better_protected is higher in one record and lower in another")
                known["primary"] |= score["primary"]
    return dict(sorted(found.items(), key=lambda item: (not item[1]["primary"], item[0])))


def long_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """One row per cell x arm x metric; an absent metric has value None and its ``reason``."""
    rows: list[dict[str, Any]] = []
    for record in records:
        names = {k: v for k, v in record["cell"].items() if k in (*CELL, *EXTRA)}
        head = {"label": record["label"], "status": record["status"], **names}
        for arm in (a for a in ARMS if a in record["arms"]):
            part = record["arms"][arm]
            for name in sorted(part["metrics"]):
                rows.append({**head, "arm": arm, "metric": name, **_flat(part["metrics"][name]), "reason": None})
            for name, reason in sorted(part["absent"].items()):
                empty = {"value": None, "n": None, "better_protected": None, "primary": None}
                rows.append({**head, "arm": arm, "metric": name, **empty, "reason": reason})
    return rows


def _flat(score: Score) -> dict[str, Any]:
    return {
        "value": score["value"],
        "n": score["n"],
        "better_protected": score["better_protected"],
        "primary": score["primary"],
    }


LONG = ("label", "status", *CELL, *EXTRA, "arm", "metric", "value", "n", "better_protected", "primary", "reason")


def to_table(records: Sequence[Record]) -> pandas.DataFrame:
    """The long table of ``long_rows`` as a DataFrame with the columns ``LONG``."""
    import pandas

    return pandas.DataFrame(long_rows(records), columns=list(LONG))
