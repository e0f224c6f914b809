"""``python -m udpbench GROUP=OPTION KEY=VALUE ...``: one cell and its arms; with ``-m``, a grid of cells.

Exit status: 0 fine, 1 a cell failed, 2 the configuration was wrong, 130 interrupted, 143 asked to end by SIGTERM. A
sweep goes on when a cell fails and ends with status 1.
"""

from __future__ import annotations

import errno
import shutil
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from udpbench.commands.common import CONF, RESUME, Ready, prepare, replace_unencodable, say, show, slug, told, words

if TYPE_CHECKING:
    from udpbench.results.schema import Record

FAILED = "failed-{}.txt"  # written into a job's folder, with the sweep's id; a sweep's exit status is read from these
TAGS = ("protect", "attack", "task", "data", "subject", "budget", "victim")  # names that runs are found by
# The extra of pyproject.toml and the package in it that a launcher needs.
SUBMITIT = "slurm", "hydra-submitit-launcher"
LAUNCHERS = {
    "joblib": ("joblib", "hydra-joblib-launcher"),
    "ray": ("ray", "ray"),
    "submitit_local": SUBMITIT,
    "submitit_slurm": SUBMITIT,
}
# Presets of launchers have the names of their plugins, of which Hydra says that another name may be asked for one day.
# Set where this file is read: a launcher's processes read it before they compose a cell.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/.*is validated", category=UserWarning)
FULL = 1_000_000  # bytes that are left on a disk where nothing can be written any more
_verified: dict[tuple[str, Path], set[str]] = {}  # by sweep and store, keys of stages


# -- one cell ----------------------------------------------------------------------------------------------------------


def execute(
    ready: Ready,
    cfg: DictConfig,
    group: str = "",
    called: str = "udpbench",
    shown: bool = True,
    choices: Mapping[str, Any] | None = None,
) -> Record:
    """Run a prepared cell: stages, record, contact sheet, tracker and, if it is ``shown``, a table; returns the record.

    ``group``: the sweep it belongs to; ``called``: how its messages begin; ``choices``: the options chosen by group,
    from which further processes build the same cell (None: this process works alone). If it fails, a failed record is
    written, or beside a finished one, and the error is raised again after one line for a person.
    """
    from udpbench.benchmark.run import run
    from udpbench.commands.workers import shared
    from udpbench.results import record
    from udpbench.results.gather import record_of
    from udpbench.tracking.track import Tracked

    graph, store, tracker = ready.graph, ready.store, ready.tracker
    config = _as_recorded(ready, cfg)
    folder = Path(cfg.runtime.out) / "cells" / graph.key
    path = Path(cfg.runtime.records) / f"{slug(graph.cell)}-{graph.key}.json"
    console = store.log
    store.log = Tracked(console, tracker)
    todo, done = len(store.missing(graph.wanted)), len(store.computed)
    written = False
    names = graph.cell.names
    tracker.start(graph.key, group, config, folder, [str(names[part]) for part in TAGS])
    try:
        with shared(ready, cfg, choices) as n:
            by = f" by {n} processes" if n > 1 else ""
            console.say(f"{called}: {words(graph.cell)} on {store.device}; {todo} stages to do{by}")
            run(graph, store, together=n > 1)
        computed = frozenset(store.computed[done:])  # by all processes
        found = record_of(graph, store, config, computed)
        record.write(path, found)
        written = True  # what fails from here on is the showing
        _show(ready, found, path, folder, shown, mirrored=todo > 0 or bool(computed))
    except BaseException as error:
        if isinstance(error, Exception):
            _tell_failure(error, ready, config, path, written)
        with suppress(Exception):  # what keeps it from writing (a full disk, a lost GPU) is known by then
            tracker.finish("failed")
        raise
    return found


def _as_recorded(ready: Ready, cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration, with the arms that null stands for."""
    found: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return {k: v for k, v in found.items() if k != "hydra"} | {"arms": list(ready.cell.arms)}


def _show(ready: Ready, found: Record, path: Path, folder: Path, table: bool, mirrored: bool) -> None:
    """The contact sheet, the table and, if anything was computed, the tracker's mirror of both."""
    from udpbench.results.gather import draw_sheet
    from udpbench.results.table import cell_table
    from udpbench.tracking.dashboard import mirror

    folder.mkdir(parents=True, exist_ok=True)
    draw_sheet(ready.graph, ready.store, folder / "sheet.png")
    if table:
        show(cell_table(found))
    ready.store.log.say(f"record: {path}")
    ready.store.log.say(f"pictures: {folder / 'sheet.png'}")
    if mirrored:
        mirror(found, folder / "sheet.png", ready.tracker)
        ready.tracker.finish("ok")


def _tell_failure(error: Exception, ready: Ready, config: dict[str, Any], path: Path, written: bool) -> None:
    """One line for a person, and a failed record unless the cell's own is whole or cannot be written."""
    from udpbench.results import record
    from udpbench.results.gather import failed_record

    places = {f"runtime.{name}": Path(config["runtime"][name]) for name in ("out", "store", "records")}
    refused = _refused(error, places)
    ready.store.log.say(f"error: {refused or _reason(error)}")
    if written:
        ready.store.log.say(f"the record is whole: {path}")
    elif not refused:  # it would refuse the record, too
        beside = path.with_name(f"{path.stem}-failed.json") if path.exists() and not _failed(path) else path
        try:
            record.write(beside, failed_record(ready.graph, ready.store, config, error))
            ready.store.log.say(f"the traceback is in {beside}")
        except OSError as further:
            ready.store.log.say(f"error: {_refused(further, places) or _reason(further)}")


def _failed(path: Path) -> bool:
    """Whether a record may be overwritten by a failure: what once was finished is kept."""
    from udpbench.results.record import read

    with suppress(ValueError):  # a broken one holds nothing
        return read(path)["status"] == "failed"
    return True


def _refused(error: Exception, places: Mapping[str, Path]) -> str | None:
    """One line for a person if a disk is full or may not be written: the place and the setting that moves it.

    torch, safetensors and others have errors of their own for a full disk, which do not say where.
    """
    full = next((name for name, path in places.items() if path.exists() and shutil.disk_usage(path).free < FULL), None)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        path = Path(error.filename) if error.filename else places[full or "runtime.out"]
        within = (name for name, place in places.items() if path.absolute().is_relative_to(place.absolute()))
        what, setting = f"cannot write {path}: {error.strerror}", next(within, full or "runtime.out")
    elif full and not isinstance(error, ValueError):
        what, setting = f"{places[full]} is full", full
    else:
        return None
    return f"{what}; free some space, or write elsewhere with {setting}=DIR"


_SMALLER = "give runtime.grad_batch=N (with gradients) or runtime.batch=N, smaller, or runtime.low_memory=true"


def _reason(error: Exception) -> str:
    """One line for a person."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's
        return f"the GPU has too little memory; {_SMALLER}"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # the latter torch's, on a CPU
        return f"the machine has too little memory; {_SMALLER}"
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


# -- under Hydra -------------------------------------------------------------------------------------------------------


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Build the cell and run it; in a sweep, a failure is noted and the other cells go on."""
    from udpbench.commands.machine import claim_gpu, gpus
    from udpbench.commands.signals import heeded
    from udpbench.tracking.console import Console

    replace_unencodable()  # here, too: a launcher may run it in another process
    group, called, worker = _names()
    if worker and cfg.runtime.device in ("auto", "cuda"):
        claim_gpu(gpus())
    console = Console(worker=worker)
    try:
        ready = prepare(cfg, console, HydraConfig.get().runtime.choices)
        if _in_sweep():  # what its cells share is verified once
            ready.store.trust(_verified.setdefault((group, ready.store.root.absolute()), set()))
        ready.tracker.check()
    except ValueError as error:
        for line in str(error).splitlines():
            console.say(f"error: {line}")
        _fail(2)
        return
    try:
        with heeded(ready.store):
            execute(ready, cfg, group, called, choices=None if worker else HydraConfig.get().runtime.choices)
    except KeyboardInterrupt:
        console.say(RESUME)
        _fail(130)
    except Exception as error:  # noqa: BLE001 - the one place where anything may be caught: a sweep goes on
        _fail(2 if isinstance(error, ValueError) else 1)


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


def _fail(status: int) -> None:
    """End a single run with ``status``; in a sweep, note it and let the other cells go on."""
    if _in_sweep() and status != 130:
        config = HydraConfig.get()
        note_failure(Path(config.runtime.output_dir), config.callbacks["sweep"].id, status)
        return
    sys.exit(status)


def note_failure(folder: Path, sweep: str, status: int) -> None:
    """Have the sweep know that the cell of this folder failed, whatever process it is in."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILED.format(sweep)).write_text(str(status), encoding="utf-8")


class Sweep(Callback):
    """Begins a sweep with its size, for Hydra composes every cell before the first one starts; ends it with status 1 if
    a cell failed, whatever launcher and process it ran in.

    Failed cells leave ``FAILED`` behind, with the sweep's ``id`` in its name: others in the same folder are not its.
    """

    def __init__(self, id: str) -> None:
        self.marker = FAILED.format(id)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Say how many cells there are, and have their files read and each of them composed once."""
        from udpbench.commands.composing import compose_once, read_files_once
        from udpbench.commands.plan import grid

        launcher = str(config.hydra.runtime.choices["hydra/launcher"])
        extra, package = LAUNCHERS.get(launcher, ("", "hydra-core"))
        try:
            version(package)
        except PackageNotFoundError:
            say(f"error: hydra/launcher={launcher} needs {package}: pip install 'udpbench[{extra}]'")
            sys.exit(2)
        read_files_once()
        if launcher == "basic":  # others compose in processes of their own
            compose_once()
        with suppress(HydraException):  # another sweeper does not know; a wrong word Hydra tells itself
            n = len(grid(config))
            say(f"sweep: {n} cell{'s' if n != 1 else ''}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Say which cells failed.

        SystemExit passes through Hydra, which would turn any other exception into a warning.
        """
        failed = sorted(Path(config.hydra.sweep.dir).rglob(self.marker))
        if failed:
            say(f"{len(failed)} of the sweep's cells failed: {', '.join(str(p.parent) for p in failed)}")
            sys.exit(1)


def run() -> None:
    """The command: ``main``, with every error in the command line told in one line."""
    with told(RESUME):
        main()
