"""``python -m udpbench rerun RECORD [GROUP=OPTION KEY=VALUE ...]``: one cell again, as its record says it was.

The settings are the record's, resolved as they were, whatever the defaults are now; words change some of them.
``runtime`` and ``track``, which change no number, are this machine's.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from udpbench.benchmark.cell import ROLES
from udpbench.commands.common import Parser, names_text, show, table
from udpbench.commands.preparing import configuration, prepare
from udpbench.commands.telling import RESUME, one_line_errors
from udpbench.core.errors import ConfigError
from udpbench.results.schema import HERE, Record

if TYPE_CHECKING:
    from udpbench.results.agreement import Compared

SHOWN = 40  # differences


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 the numbers agree, 1 they do not or the cell failed, 2 wrong input, 130 interrupted, 128 + the
    signal if asked to end by SIGTERM (143), SIGUSR1 or SIGUSR2."""
    about = "Run one cell again from its record, and say what differs and whether the numbers agree."
    parser = Parser("rerun", about, "Finished stages are found in runtime.store; elsewhere all is computed anew.")
    parser.add_argument("record", type=Path, metavar="RECORD", help="the JSON file")
    parser.add_argument("--store", metavar="DIR", help="compute in this store; an empty one computes everything anew")
    parser.add_argument("--trust", action="store_true", help="run classes that the record names and udpbench lacks")
    parser.takes_overrides("what shall be otherwise, in words of a cell: options, settings, runtime.records=DIR")
    args = parser.parse_intermixed_args(arguments)
    words = [*args.overrides, *([f"runtime.store={args.store}"] if args.store else [])]
    with one_line_errors(RESUME):
        return _rerun(args.record, words, args.trust)


def _rerun(path: Path, words: Sequence[str], trust: bool) -> int:
    from udpbench.commands.executing import execute
    from udpbench.commands.signals import heeded
    from udpbench.results.record import read, read_files
    from udpbench.tracking.console import Console

    if not path.is_file():
        raise ValueError(f"rerun: there is no file {path}; give the JSON of a record")
    old = read(path)
    _check_code(old["config"], trust)
    others = list(read_files(path.parent, refused=[]).values())  # before this cell's own record is among them
    cfg, choices = rebuilt(old, words)
    console = Console()
    with _telling_what_moved(cfg):
        ready = prepare(cfg, console, choices)
    ready.tracker.check()
    console.say(f"record: {path}: {names_text(old['cell'])}")
    try:
        with heeded(ready.store):
            new = execute(ready, cfg, "rerun", "rerun", show_table=False, choices=choices)
    except Exception as error:  # noqa: BLE001 - it was told
        return 2 if isinstance(error, ValueError) else 1
    return _tell(old, new, others) if new else 0


@contextmanager
def _telling_what_moved(cfg: DictConfig) -> Iterator[None]:
    """Within the block an error that names a path of the record's settings which is not here says which setting moves
    it."""
    from udpbench.results.agreement import flat

    try:
        yield
    except ValueError as error:
        texts = {k: v for k, v in flat(OmegaConf.to_container(cfg)).items() if isinstance(v, str) and "/" in v}
        gone = {value: key for key, value in reversed(texts.items()) if not Path(os.path.expanduser(value)).exists()}
        raise ConfigError("\n".join(_with_hint(line, gone) for line in str(error).splitlines())) from error


def _with_hint(line: str, gone: Mapping[str, str]) -> str:
    """``line``, and the setting of the longest path in it that is not here (``gone``: path -> setting)."""
    named = [path for path in gone if str(Path(os.path.expanduser(path))) in line]
    return f"{line}; if it was moved, say {gone[max(named, key=len)]}=PATH" if named else line


def rebuilt(old: Record, words: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration of a record, changed by ``words``, and the names of its options by group.

    Raises HydraException for words that are no overrides or name what there is not.
    """
    from hydra import compose
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from udpbench.benchmark.build import READ

    parsed = OverridesParser.create().parse_overrides(list(words))
    with configuration() as loader:
        groups = [o for o in parsed if loader.get_group_options(o.key_or_group)]
        of_here = [o for o in parsed if o not in groups and o.key_or_group.split(".")[0] in HERE]
        given = {o.key_or_group for o in (*groups, *of_here)}
        own = {"family": old["config"].get("family"), "track": "none", "runtime.records": "${runtime.out}/reruns"}
        words = [f"{key}={value}" for key, value in own.items() if value and key not in given]
        words += [str(o.input_line) for o in (*groups, *of_here)]
        now = compose("config", words, return_hydra_config=True)
    # Resolved long ago, so what settings only referred to is of no use any more.
    of_cell = {k: _literal(v) for k, v in old["config"].items() if k in READ[""] and k not in HERE}
    cfg = OmegaConf.create(of_cell)
    for group in HERE:
        cfg[group] = OmegaConf.to_container(now[group], resolve=False)
    choices = _names(old)
    for override in groups:
        node = override.package or override.key_or_group.replace("/", ".")
        if node.startswith("_global_") or override.key_or_group == "experiment":
            raise ValueError(f"rerun: {override.input_line} changes more than one part; give the parts themselves")
        found = None if override.is_delete() else OmegaConf.select(now, node)
        OmegaConf.update(cfg, node, found, merge=False, force_add=True)
        chosen = f"{override.key_or_group}@{override.package}" if override.package else override.key_or_group
        choices[chosen] = now.hydra.runtime.choices.get(chosen)
    OmegaConf.set_struct(cfg, True)
    ConfigLoaderImpl._apply_overrides_to_config([o for o in parsed if o not in (*groups, *of_here)], cfg)
    return cfg, choices


def _names(old: Record) -> dict[str, Any]:
    """The options by group, by the names that the record has of its cell."""
    config, cell = old["config"], old["cell"]
    found: dict[str, Any] = {name: cell[name] for name in ("data", "protect", "attack", "task")}  # type: ignore[literal-required]
    for role in ROLES:
        found[f"model@{role}" if config.get(role) else "model"] = cell[role]  # type: ignore[literal-required]
    return found | {"protect@like": "like" if config.get("like") else None}


def _literal(value: Any) -> Any:
    """A resolved value as one that resolves to itself: what looks like a reference in a record is text."""
    if isinstance(value, Mapping):
        return {k: _literal(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_literal(v) for v in value]
    return re.sub(r"(\\*)\$\{", lambda m: f"{m[1] * 2}\\${{", value) if isinstance(value, str) else value


def _check_code(config: Mapping[str, Any], trust: bool) -> None:
    """ValueError if a record would have code run that is none of udpbench's parts: a record is data from anywhere."""
    from hydra.utils import get_object

    from udpbench.core.component import Component
    from udpbench.core.source import targets

    for name in () if trust else sorted({*targets({k: v for k, v in config.items() if k not in HERE})}):
        made: Any = None
        if name.startswith("udpbench."):
            try:
                made = get_object(name)
            except (ImportError, ValueError) as error:
                raise ValueError(f"rerun: the record names {name}, which this version of udpbench lacks") from error
        if not (isinstance(made, type) and issubclass(made, Component)):
            raise ValueError(f"rerun: the record would run {name}, which is no part of udpbench; --trust lets it")


def _tell(old: Record, new: Record, others: Sequence[Record]) -> int:
    from udpbench.results.agreement import AGREES, changed, compared, other_keys

    lines = changed(old, new)
    show("differences:" if lines else "made as the record was: same code, machine and settings")
    show(*(f"  {line}" for line in lines[:SHOWN]), *([f"  ... and {len(lines) - SHOWN} more"] if lines[SHOWN:] else []))
    if keys := other_keys(old, new):
        show(f"other keys: {', '.join(keys)}")
    if all(stage["cached"] for stage in new["stages"]):
        show("nothing was computed: every stage was found finished; --store DIR, an empty folder, computes it anew")
    rows = compared(old, new, others)
    show(table("", ["arm, score", "record", "now", "two seeds", ""], map(_row, rows)))
    measured = [row for row in rows if row.verdict != "new"]
    if not measured:
        show("the record has no scores to compare with")
        return 1 if old["status"] == "ok" else 0
    counts = Counter(row.verdict for row in measured)
    agrees = counts.keys() <= set(AGREES)
    said = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
    show(f"{'agrees' if agrees else 'does not agree'}: of {len(measured)} scores {said}")
    return 0 if agrees else 1


def _row(row: Compared) -> list[str]:
    numbers = ["-" if x is None else f"{x:.6g}" for x in (row.old, row.new, row.spread)]
    return [f"{row.arm}, {row.metric}", *numbers, row.verdict]
