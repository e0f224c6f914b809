"""``python -m udpbench plan [-m] GROUP=OPTION KEY=VALUE ...``: what the same words without ``plan`` would compute.

Nothing is computed and nothing written (but what ``data.download=true`` asks for: keys need the files). Lists the cells
and their stages, what of them is finished, and how much time and disk the rest will take, by what finished stages took.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from udpbench.commands.common import Parser, cell_text, show, write_json
from udpbench.commands.preparing import configuration, prepare
from udpbench.commands.searchpath import with_folders
from udpbench.commands.telling import lines_of, one_line_errors, say

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from udpbench.benchmark.estimate import History
    from udpbench.results.tally import Planned


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit status as the command itself would have: 0 fine, 2 wrong configuration, 1 if that is so of some cells of a
    grid; 130 interrupted."""
    about = "Cells, stages, time and disk that python -m udpbench with the same words would take."
    parser = Parser("plan", about, "python -m udpbench --help lists the options.")
    parser.add_argument("-m", "--multirun", action="store_true", help="a grid")
    about = "list the stages that several cells of a grid need, and cells that make them, to run first"
    parser.add_argument("--shared", action="store_true", help=about)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    parser.takes_overrides("as for python -m udpbench")
    args = parser.parse_intermixed_args(arguments)
    with one_line_errors():
        cells = plan_cells(args.overrides, args.multirun)
        if args.multirun or not cells[0].errors:
            _show(cells, args.json, args.shared)
    if args.multirun:
        sys.exit(1 if any(cell.errors for cell in cells) else 0)
    for error in cells[0].errors:
        say(f"error: {error}")
    sys.exit(2 if cells[0].errors else 0)


def plan_cells(overrides: Sequence[str], multirun: bool) -> list[Planned]:
    """The cells that a command line names; a grid's in the order in which it would run them.

    Raises HydraException for a command line that names none, ValueError as ``searched``.
    """
    from hydra.types import RunMode

    from udpbench.commands.composing import read_files_once
    from udpbench.tracking.console import Console

    words = with_folders(overrides)
    with configuration() as loader:
        if not multirun:
            return [_plan_cell(loader.load_configuration("config", words, RunMode.RUN), "", {})]
        read_files_once()
        master = loader.load_configuration("config", words, RunMode.MULTIRUN)
        jobs = grid(master)
        log, configs = Console(), []
        with log.bar("compose", len(jobs), "cell") as advance:
            for job in jobs:  # as in a run, all before the first is built
                configs.append(loader.load_sweep_config(master, job))
                advance(1)
        varied = [i for i, words in enumerate(zip(*jobs, strict=True)) if len(set(words)) > 1]
        histories: dict[Path, History] = {}
        found = []
        with log.bar("plan", len(jobs), "cell") as advance:
            for job, cfg in zip(jobs, configs, strict=True):
                found.append(_plan_cell(cfg, " ".join(job[i] for i in varied) or " ".join(job), histories))
                advance(1)
    return found


def grid(master: DictConfig) -> list[list[str]]:
    """The overrides of every job of a sweep, as Hydra's own sweeper makes them.

    Raises HydraException for any other sweeper and for words that are no overrides.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    sweeper = master.hydra.sweeper
    if not sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
        raise HydraException("plan: only hydra/sweeper=basic knows its cells before they have run")
    given = [f"{k}={v}" for k, v in (sweeper.params or {}).items()] + list(master.hydra.overrides.task)
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    return BasicSweeper.split_arguments(parser.parse_overrides(given), None)[0]


def _plan_cell(cfg: DictConfig, name: str, histories: dict[Path, History]) -> Planned:
    """``name`` is how a grid calls the cell; ``histories`` are the stores read so far, by their folders."""
    from hydra.core.hydra_config import HydraConfig

    from udpbench.benchmark.estimate import History
    from udpbench.benchmark.measuring import device_name
    from udpbench.benchmark.remarks import remarks
    from udpbench.benchmark.stage import with_ancestors
    from udpbench.results.tally import Planned

    HydraConfig.instance().set_config(cfg)  # for ${hydra:...} in somebody's configuration
    try:
        ready = prepare(cfg)
        ready.tracker.check()
    except (ValueError, OSError) as error:
        return Planned(name, errors=tuple(lines_of(error)))
    graph, store = ready.graph, ready.store
    history = histories.setdefault(store.root, History(store.root, device_name(store.device)))
    stages = {store.path(stage): stage for stage in with_ancestors(ready.wanted)}
    todo = {store.path(stage): history.estimate(stage) for stage in store.missing(ready.wanted)}
    family, notes = graph.cell.family, tuple(remarks(graph.cell, store.device))
    return Planned(name or cell_text(graph.cell), history.device, stages, todo, family=family, notes=notes)


def _show(cells: Sequence[Planned], path: Path | None, only_shared: bool) -> None:
    from udpbench.results import tally

    plan, found = tally.count(cells), tally.shared(cells) if only_shared else None
    if path:
        write_json(path, tally.as_json(plan) | (tally.shared_json(found) if found else {}))
    if found:
        show(*([tally.shared_table(found)] if found.todo else []), *tally.shared_summary(found, len(cells)))
        show(*tally.invalid(cells))
        return
    show(tally.table(plan), *tally.summary(plan))
