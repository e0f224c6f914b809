"""``python -m udpbench GROUP=OPTION KEY=VALUE ...``: one cell and its arms; with ``-m``, a grid of cells.

Exit status: 0 fine, 1 a cell failed, 2 the configuration was wrong, 130 interrupted, 128 + the signal if asked to
end by SIGTERM (143), SIGUSR1 or SIGUSR2, 141 if nobody reads the output. A
sweep goes on when a cell fails and ends with status 1.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
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

from udpbench.commands.executing import as_recorded, execute, reason_of, record_path, tell_failure
from udpbench.commands.preparing import PreparedCell, prepare
from udpbench.commands.searchpath import check_names, with_folders
from udpbench.commands.telling import RESUME, WRONG_WORDS, lines_of, one_line_errors, replace_unencodable, say
from udpbench.core.errors import Busy
from udpbench.core.memory import lost_gpu
from udpbench.core.package import CONF

if TYPE_CHECKING:
    from udpbench.tracking.console import Console

FAILED = "failed-{}.json"  # written into a job's folder, with the sweep's id: its words, and the reason in a line
# The extra of pyproject.toml and the package in it that a launcher needs.
SUBMITIT = "slurm", "hydra-submitit-launcher"
LAUNCHERS = {
    "ray": ("ray", "ray"),
    "submitit_local": SUBMITIT,
    "submitit_slurm": SUBMITIT,
}
_verified: dict[tuple[str, Path], set[str]] = {}  # by sweep and store, keys of stages


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """The cell that Hydra has composed."""
    attempt(cfg)


def attempt(
    cfg: DictConfig,
    patient: bool = True,
    before: Sequence[str] = (),
    beside: int = 1,
    again: bool = False,
    avoid: Sequence[str] = (),
) -> list[str] | None:
    """Build the cell and run it; in a sweep, a failure is noted and the other cells go on.

    Not ``patient``: if other processes are at all that could be done, it is left for now, and the keys of the stages
    done so far are returned, ``before`` among them: those of earlier attempts. ``beside``: how many cells this machine
    runs at a time. ``again``: the launcher begins a cell of a lost process again; ``avoid``: GPUs not to be claimed.

    A process that has lost its GPU (``lost_gpu``) ends, since every further cell would fail in it: raises LostGpu if
    the cell is begun ``again``; one that runs the cells of a sweep itself ends with status 1 and a line that says so.
    """
    from udpbench.commands.machine import claim_gpu, gpus
    from udpbench.commands.signals import heeded
    from udpbench.tracking.console import Console

    replace_unencodable()  # here, too: a launcher may run it in another process
    group, called, worker = _names()
    if worker and cfg.runtime.device in ("auto", "cuda"):
        claim_gpu(gpus(), avoid)
    console = Console(worker=worker)
    ready = _prepared(cfg, group, console, beside, again)
    if ready is None:
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
        status = 2 if isinstance(error, ValueError) else 1
        _on_failure(error, status, reason_of(error, cfg.runtime), console, again)
    if heard and _in_sweep() and not worker:  # no further cell is begun, though this one could not be interrupted
        console.say(f"{heard[0].name}: {RESUME}")
        sys.exit(128 + heard[0])
    return left


def _prepared(cfg: DictConfig, group: str, console: Console, beside: int, again: bool) -> PreparedCell | None:
    """The cell, ready to be run, with what ``attempt`` was given; None if it cannot be: that is told, and noted."""
    try:
        ready = replace(prepare(cfg, console, HydraConfig.get().runtime.choices), beside=beside)
        if _in_sweep():  # what its cells share is verified once
            ready.store.trust(_verified.setdefault((group, ready.store.root.absolute()), set()))
        ready.tracker.check()
    except Exception as error:
        if not (_in_sweep() or isinstance(error, ValueError | OSError)):
            raise
        lines = _why(error, cfg)
        for line in lines:
            console.say(f"error: {line}")
        _on_failure(error, 2, lines[0], console, again)
        return None
    return ready


def _why(error: Exception, cfg: DictConfig) -> list[str]:
    """Why a cell cannot be prepared: what is wrong with its input, or what nobody foresaw, as in somebody's method."""
    return lines_of(error) if isinstance(error, (*WRONG_WORDS, OSError)) else [reason_of(error, cfg.runtime)]


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


def _on_failure(error: Exception, status: int, reason: str, console: Console, again: bool) -> None:
    """What follows a failed cell: ``_note_or_exit``, unless the process has lost its GPU, see ``attempt``."""
    from udpbench.commands.machine import VISIBLE, LostGpu

    lost = lost_gpu(error)
    if lost and again:
        raise LostGpu(os.environ.get(VISIBLE, ""), reason) from error
    _note_or_exit(status, reason)
    if lost and not _names()[2]:
        console.say(
            "this process has lost its GPU: every further cell would fail; the same command goes on in a new one"
        )
        sys.exit(1)


def _note_or_exit(status: int, reason: str) -> None:
    """End a single run with ``status``; in a sweep, note the reason in the cell's folder and let the others go on."""
    if not _in_sweep():
        sys.exit(status)
    config = HydraConfig.get()
    folder = Path(config.sweep.dir) / config.sweep.subdir
    folder.mkdir(parents=True, exist_ok=True)
    noted = {"words": list(config.overrides.task), "reason": reason}
    (folder / FAILED.format(config.callbacks["sweep"].id)).write_text(json.dumps(noted), encoding="utf-8")


def give_up(config: DictConfig, reason: str, recorded: bool = False) -> None:
    """A cell of a sweep that no process is left for is a failed one: ``config`` is its own, with Hydra's node.
    ``recorded``: its last process has said so and written the record."""
    from udpbench.tracking.console import Console

    HydraConfig.instance().set_config(config)
    if recorded:
        _note_or_exit(1, reason)
        return
    cfg = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    console = Console(worker=str(config.hydra.job.num))
    try:
        ready = prepare(cfg, console, config.hydra.runtime.choices)
    except Exception as error:  # noqa: BLE001 - this machine may lack what the lost process had, such as a GPU
        console.say(f"no record of the lost cell: {'; '.join(_why(error, cfg))}")
    else:
        tell_failure(ChildProcessError(reason), ready, as_recorded(ready, cfg), record_path(ready, cfg), False)
    _note_or_exit(1, reason)


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
