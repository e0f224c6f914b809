"""One cell: its stages, then its record, contact sheet and table; a failure is told and recorded."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from udpbench.commands.common import cell_text, show, slug
from udpbench.commands.disk import disk_error
from udpbench.commands.machine import memory_error
from udpbench.commands.preparing import PreparedCell
from udpbench.core.errors import Busy, class_and_line

if TYPE_CHECKING:
    from udpbench.results.schema import Record


TAGS = ("protect", "attack", "task", "data", "subject", "budget", "victim")  # names that runs are found by


def execute(
    ready: PreparedCell,
    cfg: DictConfig,
    group: str = "",
    prefix: str = "udpbench",
    show_table: bool = True,
    choices: Mapping[str, Any] | None = None,
) -> Record | None:
    """Run a prepared cell: stages, record, contact sheet, tracker and, with ``show_table``, a table; returns the
    record, None if scores are left to another time.

    ``group``: the sweep it belongs to; ``prefix``: how its messages begin; ``choices``: the options chosen by group,
    from which further processes build the same cell (None: this process works alone). If it fails, a failed record is
    written (beside the finished one, if there is one), one line says why, and the error is raised again. Raises Busy as
    ``Store.do``.
    """
    from udpbench.results import record
    from udpbench.results.gather import record_of
    from udpbench.tracking.track import Tracked

    graph, store, tracker = ready.graph, ready.store, ready.tracker
    config = as_recorded(ready, cfg)
    folder = Path(cfg.runtime.out) / "cells" / graph.key
    console = store.log
    store.log = Tracked(console, tracker)
    todo = len(store.missing(ready.wanted))
    written = False
    names = graph.cell.names
    tracker.start(graph.key, group, config, folder, [str(names[part]) for part in TAGS])
    try:
        _finish_stages(ready, cfg, choices, prefix, todo)
        if not ready.scores:
            todo_next = "run the same command with runtime.stages=scores to compute them and write the record"
            store.keep(graph.key, [stage.key for stage in graph.stages])
            console.say(f"everything but the scores is done; {todo_next}")
            tracker.finish("ok")
            return None
        computed = frozenset(store.computed)  # by all processes
        new, path = record_of(graph, store, config, computed), record_path(ready, cfg)
        record.write(path, new)
        store.remember_records(path.parent)
        store.keep(graph.key, [])  # the record names them
        written = True  # what fails from here on is the showing
        _failed_path(path).unlink(missing_ok=True)  # of an attempt before this one
        _show(ready, new, path, folder, show_table, mirrored=todo > 0 or bool(computed))
    except Busy:
        tracker.finish("ok")
        raise
    except BaseException as error:
        if isinstance(error, Exception):
            tell_failure(error, ready, config, record_path(ready, cfg), written)
        with suppress(Exception):  # what keeps it from writing (a full disk, a lost GPU) is known by then
            tracker.finish("failed")
        raise
    return new


def as_recorded(ready: PreparedCell, cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration, with the arms that null stands for."""
    found: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return {k: v for k, v in found.items() if k != "hydra"} | {"arms": list(ready.cell.arms)}


def _finish_stages(
    ready: PreparedCell, cfg: DictConfig, choices: Mapping[str, Any] | None, prefix: str, todo: int
) -> None:
    """Compute the ``todo`` missing stages, with as many processes as ``runtime.workers`` asks for."""
    from udpbench.benchmark.remarks import of_run
    from udpbench.benchmark.run import run
    from udpbench.commands.workers import shared

    cell, log = ready.cell, ready.store.log
    with shared(ready, cfg, choices) as n:
        by = f" by {n} processes" if n > 1 else ""
        log.say(f"{prefix}: {cell_text(cell)} on {ready.store.device}; {todo} stages to do{by}")
        for line in of_run(cell, ready.store.device) if todo else ():
            log.say(line)
        run(ready.graph, ready.store, n > 1, ready.scores)


def record_path(ready: PreparedCell, cfg: DictConfig) -> Path:
    """Where the record of the cell is, or will be.

    Cells that are made of the same stages but differ in what their records say (a surrogate that noise does not
    use, the primary scores) have a file each. A file that cannot be read now is taken for another cell's.
    """
    from udpbench.benchmark.stage import hash_of
    from udpbench.results.record import UnreadableError, read

    path, names = Path(cfg.runtime.records) / f"{slug(ready.cell)}-{ready.graph.key}.json", ready.cell.names
    primary = list(ready.cell.primary)
    try:
        there = read(path)
        same = there["config"]["metrics"]["primary"] == primary and names.items() <= there["cell"].items()
    except (ValueError, KeyError) as error:  # there is none, or it is not of a cell like this
        same = not isinstance(error, UnreadableError)
    return path if same else path.with_name(f"{path.stem}-{hash_of([names, primary])[:8]}.json")


def _failed_path(path: Path) -> Path:
    """Of the record of a failure, where a whole one is at ``path``."""
    return path.with_name(f"{path.stem}-failed.json")


def _show(ready: PreparedCell, record: Record, path: Path, folder: Path, table: bool, mirrored: bool) -> None:
    """The contact sheet, the table and, if anything was computed, the tracker's mirror of both."""
    from udpbench.results.gather import draw_sheet
    from udpbench.results.table import cell_table
    from udpbench.tracking.dashboard import mirror

    folder.mkdir(parents=True, exist_ok=True)
    draw_sheet(ready.graph, ready.store, folder / "sheet.png")
    if table:
        show(cell_table(record))
    ready.store.log.say(f"record: {path}")
    ready.store.log.say(f"pictures: {folder / 'sheet.png'}")
    if mirrored:
        mirror(record, folder / "sheet.png", ready.tracker)
        ready.tracker.finish("ok")


def tell_failure(error: Exception, ready: PreparedCell, config: dict[str, Any], path: Path, written: bool) -> None:
    """One line for a person, and a failed record unless the cell's own is whole or cannot be written."""
    from udpbench.results import record
    from udpbench.results.gather import failed_record

    ready.store.log.say(f"error: {reason_of(error, config['runtime'])}")
    if written:
        ready.store.log.say(f"the record is complete; only showing it failed: {path}")
    elif not disk_error(error, config["runtime"]):  # which would refuse the record, too
        beside = _failed_path(path) if path.exists() and not _may_overwrite(path) else path
        try:
            record.write(beside, failed_record(ready.graph, ready.store, config, error))
            ready.store.remember_records(beside.parent)
            ready.store.log.say(f"the traceback is in {beside}")
        except OSError as further:
            ready.store.log.say(f"error: {reason_of(further, config['runtime'])}")


def _may_overwrite(path: Path) -> bool:
    """Whether a record may be overwritten by a failure: what once was finished is kept."""
    from udpbench.results.record import UnreadableError, read

    try:
        return read(path)["status"] == "failed"
    except ValueError as error:  # a broken one holds nothing
        return not isinstance(error, UnreadableError)


def reason_of(error: Exception, runtime: Mapping[str, Any]) -> str:
    """One line for a person; ``runtime``: the settings of what was written, see ``disk_error``."""
    return disk_error(error, runtime) or memory_error(error) or class_and_line(error)
