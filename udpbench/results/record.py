"""One JSON file per cell: writing it whole, reading a folder of them, and the long table of their scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from udpbench.benchmark.arms import ARMS
from udpbench.core.atomic import atomic_text
from udpbench.core.text import json_text
from udpbench.results.schema import LONG, Record, Score, check
from udpbench.results.upgrade import upgraded

Item = TypeVar("Item")


class MetricInfo(TypedDict):
    """What the records say of a metric."""

    better_protected: str
    primary: bool


class UnreadableError(ValueError):
    """A file that is there and cannot be read now: what it holds is not known."""


def write(path: Path, record: Record) -> None:
    """Check ``record`` and write it whole (beside, then renamed), keys always in the same order.

    Raises ValueError for what the schema does not allow, NaN and infinity included: a metric without a value is
    absent.
    """
    check(record, path.name)
    given: Mapping[str, Any] = record
    ordered = {name: _sorted(given[name]) for name in (*Record.__annotations__, *sorted(given)) if name in given}
    ordered["arms"] = {arm: ordered["arms"][arm] for arm in ARMS if arm in record["arms"]}
    atomic_text(path, f"{json_text(ordered, indent=1, allow_nan=False)}\n")


def read(path: Path) -> Record:
    """The record in a file; ValueError naming the file if it is broken or missing, UnreadableError if the system cannot
    read it."""
    return check(_load(path), str(path))


def read_records(folder: Path) -> list[Record]:
    """Every record under ``folder``, sorted by path.

    Raises ValueError as ``read_files`` does.
    """
    return list(read_files(folder).values())


def read_files(*folders: Path, refused: list[str] | None = None) -> dict[Path, Record]:
    """Path -> record for every ``*.json`` under ``folders`` that is one (it has "schema" or "cell").

    Others are left alone. ``refused``: takes a line for every file that is broken, and those are left out.

    Raises ValueError naming the folder if it is missing or holds no record, and, without ``refused``, naming the file
    if it is broken.
    """
    lines: list[str] = []
    found: dict[Path, Record] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"records: {folder} is not a folder; give one that holds record JSONs")
        there = 0  # records, broken ones too; those of a folder that was read before count again
        for path in sorted(folder.rglob("*.json")):
            try:
                loaded = _load(path)
                if isinstance(loaded, dict) and ("schema" in loaded or "cell" in loaded):
                    there += 1
                    found[path] = check(loaded, str(path))
            except ValueError as error:
                there += 1
                lines.append(str(error))
                if refused is None:
                    raise
        if not there:
            raise ValueError(f"records: no record JSON under {folder}; a finished cell writes one")
    if refused is not None:
        refused += lines
    return found


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
    except OSError as error:
        kind = ValueError if isinstance(error, FileNotFoundError) else UnreadableError
        raise kind(f"{path}: cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise ValueError(f"{path}: cannot be read as JSON (it is nested too deeply)") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path}: cannot be read as JSON ({str(error).splitlines()[0]})") from error


def grouped(items: Iterable[Item], key: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    """Key -> the items that have it, in the order in which they come."""
    found: dict[Any, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def score_of(record: Record, arm: str, metric: str) -> Score | None:
    """The score of ``metric`` in ``arm``, None if there is none."""
    part = record["arms"].get(arm)
    return None if part is None else part["metrics"].get(metric)


def of_edits(*records: Record) -> bool:
    """Whether the task edited pictures: then nothing was trained, and the clean arm is compared with itself."""
    return any(record["facts"]["edits"] for record in records)


def versions(record: Record) -> dict[str, int]:
    """Part or metric -> the version of its class, as far as the record says so."""
    parts = record["provenance"].get("parts")
    of = parts.items() if isinstance(parts, Mapping) else ()
    found = {name: part.get("version") for name, part in of if isinstance(part, Mapping)}
    return {name: version for name, version in found.items() if isinstance(version, int)}


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


def flipped(files: Mapping[Path, Record]) -> dict[Path, str]:
    """Path -> what is wrong, of the records that say of a metric that better protection moves it the other way than
    most records do.

    Raises ValueError naming two files if as many say the one as the other.
    """
    found: dict[Path, str] = {}
    ways: dict[str, dict[str, list[Path]]] = {}  # metric -> direction -> files
    for path, record in files.items():
        for metric, about in metrics_of([record]).items():
            ways.setdefault(metric, {}).setdefault(about["better_protected"], []).append(path)
    for metric, said in ways.items():
        few, *more = sorted(said, key=lambda way: len(said[way]))
        if not more:
            continue
        told = f"metric {metric}: better_protected is {few}, in {len(said[more[0]])} other records {more[0]}"
        if len(said[few]) == len(said[more[0]]):
            first, second = said[few][0], said[more[0]][0]
            told = f"better_protected is {few} in {first} and {more[0]} in {second}"
            raise ValueError(f"metric {metric}: {told}; take one of them away")
        found = dict.fromkeys(said[few], told) | found
    return found


def long_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """One row per cell, arm and metric, with the columns ``LONG``: ``pandas.DataFrame(long_rows(records))``.

    An absent metric has the value None and its ``reason``.
    """
    rows: list[dict[str, Any]] = []
    for record in records:
        facts = record["facts"]
        budget: Mapping[str, Any] = facts["budget"] or {}
        names = {**record["cell"], "label": record["label"], "status": record["status"]}
        names |= {name: budget.get(name) for name in ("eps", "distance", "network")}
        names |= {"budget_kind": budget.get("kind"), "preset": facts["preset"]}
        names["protected_fraction"] = facts["protected_fraction"]
        for arm in (arm for arm in ARMS if arm in record["arms"]):
            part = record["arms"][arm]
            found: list[tuple[str, Any]] = sorted(part["metrics"].items())
            found += [(name, {"reason": reason}) for name, reason in sorted(part["absent"].items())]
            for name, score in found:
                known = {**names, "arm": arm, "metric": name, **score}
                rows.append({column: known.get(column) for column in LONG})
    return rows
