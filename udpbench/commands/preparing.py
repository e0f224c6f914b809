"""From the words of a command line to a cell that is built and checked, before anything is done."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from udpbench.commands.machine import cores, places, share_of_gpu, usable_gpus
from udpbench.commands.searchpath import with_folders
from udpbench.core.package import CONF

if TYPE_CHECKING:
    from udpbench.benchmark.cell import Cell
    from udpbench.benchmark.graph import Graph
    from udpbench.benchmark.stage import Stage
    from udpbench.benchmark.store import Store
    from udpbench.interfaces import Log
    from udpbench.tracking.track import Tracker

# ``${unique:}`` in a configuration: eight hex digits, the same throughout a run or a sweep, on all of its workers.
OmegaConf.register_new_resolver("unique", lambda: secrets.token_hex(4), use_cache=True, replace=True)
# What launchers are given of this machine, see conf/hydra/launcher.
for name, resolver in (("gpus", lambda: len(usable_gpus())), ("places", places), ("share_of_gpu", share_of_gpu)):
    OmegaConf.register_new_resolver(name, resolver, replace=True)
# Presets of launchers have the names of their plugins, of which Hydra says that another name may be asked for one day.
# Set where this file is read: whoever composes a cell, a launcher's processes too, has read it.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/.*is validated", category=UserWarning)
MOST_WORKERS = 256  # far more processes than any cell has arms


@dataclass(frozen=True)
class PreparedCell:
    """A cell, built and checked; the store it would be run in; the tracker, which has opened nothing."""

    graph: Graph
    store: Store
    tracker: Tracker
    scores: bool = True  # False: only what is scored is made, and no record
    beside: int = 1  # cells that run on this machine at a time

    @property
    def wanted(self) -> list[Stage]:
        """What is to be finished."""
        return self.graph.wanted if self.scores else self.graph.stages_before_scores

    @property
    def cell(self) -> Cell:
        return self.graph.cell


@contextmanager
def configuration() -> Iterator[Any]:
    """Within the block Hydra composes what is in ``CONF``; yields its loader."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration that a command line of overrides composes, with Hydra's own node ``hydra``.

    Raises HydraException for words that are no overrides or name what there is not, ValueError as ``searched``.
    """
    from hydra import compose

    words = with_folders(overrides)
    with configuration():
        return compose("config", words, return_hydra_config=True)


def prepare(cfg: DictConfig, log: Log | None = None, choices: Mapping[str, Any] | None = None) -> PreparedCell:
    """What a composed configuration asks for, before anything is done.

    ``choices``: the options chosen by group, if the configuration has no node ``hydra`` that says so. Raises
    ConfigError with one line for everything that is wrong.
    """
    from udpbench.benchmark.build import build
    from udpbench.benchmark.check import checked_graph
    from udpbench.core.errors import ConfigError, Errors

    errors = Errors()
    chosen = cfg.hydra.runtime.choices if choices is None else choices
    store = errors.attempt(open_store, cfg, log)
    cell = errors.attempt(build, cfg, chosen)
    errors.attempt(check_members, cfg, chosen)
    errors.raise_any()
    assert store is not None
    assert cell is not None
    graph = checked_graph(cell, asked_for=tuple(cfg.metrics.get("extra") or {}))
    if cfg.runtime.stages == "scores" and (left := store.missing(graph.stages_before_scores)):
        count = f"{len(left)} stage{'s are' if left[1:] else ' is'} not done yet, first {left[0]}"
        raise ConfigError(f"runtime.stages=scores: {count}; the same command with runtime.stages=pictures does them")
    return PreparedCell(graph, store, _tracker(cfg), cfg.runtime.stages != "pictures")


def check_members(cfg: DictConfig, choices: Mapping[str, Any]) -> None:
    """ConfigError for members of an attack that have other settings for the cell's family and did not get them.

    A defaults list brings those of a part (see conf/config.yaml); of members, whose places it cannot name, words do.
    """
    from udpbench.core.errors import Errors

    lines = Errors()
    for place, option in choices.items():
        group, _, node = str(place).partition("@")
        settings = f"{cfg.family}/{group}/{option}"
        if "." in node and f"family@{node}" not in choices and (CONF / "family" / f"{settings}.yaml").exists():
            todo = f"+family@{node}={settings} brings them, family=micro takes the embedded model's for all"
            lines.append(f"{node}: {option} has settings of its own for family {cfg.family}; {todo}")
    lines.raise_any()


def open_store(cfg: DictConfig, log: Log | None = None) -> Store:
    """The store of finished stages that ``runtime`` names, which need not exist yet.

    From now on the process keeps what memory it frees: most commands that open a store compute.

    Raises ConfigError for settings of ``runtime`` that are wrong.
    """
    from udpbench.benchmark.build import group_of
    from udpbench.benchmark.store import Store
    from udpbench.core.component import check_choice
    from udpbench.core.device import prepare_device
    from udpbench.core.errors import ConfigError, check_whole
    from udpbench.core.images import allow_pixels
    from udpbench.core.memory import keep_freed_memory

    keep_freed_memory()
    runtime = group_of(cfg, "runtime")
    for name in ("device", "out", "store", "records"):
        if not isinstance(runtime[name], str) or not runtime[name]:
            raise ConfigError(f"runtime.{name}: must be a text, given {runtime[name]!r}")
        if runtime[name].startswith("~"):
            runtime[name] = os.path.expanduser(runtime[name])  # of no such user it stays as it is
        if name != "device" and (file := _no_folder(Path(runtime[name]))):
            raise ConfigError(f"runtime.{name}: {file} is no folder; give another")
    for name in ("batch", "grad_batch", "max_pixels"):
        check_whole(f"runtime.{name}", runtime[name], 1)
    allow_pixels(runtime.max_pixels)
    check_choice("runtime.stages: unknown", runtime.stages, ("all", "pictures", "scores"))
    if runtime.threads != "auto":  # far more than there are cores end the process
        check_whole("runtime.threads", runtime.threads, 1, cores())
    if runtime.workers != "auto":
        check_whole("runtime.workers", runtime.workers, 1, MOST_WORKERS)
    if not isinstance(low_memory := runtime.low_memory, bool):
        raise ConfigError(f"runtime.low_memory: must be true or false, given {low_memory!r}")
    device = prepare_device(runtime.device)
    return Store(Path(runtime.store), device, log, runtime.batch, runtime.grad_batch, runtime.verify, low_memory)


def _no_folder(path: Path) -> Path | None:
    """What of a path is there and no folder, so that none can be made."""
    with suppress(OSError):  # which making it meets, too
        there = next((p for p in (path, *path.parents) if p.exists()), None)
        return there if there and not there.is_dir() else None
    return None


def _tracker(cfg: DictConfig) -> Tracker:
    from hydra.utils import instantiate

    from udpbench.benchmark.build import group_of
    from udpbench.benchmark.signatures import wrong_settings
    from udpbench.core.errors import ConfigError

    node = group_of(cfg, "track")
    try:
        wrong = wrong_settings(OmegaConf.to_container(node, resolve=True))  # type: ignore[arg-type]
    except ValueError as error:  # no object has that path
        raise ConfigError(f"track: {error}") from error
    if wrong:
        raise ConfigError(f"track: {'; '.join(wrong)}")
    try:
        return instantiate(node)
    except InstantiationException as error:
        own = isinstance(error.__cause__, ValueError)  # the tracker's words, not Hydra's
        raise ConfigError(str(error.__cause__) if own else " ".join(str(error).split())) from error
