"""What the commands have in common: the command line, the configuration, a cell built from it, errors, tables."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import secrets
import shlex
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, NoReturn

from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, ConfigTypeError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from udpbench.commands.disk import disk_error
from udpbench.commands.machine import cores, gpus, memory_error, places, share_of_gpu
from udpbench.commands.quoting import advice, quoted
from udpbench.commands.searchpath import CONF, option_files, with_folders
from udpbench.core.errors import first_line

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from udpbench.benchmark.cell import Cell
    from udpbench.benchmark.graph import Graph
    from udpbench.benchmark.store import Stage, Store
    from udpbench.interfaces import Log
    from udpbench.tracking.track import Tracker

# ``${unique:}`` in a configuration: eight hex digits, the same throughout a run or a sweep, on all of its workers.
OmegaConf.register_new_resolver("unique", lambda: secrets.token_hex(4), use_cache=True, replace=True)
# What launchers are given of this machine, see conf/hydra/launcher.
for name, resolver in (("gpus", lambda: len(gpus())), ("places", places), ("share_of_gpu", share_of_gpu)):
    OmegaConf.register_new_resolver(name, resolver, replace=True)
# Presets of launchers have the names of their plugins, of which Hydra says that another name may be asked for one day.
# Set where this file is read: whoever composes a cell, a launcher's processes too, has read it.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/.*is validated", category=UserWarning)
# What is raised for wrong input.
WRONG_WORDS = (HydraException, OmegaConfBaseException, YAMLError, ValueError, UserWarning)
MOST_WORKERS = 256  # far more processes than any cell has arms
KINDS = {"NoneType": "null", "int": "a number", "float": "a number"}  # of values, in a person's words
FEW = 12  # options of a group that an error lists; of groups with more, udpbench list does
RESUME = "interrupted; the same command goes on where this one stopped"


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


class Parser(argparse.ArgumentParser):
    """The words of a command; what is wrong with them is told like any other error."""

    def __init__(self, command: str, description: str, epilog: str | None = None) -> None:
        super().__init__(prog=f"python -m udpbench {command}", description=description, epilog=epilog)

    def error(self, message: str) -> NoReturn:
        say(f"error: {message}; {self.prog} --help says more")
        sys.exit(2)

    def takes_overrides(self, about: str) -> None:
        """Words as those of a cell, anywhere among the others: ``parse_intermixed_args`` finds them."""
        self.add_argument("overrides", nargs="*", default=[], metavar="GROUP=OPTION", help=about)


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
    if store is None or cell is None or errors:
        raise ConfigError("\n".join(errors))
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
    from udpbench.benchmark.build import group_of, prepare_device
    from udpbench.benchmark.store import Store
    from udpbench.core.component import check_choice
    from udpbench.core.errors import ConfigError, check_whole
    from udpbench.core.images import allow_pixels
    from udpbench.core.memory import keep_freed_memory

    keep_freed_memory()
    runtime = group_of(cfg, "runtime")
    for name in ("device", "out", "store", "records"):
        if not isinstance(runtime[name], str) or not runtime[name]:
            raise ConfigError(f"runtime.{name}: must be a text, given {runtime[name]!r}")
        if runtime[name].startswith("~"):
            runtime[name] = str(Path(runtime[name]).expanduser())
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

    from udpbench.benchmark.build import group_of, wrong_settings
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


@contextmanager
def one_line_errors(interrupted: str = "interrupted") -> Iterator[None]:
    """Ends the process with status 2 and a line for each error in the command line or its input, with status 1 and a
    line if memory is short, with status 130 and the line ``interrupted`` for Ctrl-C, with status 141 and no word when
    nobody reads its output any more.

    With HYDRA_FULL_ERROR=1 in the environment the traceback of an error comes through.
    """
    replace_unencodable()
    before = os.environ.get("HYDRA_FULL_ERROR", "0")
    wants_traceback = before == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come out of Hydra as they are, not printed and turned into status 1
    try:
        with warnings.catch_warnings():
            # A folder of one's own methods that is not there is an error, not a remark on the way to another one.
            warnings.filterwarnings("error", message="provider=hydra.searchpath", category=UserWarning)
            yield
        if sys.stdout is not None:  # a descriptor that was closed
            sys.stdout.flush()
    except BrokenPipeError:  # who reads the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where the rest of it goes
        sys.exit(141)
    except (*WRONG_WORDS, OSError) as error:
        if wants_traceback:
            raise
        for line in lines_of(error):
            say(f"error: {line}")
        sys.exit(2)
    except KeyboardInterrupt:
        say(interrupted)
        sys.exit(130)
    except Exception as error:
        short = memory_error(error)
        if wants_traceback or not short:
            raise
        say(f"error: {short}")
        sys.exit(1)
    finally:
        os.environ["HYDRA_FULL_ERROR"] = before


def lines_of(error: Exception) -> list[str]:
    """What a person is told of an error: a line for each thing that is wrong, of Hydra's own errors one."""
    message = str(error).partition("Config search path:")[0]
    if line := _of_a_file(error) or _of_a_word(error, message):
        return [line]
    return [_of_hydra(error, message)] if isinstance(error, HydraException) else message.splitlines()


def _of_a_file(error: Exception) -> str | None:
    """What is wrong with a file that was to be read or written."""
    if isinstance(error, MarkedYAMLError) and (mark := error.problem_mark or error.context_mark):
        return f"{mark.name} line {mark.line + 1}: is no YAML: {error.problem or error.context}"
    if isinstance(error, UnicodeDecodeError):
        # Hydra's words do not name the YAML that it was reading; its frame does.
        frames = (frame for frame, _ in walk_tb(error.__traceback__))
        file = next((found for frame in frames if (found := frame.f_locals.get("full_path"))), "a file of the input")
        return f"{file}: is not UTF-8; save it as UTF-8"
    if line := disk_error(error):
        return line
    return first_line(error) if isinstance(error, OSError) and error.strerror else None


def _of_a_word(error: Exception, message: str) -> str | None:
    """What is wrong with a word of the command line that means nothing by itself; ``message``: by Hydra."""
    if isinstance(error, OverrideParseException):
        return advice(error.override)
    if several := re.match(r"Ambiguous value for argument '(.*)'\n1\. ", message, re.DOTALL):
        key, _, value = several[1].partition("=")
        as_list, as_text = shlex.quote(f"{key}=[{value}]"), quoted(key, value)
        return f"{key}: {value!r} is several values; say {as_list} for a list, {as_text} for one text, -m for a grid"
    if message.startswith(said := "Config group override must be a string or a list. Got "):  # which, it does not say
        given = message.removeprefix(said)
        kind = KINDS.get(given, given)
        of = "; a number is a setting of an option, such as budget.eps=4" if kind == "a number" else ""
        return f"a group must be set to one of its options, not to {kind}; python -m udpbench --help lists them{of}"
    if missing := re.match(r"provider=hydra.searchpath in .*, path=(.*) is not available", message):
        return f"hydra.searchpath: there is no folder {missing[1]}"
    return None


def _of_hydra(error: HydraException, message: str) -> str:
    """What is wrong with what the words ask for together."""
    if isinstance(error.__cause__, ConfigKeyError | ConfigAttributeError):
        return no_setting(error.__cause__)
    line = " ".join(message.split()).partition(" To append to your default list use ")[0]
    if option := re.search(r"Could not find '(\S+)/(\S*)' Available options in '\1': (.*)", line):
        return no_option(option[1], option[2], option[3].split())
    if option := re.fullmatch(r"In 'config': Could not load '(\S+)/(\S*)'\.", line):  # of a list of several
        return no_option(option[1], option[2], [file.stem for file in option_files(option[1])])
    if several := re.match(r"Multiple values for (\S+)\. To override a value use 'override \S+: (\S+)'", line):
        in_yaml = f"in the defaults list of a YAML: - override /{several[1]}: {several[2]}"
        return f"{several[1]}: has one option; write {several[1]}={several[2]}, without the + ({in_yaml})"
    if line.startswith("Could not override 'metric'."):
        return "metric: a cell has several; +metric@metrics.extra.NAME=NAME adds one, as +metric@metrics.extra.fid=fid"
    if group := re.match(r"Error resolving interpolation '\S+\$\{([\w@]+)\}', possible interpolation keys", line):
        return f"{group[1]}: must have one option, no list of them and not none at all; -m {group[1]}=A,B is a grid"
    if isinstance(error.__cause__, ConfigTypeError):  # a list in place of settings by name, or the reverse
        return f"{line}: {first_line(error.__cause__)}"
    return line


def no_setting(error: ConfigKeyError | ConfigAttributeError) -> str:
    """The line for an unknown setting: the nearest ones, and all that are allowed there."""
    from udpbench.benchmark.build import parameters_of
    from udpbench.core.errors import instead

    path, node = str(error.full_key), error.parent_node
    where, _, name = path.rpartition(".")
    named = [str(key) for key in node if not str(key).startswith("_")] if isinstance(node, DictConfig) else []
    if not where and isinstance(node, DictConfig):
        parts = {str(key): node._get_node(key) for key in node if key != "hydra"}  # no reference is followed
        inside = [group for group, part in parts.items() if isinstance(part, DictConfig) and name in part]
        if inside:
            return f"no setting or group {path!r}; did you mean {' or '.join(f'{group}.{name}' for group in inside)}?"
        return f"no setting or group {path!r}{instead(name, named, 'python -m udpbench --help shows all')}"
    with suppress(ValueError):  # no part, or of a class that is not there
        if isinstance(node, DictConfig) and name in parameters_of(node.get("_target_")):  # which has a default
            return f"{path}: its YAML does not name it; +{path}=VALUE does"
    return f"no setting {path!r}{_of_another(where, name)}{instead(name, named)}"


def _of_another(group: str, name: str) -> str:
    """Which options of a group have a setting that the chosen one lacks, if these are few."""
    files = option_files(group) if re.fullmatch(r"\w+", group) else []
    having = [file for file in files if re.search(rf"^{re.escape(name)}:", file.read_text(encoding="utf-8"), re.M)]
    return f"; {' and '.join(f'{group}={file.stem}' for file in having)} has it" if 0 < len(having) < 3 else ""


def no_option(group: str, given: str, allowed: Sequence[str]) -> str:
    """What is wrong with an option that a group does not have: the nearest first, of many options only these."""
    from udpbench.core.errors import instead

    rest = f"python -m udpbench list {group} shows all {len(allowed)}" if len(allowed) > FEW else ""
    return f"no {group} {given!r}{instead(given, allowed, rest)}"


def replace_unencodable() -> None:
    """What the terminal's encoding lacks is shown as a question mark from now on, and is no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def say(text: str) -> None:
    """One line to standard error, without importing anything that draws."""
    sys.stderr.write(f"{text}\n")


def show(*parts: RenderableType) -> None:
    """Tables and lines to standard output."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 110, markup=False)  # names may hold brackets
    for part in parts:
        if isinstance(part, str):
            console.print(part, highlight=False, soft_wrap=True)
        else:
            console.print(part)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column holds names and whose others hold numbers."""
    from rich.table import Table

    made = Table(title=title)
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left")
    for row in rows:
        made.add_row(*row)
    return made


def write_json(path: Path, found: Any) -> None:
    """Write the numbers of a command, into a folder that need not exist yet."""
    from udpbench.core.atomic import atomic_text

    atomic_text(path.expanduser(), json.dumps(found, indent=1) + "\n")


def cell_text(cell: Cell) -> str:
    """The cell in a line: protect=eudp attack=none ..."""
    return names_text(cell.names)


def names_text(names: Mapping[str, Any]) -> str:
    """A cell in a line (protect=eudp attack=none ...), from its names as a record has them."""
    shown = ("data", "subject", "protect", "attack", "task", "budget", "victim", "seed")
    return " ".join(f"{k}={names[k]}" for k in shown if names[k] != "")


def slug(cell: Cell) -> str:
    """The cell as the beginning of a file name."""
    names = cell.names
    shown = ("data", "subject", "budget", "protect", "attack", "task")
    text = "-".join([*(str(names[k]) for k in shown if names[k] != ""), f"s{names['seed']}"])
    return re.sub(r"[^\w.=+-]+", "_", text).encode()[:120].decode(errors="ignore")  # file names take 255 bytes
