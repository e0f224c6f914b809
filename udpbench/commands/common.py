"""What the commands share: where the configuration lies, a cell built from it, mistakes told in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

if TYPE_CHECKING:
    from udpbench.benchmark.stages import Cell
    from udpbench.benchmark.store import Store
    from udpbench.interfaces import Log
    from udpbench.tracking.track import Tracker

PACKAGE = Path(__file__).parent.parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


def prepare(cfg: DictConfig, choices: Mapping[str, str | None], log: Log | None = None) -> tuple[Cell, Store, Tracker]:
    """The cell of a composed configuration, built and checked; the store it would be run in; the tracker, which has
    opened nothing.

    ``choices`` are the options chosen by group. Raises ConfigError.
    """
    from hydra.utils import instantiate

    from udpbench.benchmark.build import build, find_device
    from udpbench.benchmark.store import Store
    from udpbench.core.errors import ConfigError, check_whole

    for name in ("batch", "grad_batch"):
        check_whole(f"runtime.{name}", cfg.runtime[name], 1)
    if cfg.runtime.threads is not None:
        check_whole("runtime.threads", cfg.runtime.threads, 1)
    device = find_device(cfg.runtime.device)
    store = Store(Path(cfg.runtime.store), device, log, cfg.runtime.batch, cfg.runtime.grad_batch)
    try:
        tracker = instantiate(cfg.track)
    except InstantiationException as error:
        own = isinstance(error.__cause__, ValueError)  # the tracker's words, not Hydra's
        raise ConfigError(str(error.__cause__) if own else " ".join(str(error).split())) from error
    return build(cfg, choices), store, tracker


@contextmanager
def told(interrupted: str = "interrupted") -> Iterator[None]:
    """Ends the process with status 2 and one line for a mistake in the command line, with status 130 and the line
    ``interrupted`` for Ctrl-C.

    With HYDRA_FULL_ERROR=1 in the environment a mistake's traceback comes through.
    """
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come out of Hydra as they are, not printed and turned into status 1
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            raise
        said = str(error).partition("Config search path:")[0]
        say(f"error: {' '.join(said.split())}")
        sys.exit(2)
    except KeyboardInterrupt:
        say(interrupted)
        sys.exit(130)


def say(text: str) -> None:
    """One line to standard error, without importing anything that draws."""
    sys.stderr.write(f"{text}\n")


def words(cell: Cell) -> str:
    """The cell in a line: protect=eudp attack=none ..."""
    names = cell.names
    shown = ("data", "subject", "protect", "attack", "task", "budget", "victim", "seed")
    return " ".join(f"{k}={names[k]}" for k in shown if names[k] != "")
