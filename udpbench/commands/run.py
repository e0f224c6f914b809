"""``python -m udpbench GROUP=OPTION KEY=VALUE ...``: one cell and its arms; with ``-m``, a grid of cells.

Exit status: 0 fine, 1 a cell failed, 2 the configuration was wrong, 130 interrupted, 128 + the signal if asked to
end by SIGTERM (143), SIGUSR1 or SIGUSR2, 141 if nobody reads the output. A
sweep goes on when a cell fails and ends with status 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from udpbench.commands.common import (
    RESUME,
    PreparedCell,
    cell_text,
    lines_of,
    one_line_errors,
    prepare,
    replace_unencodable,
    say,
    show,
    slug,
)
from udpbench.commands.disk import disk_error
from udpbench.commands.machine import memory_error
from udpbench.commands.searchpath import CONF, check_names, with_folders
from udpbench.core.errors import Busy, class_and_line

if TYPE_CHECKING:
    from udpbench.results.schema import Record

FAILED = "failed-{}.json"  # written into a job's folder, with the sweep's id: its words, and the reason in a line
TAGS = ("protect", "attack", "task", "data", "subject", "budget", "victim")  # names that runs are found by
# The extra of pyproject.toml and the package in it that a launcher needs.
SUBMITIT = "slurm", "hydra-submitit-launcher"
LAUNCHERS = {
    "ray": ("ray", "ray"),
    "submitit_local": SUBMITIT,
    "submitit_slurm": SUBMITIT,
}
_verified: dict[tuple[str, Path], set[str]] = {}  # by sweep and store, keys of stages


# -- one cell ----------------------------------------------------------------------------------------------------------


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
    config = _as_recorded(ready, cfg)
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
            console.say(f"everything but the scores is done; {todo_next}")
            tracker.finish("ok")
            return None
        computed = frozenset(store.computed)  # by all processes
        new, path = record_of(graph, store, config, computed), _record_path(ready, cfg)
        record.write(path, new)
        store.remember_records(path.parent)
        written = True  # what fails from here on is the showing
        _failed_path(path).unlink(missing_ok=True)  # of an attempt before this one
        _show(ready, new, path, folder, show_table, mirrored=todo > 0 or bool(computed))
    except Busy:
        tracker.finish("ok")
        raise
    except BaseException as error:
        if isinstance(error, Exception):
            _tell_failure(error, ready, config, _record_path(ready, cfg), written)
        with suppress(Exception):  # what keeps it from writing (a full disk, a lost GPU) is known by then
            tracker.finish("failed")
        raise
    return new


def _as_recorded(ready: PreparedCell, cfg: DictConfig) -> dict[str, Any]:
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


def _record_path(ready: PreparedCell, cfg: DictConfig) -> Path:
    """Where the record of the cell is, or will be.

    Cells that are made of the same stages but differ in what their records say (a surrogate that noise does not
    use, the primary scores) have a file each.
    """
    from udpbench.benchmark.store import hash_of
    from udpbench.results.record import read

    path, names = Path(cfg.runtime.records) / f"{slug(ready.cell)}-{ready.graph.key}.json", ready.cell.names
    primary = list(ready.cell.primary)
    with suppress(OSError, ValueError, KeyError):  # there is none, or it is not of a cell like this
        there = read(path)
        if there["config"]["metrics"]["primary"] != primary or names.items() - there["cell"].items():
            return path.with_name(f"{path.stem}-{hash_of([names, primary])[:8]}.json")
    return path


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


def _tell_failure(error: Exception, ready: PreparedCell, config: dict[str, Any], path: Path, written: bool) -> None:
    """One line for a person, and a failed record unless the cell's own is whole or cannot be written."""
    from udpbench.results import record
    from udpbench.results.gather import failed_record

    disk = disk_error(error, config["runtime"])
    ready.store.log.say(f"error: {disk or _reason(error)}")
    if written:
        ready.store.log.say(f"the record is complete; only showing it failed: {path}")
    elif not disk:  # it would refuse the record, too
        beside = _failed_path(path) if path.exists() and not _may_overwrite(path) else path
        try:
            record.write(beside, failed_record(ready.graph, ready.store, config, error))
            ready.store.log.say(f"the traceback is in {beside}")
        except OSError as further:
            ready.store.log.say(f"error: {disk_error(further, config['runtime']) or _reason(further)}")


def _may_overwrite(path: Path) -> bool:
    """Whether a record may be overwritten by a failure: what once was finished is kept."""
    from udpbench.results.record import read

    with suppress(ValueError):  # a broken one holds nothing
        return read(path)["status"] == "failed"
    return True


def _reason(error: Exception) -> str:
    """One line for a person."""
    return memory_error(error) or class_and_line(error)


# -- under Hydra -------------------------------------------------------------------------------------------------------


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """The cell that Hydra has composed."""
    attempt(cfg)


def attempt(cfg: DictConfig, patient: bool = True, before: Sequence[str] = (), beside: int = 1) -> list[str] | None:
    """Build the cell and run it; in a sweep, a failure is noted and the other cells go on.

    Not ``patient``: if other processes are at all that could be done, it is left for now, and the keys of the stages
    done so far are returned, ``before`` among them: those of earlier attempts. ``beside``: how many cells this machine
    runs at a time.
    """
    from udpbench.commands.machine import claim_gpu, gpus
    from udpbench.commands.signals import heeded
    from udpbench.tracking.console import Console

    replace_unencodable()  # here, too: a launcher may run it in another process
    group, called, worker = _names()
    if worker and cfg.runtime.device in ("auto", "cuda"):
        claim_gpu(gpus())
    console = Console(worker=worker)
    try:
        ready = replace(prepare(cfg, console, HydraConfig.get().runtime.choices), beside=beside)
        if _in_sweep():  # what its cells share is verified once
            ready.store.trust(_verified.setdefault((group, ready.store.root.absolute()), set()))
        ready.tracker.check()
    except (ValueError, OSError) as error:
        lines = lines_of(error) or [type(error).__name__]
        for line in lines:
            console.say(f"error: {line}")
        _fail(2, lines[0])
        return None
    ready.store.patient = patient
    ready.store.computed.extend(before)
    left: list[str] | None = None
    try:
        with heeded(ready.store) as heard:
            if not patient and ready.store.held_by_others(ready.wanted):  # known before further processes are started
                raise Busy
            alone = worker and cfg.runtime.workers == "auto"
            execute(ready, cfg, group, called, choices=None if alone else HydraConfig.get().runtime.choices)
    except Busy:
        later = "it is tried again after the other cells"
        console.say(f"{called}: other processes are computing its remaining stages; {later}")
        left = ready.store.computed
    except KeyboardInterrupt:
        console.say(RESUME)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - the one place where anything may be caught: a sweep goes on
        _fail(2 if isinstance(error, ValueError) else 1, disk_error(error, cfg.runtime) or _reason(error))
    if heard and _in_sweep() and not worker:  # no further cell is begun, though this one could not be interrupted
        console.say(f"{heard[0].name}: {RESUME}")
        sys.exit(128 + heard[0])
    return left


def _names() -> tuple[str, str, str]:
    """The sweep of a run (a single run is its own), how the run calls itself, and its name if several run at once."""
    config = HydraConfig.get()
    if not _in_sweep():
        return str(config.run.dir), "udpbench", ""
    number = str(config.job.num)  # which its folder has, too
    alone = config.launcher._target_.endswith(".BasicLauncher")
    return str(config.sweep.dir), f"cell {number}", "" if alone else number


def _in_sweep() -> bool:
    mode = HydraConfig.get().mode
    return mode is not None and mode.name == "MULTIRUN"


def _fail(status: int, reason: str) -> None:
    """End a single run with ``status``; in a sweep, note the reason in the cell's folder and let the others go on."""
    if not _in_sweep():
        sys.exit(status)
    config = HydraConfig.get()
    folder = Path(config.sweep.dir) / config.sweep.subdir
    folder.mkdir(parents=True, exist_ok=True)
    noted = {"words": list(config.overrides.task), "reason": reason}
    (folder / FAILED.format(config.callbacks["sweep"].id)).write_text(json.dumps(noted), encoding="utf-8")


def give_up(config: DictConfig, reason: str) -> None:
    """A cell of a sweep that no process is left for is a failed one: ``config`` is its own, with Hydra's node."""
    from udpbench.tracking.console import Console

    HydraConfig.instance().set_config(config)
    cfg = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    ready = prepare(cfg, Console(worker=str(config.hydra.job.num)), config.hydra.runtime.choices)
    _tell_failure(ChildProcessError(reason), ready, _as_recorded(ready, cfg), _record_path(ready, cfg), False)
    _fail(1, reason)


class Sweep(Callback):
    """Begins a sweep with its size, for Hydra composes every cell before the first one starts; ends it with status 1 if
    a cell failed, whatever launcher and process it ran in.

    Failed cells leave ``FAILED`` behind, with the sweep's ``id`` in its name: others in the same folder are not its.
    """

    def __init__(self, id: str) -> None:
        self.marker = FAILED.format(id)
        self.cells: list[list[str]] = []  # the words of each; none if they are not known before they run

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Say how many cells there are, and have their files read once."""
        from udpbench.commands.composing import read_files_once
        from udpbench.commands.plan import grid

        launcher = str(config.hydra.runtime.choices["hydra/launcher"])
        extra, package = LAUNCHERS.get(launcher, ("", "hydra-core"))
        try:
            version(package)
        except PackageNotFoundError:
            say(f"error: hydra/launcher={launcher} needs {package}: pip install 'udpbench[{extra}]'")
            sys.exit(2)
        read_files_once()
        with suppress(HydraException):  # another sweeper does not know; a wrong word Hydra tells itself
            self.cells = grid(config)
            say(f"sweep: {len(self.cells)} cell{'s' if len(self.cells) != 1 else ''}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Say which cells failed, by the words in which they differ from others, and why.

        SystemExit passes through Hydra, which would turn any other exception into a warning.
        """
        found = sorted(Path(config.hydra.sweep.dir).rglob(self.marker), key=lambda p: (len(p.parent.name), p))
        common = set[str]().union(*self.cells[:1]).intersection(*self.cells) if self.cells[1:] else set[str]()
        for i, file in enumerate(found):
            noted = json.loads(file.read_text(encoding="utf-8"))
            if i == 0:
                say(f"{len(found)} of {len(self.cells) or 'the'} cells failed:")
            say(f"  {' '.join(word for word in noted['words'] if word not in common)}: {noted['reason']}")
        if found:
            sys.exit(1)


def run() -> None:
    """The command: ``main``, with every error in the command line told in one line."""
    with one_line_errors(RESUME):
        sys.argv[1:] = with_folders(options_last(sys.argv[1:]))
        _check_options(sys.argv[1:])
        main()


def options_last(words: Sequence[str]) -> list[str]:
    """The words with Hydra's options and their values behind the others: it takes them in one piece only."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    takes = {name: action.nargs for action in parser._actions for name in action.option_strings}  # 0: no value
    options: list[str] = []
    others: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        (options if word.startswith("-") else others).append(word)
        if takes.get(word, 0) != 0 and left and not (takes[word] == "?" and "=" in left[0]):
            options.append(left.pop(0))
    return [*others, *options]


def _check_options(words: Sequence[str]) -> None:
    """ValueError for an option that is none of Hydra's, which would tell so with all that there are, and for names in
    ``--config-dir`` that the package has."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{message}; settings are written GROUP=OPTION, such as protect=eudp")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    given, further = parser.parse_known_args([word for word in words if word != "--version"])
    if unknown := [word for word in further if word.startswith("-")]:
        refuse(f"unknown option {unknown[0]}")
    check_names([Path(given.config_dir)] if given.config_dir else [])
