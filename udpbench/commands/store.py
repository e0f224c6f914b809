"""``python -m udpbench store ls|why|verify|gc|rm``: what finished work there is, what it is for, and removing it.

Words with ``=`` are settings of a cell: ``runtime.store=DIR``, ``runtime.records=DIR``, ``runtime.out=DIR`` for both.
What a stage is needed for is read from the records there, and in every other folder that cells of the store were
recorded in: they name every stage that their cells are made of.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udpbench.commands.common import Parser, names_text, show, table, write_json
from udpbench.commands.preparing import composed, open_store
from udpbench.commands.telling import one_line_errors, say

if TYPE_CHECKING:
    from udpbench.benchmark.stage_folders import StageFolder
    from udpbench.benchmark.store import Store
    from udpbench.results.schema import Record

SHOWN = 20  # records that need a stage
DAY = 86400.0
WEIGHTS = "train"  # the kind of stages that hold trained weights, and nothing that a record or a contact sheet shows
NAMES = "a kind of stages (train), a state (unfinished, damaged, dropped), a key or its first digits, or a folder"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 fine, 1 if something is damaged or could not be removed, 2 wrong input, 130 interrupted."""
    lines = "; ".join(f"{name}: {about}" for name, (_, about) in ACTIONS.items())
    parser = Parser("store", "Look after the finished stages in runtime.store.", f"{lines}. Each has --help.")
    parser.add_argument("action", choices=ACTIONS, metavar="|".join(ACTIONS), help="what to do")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help="its words, and settings such as "
                        "runtime.store=DIR")  # fmt: skip
    args = parser.parse_args(arguments)
    act, about = ACTIONS[args.action]
    with one_line_errors():
        return act(Parser(f"store {args.action}", f"{about[0].upper()}{about[1:]}."), args.words)


# -- what there is, and what for ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoreAndRecords:
    """A store and the records of ``runtime.records`` and of the other folders that it knows of; all are read when they
    are first asked for."""

    store: Store
    folder: Path

    @cached_property
    def there(self) -> list[StageFolder]:
        from udpbench.benchmark.stage_folders import contents

        if not self.store.root.is_dir():
            raise ValueError(f"store: {self.store.root} is not a folder; say where it is with runtime.store=DIR")
        return contents(self.store)

    @cached_property
    def _read(self) -> tuple[dict[Path, Record], list[str]]:
        """Path -> record, and a line for each that is broken, or one that there is none."""
        from udpbench.results.record import read_files

        found: dict[Path, Record] = {}
        refused: list[str] = []
        none: list[str] = []
        for folder in self.folders:
            try:
                found |= read_files(folder, refused=refused)
            except ValueError as error:  # there is none
                none.append(str(error))
        return found, refused if found or refused else none[:1]

    @cached_property
    def folders(self) -> list[Path]:
        """Where records are."""
        others = [folder for folder in self.store.records if folder != self.folder.resolve() and folder.is_dir()]
        return [self.folder, *others]

    @property
    def lost(self) -> list[Path]:
        """Folders in which records were, and that are not there now: removed, or on a disk that is not mounted."""
        return [folder for folder in self.store.records if not folder.is_dir()]

    @property
    def where(self) -> str:
        """The folders of records, in words."""
        return " or ".join(map(str, self.folders))

    @property
    def records(self) -> dict[Path, Record]:
        """Path -> record; ValueError if there is none, or if one is broken: what it needs is not known."""
        found, refused = self._read
        if refused:
            raise ValueError(refused[0])
        return found

    @cached_property
    def readable(self) -> dict[Path, Record]:
        """The records that can be read; says a note on those that cannot."""
        found, refused = self._read
        for line in refused:
            say(f"note: {line}")
        return found

    @cached_property
    def uses(self) -> dict[str, list[tuple[Path, str]]]:
        """Key -> the records that name it, and as what."""
        found: dict[str, list[tuple[Path, str]]] = {}
        for path, record in self.readable.items():
            for stage in record["stages"]:
                found.setdefault(stage["key"], []).append((path, stage["name"]))
        return found

    def named(self, kept: StageFolder) -> dict[Path, str]:
        """The records that name a stage, under any of its keys, and as what."""
        return dict(use for key in sorted(kept.keys) for use in self.uses.get(key, ()))

    def chosen(self, names: Sequence[str]) -> list[StageFolder]:
        """What is called by ``NAMES``, each once; a kind means its finished stages.

        Raises ValueError for a name of nothing.
        """
        from udpbench.benchmark.stage_folders import STATES, called

        found: dict[Path, StageFolder] = {}
        kinds = {kept.kind for kept in self.there}
        for name in names:
            if name in STATES:
                stages = [kept for kept in self.there if kept.state == name]
            elif name in kinds:
                stages = [kept for kept in self.there if kept.kind == name and kept.state == "finished"]
            else:
                stages = called(self.store, self.there, name)
            found |= {kept.folder: kept for kept in stages}
        return list(found.values())


def _opened(parser: Parser, words: Sequence[str], takes: str, least: int = 0) -> tuple[Any, list[str], StoreAndRecords]:
    """The parsed words: flags, names (``takes`` says which), and the store and records that the settings name."""
    about = f"{takes}; settings: runtime.store=DIR ..."
    parser.add_argument("words", nargs="*", default=[], metavar="NAME", help=about)
    args = parser.parse_intermixed_args(words)
    settings = [word for word in args.words if "=" in word and not Path(word).exists()]
    names = [word for word in args.words if word not in settings]
    if len(names) < least:
        parser.error(f"give {takes}")
    cfg = composed(settings)
    return args, names, StoreAndRecords(open_store(cfg), Path(cfg.runtime.records))


# -- looking -----------------------------------------------------------------------------------------------------------


def ls(parser: Parser, words: Sequence[str]) -> int:
    """Finished stages by kind; with names, one by one."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it there, a stage an entry")
    args, names, opened = _opened(parser, words, f"to list them one by one: {NAMES}")
    chosen = opened.chosen(names) if names else opened.there
    if args.json:
        write_json(args.json, [_as_json(kept, opened) for kept in chosen])
    if names:
        rows = []
        for kept in chosen:
            records = opened.named(kept)
            needed = [str(len(records)), next(iter(records.values()), "-")]
            rows.append([str(kept), kept.state, _size([kept]), _when(kept.used), *needed])
        show(table(str(opened.store.root), ["stage", "state", "size", "last use", "records", "as"], rows))
        return 0
    finished = [kept for kept in chosen if kept.state == "finished"]
    rows = [[kind, *_row(stages, opened)] for kind, stages in _by_kind(finished).items()]
    columns = ["finished", "stages", "size", "last use", "records", "in no record"]
    show(table(str(opened.store.root), columns, [*rows, ["total", *_row(finished, opened)]]), *_others(chosen))
    return 0


def _row(stages: Sequence[StageFolder], opened: StoreAndRecords) -> list[str]:
    named = [opened.named(kept) for kept in stages]
    cells = {path for records in named for path in records}
    last = max((kept.used for kept in stages), default=0)
    return [str(len(stages)), _size(stages), _when(last), str(len(cells)), str(sum(not records for records in named))]


def _others(there: Iterable[StageFolder]) -> list[str]:
    """A line for each state but finished."""
    about = {
        "unfinished": "begun; the same cell goes on with those that can",
        "damaged": "nothing reads them",
        "dropped": "removed; what they took is kept for the records",
    }
    found = {state: [kept for kept in there if kept.state == state] for state in about}
    lines = []
    for state, stages in found.items():
        busy = sum(kept.busy for kept in stages)
        at_work = f", {busy} of them at work" if busy else ""
        lines += [f"{state}: {len(stages)}, {_size(stages)}{at_work} ({about[state]})"] if stages else []
    return lines


def _as_json(kept: StageFolder, opened: StoreAndRecords) -> dict[str, Any]:
    return {
        "kind": kept.kind,
        "key": kept.key,
        "also": list(kept.also),
        "state": kept.state,
        "busy": kept.busy,
        "folder": str(kept.folder),
        "bytes": kept.bytes,
        "last_use": _when(kept.used, "%Y-%m-%dT%H:%M:%S%z"),
        "records": [str(path) for path in opened.named(kept)],
    }


def why(parser: Parser, words: Sequence[str]) -> int:
    """What a stage is, what it was made of and with which settings, and which records need it."""
    _, names, opened = _opened(parser, words, "a key or its first digits, a folder of the store, or a picture", 1)
    blocks = [_about(kept, opened) for name in names for kept in opened.chosen([name])]
    show("\n\n".join(blocks))
    return 0


def _about(kept: StageFolder, opened: StoreAndRecords) -> str:
    from omegaconf import OmegaConf

    facts, named = kept.facts, opened.named(kept)
    by_key = {key: other for other in opened.there if not other.aside for key in other.keys}
    parents = {name: by_key.get(key) for name, key in kept.parents.items()}
    children = [other for other in opened.there if kept.keys & set(other.parents.values())]
    lines = [
        f"{kept}: {next(iter(named.values()), kept.kind)}, {kept.state}{', at work' if kept.busy else ''}",
        f"  folder: {kept.folder}",
        f"  size: {_size([kept])}; last use: {_when(kept.used)}",
    ]
    if "seconds" in facts:
        lines += [f"  made in {facts['seconds']:g} s on {facts['device']}, by commit {facts['commit'] or 'unknown'}"]
    lines += [f"  also: {kept.kind}/{key}, equal work" for key in kept.also]
    for name, parent in parents.items():
        lines += [f"  made of {name}: {f'{parent}, {parent.state}' if parent else f'{kept.parents[name]}, not there'}"]
    lines += [f"  of it were made: {_count(children)}"] if children else []
    lines += [f"  seed: {facts['seed']}"] if "seed" in facts else []
    if settings := facts.get("settings"):
        lines += ["  settings:", *(f"    {line}" for line in OmegaConf.to_yaml(settings).splitlines())]
    lines += [f"  needed by {len(named)} record{'s' if len(named) != 1 else ''} under {opened.where}"]
    for path in list(named)[:SHOWN]:
        lines += [f"    {path.name}: {_cell(opened.readable[path])}"]
    return "\n".join([*lines, *([f"    ... and {len(named) - SHOWN} more"] if len(named) > SHOWN else [])])


def _cell(record: Record) -> str:
    return f"{names_text(record['cell'])}{', failed' if record['status'] == 'failed' else ''}"


def verify(parser: Parser, words: Sequence[str]) -> int:
    """Compare the contents of every file with what was written; status 1 if something is damaged."""
    from udpbench.benchmark.stage_folders import put_aside
    from udpbench.tracking.console import Console

    parser.add_argument("--aside", action="store_true", help="move damaged stages to damaged/: they are computed anew")
    args, names, opened = _opened(parser, words, f"what to verify instead of everything: {NAMES}")
    there = opened.chosen(names) if names else opened.there
    chosen = [kept for kept in there if kept.state == "finished" or (kept.state == "damaged" and not kept.aside)]
    store, damaged = opened.store, 0
    store.digests = True
    with Console().bar("verify", len(chosen), "stage") as advance:
        for kept in chosen:
            if (damage := store.damage_of(kept.folder)) and kept.folder.exists():
                damaged += 1
                moved = put_aside(store, kept) if args.aside else kept.folder
                where = "" if moved == kept.folder else f"; it is now {moved}" if moved else "; it is in use, and left"
                show(f"damaged: {kept.folder}: {damage}{where}")
            advance(1)
    show(f"{len(chosen)} stages verified, {_size(chosen)}: {damaged or 'none'} damaged")
    return 1 if damaged else 0


# -- removing ----------------------------------------------------------------------------------------------------------


def gc(parser: Parser, words: Sequence[str]) -> int:
    """What no record names; nothing is removed without --yes."""
    from udpbench.benchmark.stage_folders import unneeded

    parser.add_argument("--days", type=float, default=1.0, metavar="N", help="leave what was used in the last N days "
                        "(default 1): a cell that runs has no record yet")  # fmt: skip
    parser.add_argument("--forget", action="store_true", help="folders of records that are not there are gone for good")
    args, names, opened = _opened(_deletes(parser), words, f"of what only: {NAMES}")
    if not 0 <= args.days < math.inf:
        parser.error(f"--days must be a number of days, 0 or more, given {args.days}")
    if (lost := opened.lost) and not args.forget:
        told = ", ".join(map(str, lost[:SHOWN]))
        todo = "mount the disk that they are on, or say --forget if they are gone for good"
        raise ValueError(f"store gc: records were written to {told}, which is not there now; {todo}")
    for folder in lost if args.yes else ():
        opened.store.forget_records(folder)
    needed = {stage["key"] for record in opened.records.values() for stage in record["stages"]} | opened.store.kept
    there = opened.chosen(names) if names else opened.there
    all_free = {kept.folder for kept in unneeded(opened.there, needed)}
    old = {kept.folder for kept in unneeded(opened.there, needed, time.time() - args.days * DAY)}
    gone = [kept for kept in there if kept.folder in old]
    if recent := [kept for kept in there if kept.folder in all_free - old]:
        show(f"left: {_count(recent)}, {_size(recent)}, used in the last {args.days:g} days (--days 0 takes them, too)")
    return _remove(opened, gone, f"named by no record under {opened.where}", args.yes)


def rm(parser: Parser, words: Sequence[str]) -> int:
    """Stages by their names, or the trained weights of finished cells; nothing is removed without --yes."""
    from udpbench.benchmark.stage_folders import free

    parser.add_argument("--weights", action="store_true", help="trained weights of finished cells; their pictures, "
                        "scores and costs are kept, and a training is redone if something needs it")  # fmt: skip
    args, names, opened = _opened(_deletes(parser), words, NAMES)
    if bool(names) == args.weights:
        parser.error(f"give either --weights or {NAMES}")
    chosen = _weights(opened) if args.weights else opened.chosen(names)
    at_hand = {kept.folder for kept in free(opened.there)}
    gone = [kept for kept in chosen if kept.folder in at_hand]
    if held := [kept for kept in chosen if kept.folder not in at_hand]:
        show(f"left: {_count(held)}, in use: a running process computes or reads them")
    if needed := [kept for kept in gone if not args.weights and kept.state == "finished" and opened.named(kept)]:
        records = {path for kept in needed for path in opened.named(kept)}
        show(f"{len(needed)} of them are named by {len(records)} records, whose cells compute again what they lack")
    return _remove(opened, gone, "trained weights of finished cells" if args.weights else "chosen", args.yes)


def _weights(opened: StoreAndRecords) -> list[StageFolder]:
    """Finished trainings that finished cells are made of, and no failed one, which would train again."""
    keys: dict[str, set[str]] = {"ok": set(), "failed": set()}
    for record in opened.records.values():
        keys[record["status"]] |= {stage["key"] for stage in record["stages"]}
    trained = [kept for kept in opened.there if kept.kind == WEIGHTS and kept.state == "finished"]
    return [kept for kept in trained if kept.keys & keys["ok"] and not kept.keys & keys["failed"]]


def _deletes(parser: Parser) -> Parser:
    parser.add_argument("--yes", action="store_true", help="do it; without, only say what and how much it would be")
    return parser


def _remove(opened: StoreAndRecords, gone: Sequence[StageFolder], which: str, yes: bool) -> int:
    """Say what is to be removed and, with ``yes``, remove it; status 1 if some of it could not be."""
    from udpbench.benchmark.stage_folders import remove, tidy

    rows = [[kind, str(len(stages)), _size(stages)] for kind, stages in _by_kind(gone).items()]
    if not rows:
        show(f"{which}: nothing to remove")
        return 0
    show(table("", [which, "stages", "size"], [*rows, ["total", str(len(gone)), _size(gone)]]))
    if not yes:
        show("nothing was removed; --yes removes them")
        return 0
    left = [kept for kept in gone if not remove(opened.store, kept, keep_facts=bool(opened.named(kept)))]
    tidy(opened.store)
    removed = [kept for kept in gone if kept not in left]
    show(f"removed: {_count(removed)}, {_size(removed)}")
    for kept in left:
        say(f"error: {kept}: somebody uses it now; it is left")
    return 1 if left else 0


# -- words -------------------------------------------------------------------------------------------------------------


def _by_kind(there: Iterable[StageFolder]) -> dict[str, list[StageFolder]]:
    """In the order of the pipeline; what is not finished by its state, behind."""
    from udpbench.results.record import grouped
    from udpbench.results.tally import place

    found = grouped(there, lambda kept: kept.kind if kept.state == "finished" else f"{kept.state} {kept.kind}")
    return dict(sorted(found.items(), key=lambda item: place(item[0])))


def _count(there: Sequence[StageFolder]) -> str:
    """2 train, 1 generate."""
    return ", ".join(f"{len(stages)} {kind}" for kind, stages in _by_kind(there).items()) or "nothing"


def _size(there: Iterable[StageFolder]) -> str:
    from udpbench.results.tally import size

    return size(sum(kept.bytes for kept in there))


def _when(seconds: float, form: str = "%Y-%m-%d %H:%M") -> str:
    return time.strftime(form, time.localtime(seconds)) if seconds else "-"


ACTIONS: dict[str, tuple[Callable[[Parser, Sequence[str]], int], str]] = {
    "ls": (ls, "what there is: number, size, last use, and how many records need it"),
    "why": (why, "what a stage is and which cells need it"),
    "verify": (verify, "whether files are what was written"),
    "gc": (gc, "what no record needs; --yes removes it"),
    "rm": (rm, "remove stages, or the trained weights of finished cells"),
}
