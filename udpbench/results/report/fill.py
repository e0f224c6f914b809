"""The tables of a text, written anew from records.

A table stands between ``<!-- table KIND NAME=VALUE ... -->`` and ``<!-- end -->``. KIND is a key of ``KINDS``;
``scores=`` chooses the metrics (default: the primary ones), ``records=`` the folder (default: records/ beside the
text), ``text=no`` leaves out the sentences above the table; any name of a cell chooses cells, by patterns in which a
space is written _: ``task=ddpm protect=eudp*,udp budget=linf_8/255``. Boards that differ in further names become one
table that says these first; the one budget of a table is said above it where the folder has several.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pandas as pd
from pandas import DataFrame

from udpbench.core.atomic import atomic_text
from udpbench.core.component import check_choice
from udpbench.results.record import flipped, metrics_of, read_files
from udpbench.results.report import arms, compare
from udpbench.results.report.attacked import attack_costs
from udpbench.results.report.boards import Board, boards, leaderboard
from udpbench.results.report.choose import choose, fewest
from udpbench.results.report.page import heat_table
from udpbench.results.report.render import Section, headers, markdown_table
from udpbench.results.report.worst import worst_case
from udpbench.results.schema import CELL, EXTRA, Record

KINDS: dict[str, Callable[[Board], Section | None]] = {
    "effects": leaderboard,
    "arms": arms.arm_means,
    "victims": arms.victims,
    "pictures": arms.pictures,
    "learning": arms.learning,
    "protections": compare.comparisons,
    "attacks": compare.attacks,
    "costs": attack_costs,
    "heat": heat_table,
    "worst": worst_case,
    "curves": arms.curves,
}
_NAMES = (*CELL, *EXTRA)
_MARK = re.compile(r"<!-- table (.*?) -->\n(.*?)<!-- end -->", re.DOTALL)


def fill(path: Path) -> None:
    """Write the tables of the text at ``path`` anew; raises ValueError as ``filled`` does, and changes nothing then."""
    atomic_text(path, filled(path))


def filled(path: Path) -> str:
    """The text of ``path`` with its tables made anew; the same text if they were up to date.

    Raises ValueError naming the mark if it asks for what there is not, or if the text has no mark.
    """
    text = path.read_text(encoding="utf-8")
    if not _MARK.search(text):
        raise ValueError(f"{path}: there is no <!-- table KIND ... --> with an <!-- end -->")
    once = cache(_read)  # the marks of a text mostly ask for the same records

    def renewed(found: re.Match[str]) -> str:
        if "<!-- table " in found[2]:  # what stands between the two marks would be lost
            raise ValueError(f"{path}: table {found[1]}: has no <!-- end --> before the next table")
        try:
            body = made(found[1], path.parent, once)
        except ValueError as error:
            raise ValueError(f"{path}: table {found[1]}: {error}") from error
        return f"<!-- table {found[1]} -->\n{body}\n<!-- end -->"

    return _MARK.sub(renewed, text)


def _read(folder: Path) -> list[Record]:
    files = read_files(folder)
    chosen = choose(files)
    wrong = [f"{path}: {said}" for path, said in flipped(files).items()]
    wrong += [f"{said}; take one of them away" for said in chosen.disagree]
    if wrong:
        raise ValueError(wrong[0])
    return chosen.ok


def made(words: str, folder: Path, read: Callable[[Path], list[Record]] = _read) -> str:
    """The Markdown that the words of a mark ask for. ``folder``: where relative paths start.

    Raises ValueError for words that mean nothing or ask for what there is not.
    """
    kind, *rest = words.split()
    check_choice("unknown kind", kind, KINDS)
    names = dict(word.partition("=")[::2] for word in rest)
    source, scores, with_text = names.pop("records", "records"), names.pop("scores", ""), names.pop("text", "yes")
    if unknown := names.keys() - set(_NAMES):
        raise ValueError(f"unknown name {min(unknown)!r}; allowed are records, scores, text, {', '.join(_NAMES)}")
    every = read(folder / source)
    check_choice("text", with_text, ("yes", "no"))
    kept = [r for r in every if all(_fits(r, name, patterns) for name, patterns in names.items())]
    if not kept:
        raise ValueError(f"no record of {folder / source} has {' '.join(f'{k}={v}' for k, v in names.items())}")
    shown = tuple(filter(None, scores.split(",")))
    measured = {*metrics_of(kept), *(k for r in kept for part in r["perturbation"].values() for k in part)}
    if missing := [score for score in shown if score not in measured]:
        raise ValueError(f"unknown score {missing[0]!r}; allowed are {', '.join(sorted(measured))}")
    found = [(board, KINDS[kind](replace(board, shown=shown))) for board in boards(kept, every=every)]
    parts = [(board.names, section) for board, section in found if section is not None]
    if not any(section.tables for _, section in parts):
        raise ValueError("no record has what it asks for")
    sentences = dict.fromkeys(line for _, section in parts for line in section.text)
    budgets = {names["budget"] for names, _ in parts}
    if len(budgets) == 1 < len({record["cell"]["budget"] for record in every}):
        sentences = {f"Budget: {budgets.pop()}.": None} | sentences
    joined = _joined([(names, table) for names, section in parts for table in section.tables])
    return "\n\n".join([*(sentences if with_text == "yes" else ()), markdown_table(joined)])


def _fits(record: Record, name: str, patterns: str) -> bool:
    value = str(record["cell"].get(name, "")).replace(" ", "_")
    return any(fnmatchcase(value, pattern) for pattern in patterns.split(","))


def _joined(parts: Sequence[tuple[dict[str, str], DataFrame]]) -> DataFrame:
    """One table of all rows, led by the names that tell the boards apart, without columns that say nothing."""
    telling = dict.fromkeys(("task", "budget", "protected_fraction", "preset", *_NAMES))
    leading = fewest(telling, [names for names, _ in parts])
    rows = [table.reset_index().assign(**{k: names.get(k, "-") for k in leading}) for names, table in parts]
    joined = pd.concat(rows, ignore_index=True).fillna("-")
    order = [*leading, *dict.fromkeys(column for _, table in parts for column in headers(table))]
    kept = [column for column in order if not joined[column].isin(["-", ""]).all()]
    left = {*leading, *parts[0][1].index.names}
    return joined[kept].set_index([column for column in kept if column in left])
