"""``python -m udpbench.results.report.fill TEXT.md ...``: the tables of a text, made anew from records.

A table stands between ``<!-- table KIND NAME=VALUE ... -->`` and ``<!-- end -->``. KIND is a key of ``KINDS``;
``scores=`` chooses the metrics (default: the primary ones), ``records=`` the folder (default: records/ beside the
text), ``text=no`` leaves out the sentences above the table; any name of a cell chooses cells, by patterns:
``task=ddpm protect=eudp*,udp``. Boards that differ in further names become one table that says these first.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from udpbench.core.atomic import atomic_write
from udpbench.results.record import CELL, EXTRA, Record, metrics_of, read_files
from udpbench.results.report import arms, sections
from udpbench.results.report.boards import Board, boards, leaderboard
from udpbench.results.report.choose import choose
from udpbench.results.report.document import Section, Table
from udpbench.results.report.render import markdown_table

KINDS: dict[str, Callable[[Board], Section | None]] = {
    "effects": leaderboard,
    "arms": arms.arm_means,
    "victims": arms.victims,
    "pictures": arms.pictures,
    "learning": arms.learning,
    "protections": sections.comparisons,
    "attacks": sections.attacks,
    "curves": sections.curves,
}
_ABSENT = {"protected_fraction": "1.0"}  # what a cell means that does not say it
_MARK = re.compile(r"<!-- table (.*?) -->\n.*?<!-- end -->", re.DOTALL)


def filled(path: Path) -> str:
    """The text of ``path`` with its tables made anew; the same text if they were up to date.

    Raises ValueError naming the mark if it asks for what there is not, or if the text has no mark.
    """
    text = path.read_text()
    if not _MARK.search(text):
        raise ValueError(f"{path}: there is no <!-- table KIND ... --> with an <!-- end -->")

    once = cache(_read)  # the marks of a text mostly ask for the same records

    def renewed(found: re.Match[str]) -> str:
        try:
            body = made(found[1], path.parent, once)
        except ValueError as error:
            raise ValueError(f"{path}: table {found[1]}: {error}") from error
        return f"<!-- table {found[1]} -->\n{body}\n<!-- end -->"

    return _MARK.sub(renewed, text)


def _read(folder: Path) -> list[Record]:
    return choose(read_files(folder)).ok


def made(words: str, folder: Path, read: Callable[[Path], list[Record]] = _read) -> str:
    """The Markdown that the words of a mark ask for. ``folder``: where relative paths start."""
    kind, *rest = words.split()
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; allowed are {', '.join(KINDS)}")
    names = dict(word.partition("=")[::2] for word in rest)
    source, scores, told = names.pop("records", "records"), names.pop("scores", ""), names.pop("text", "yes")
    if unknown := names.keys() - {*CELL, *EXTRA}:
        raise ValueError(f"unknown name {min(unknown)!r}; allowed are records, scores, text, {', '.join(CELL + EXTRA)}")
    every = read(folder / source)
    kept = [r for r in every if all(_fits(r, name, patterns) for name, patterns in names.items())]
    shown = tuple(filter(None, scores.split(",")))
    measured = {*metrics_of(kept), *(k for r in kept for part in r["perturbation"].values() for k in part)}
    if missing := [score for score in shown if score not in measured]:
        raise ValueError(f"unknown score {missing[0]!r}; allowed are {', '.join(sorted(measured))}")
    found = [(board, KINDS[kind](replace(board, shown=shown))) for board in boards(kept, every=every)]
    parts = [(board, section) for board, section in found if section is not None]
    if not parts:
        raise ValueError("no record has what it asks for")
    sentences = dict.fromkeys(line for _, section in parts for line in section.text) if told == "yes" else {}
    table = _joined([(board.names, t) for board, s in parts for t in s.blocks if isinstance(t, Table)])
    return "\n\n".join([*sentences, "\n".join(markdown_table(table))])


def _fits(record: Record, name: str, patterns: str) -> bool:
    value = str(record["cell"].get(name, _ABSENT.get(name, "")))
    return any(fnmatchcase(value, pattern) for pattern in patterns.split(","))


def _joined(parts: Sequence[tuple[dict[str, str], Table]]) -> Table:
    """One table of all rows, led by the names that tell the boards apart, without columns that say nothing."""
    headers = list(dict.fromkeys(h for _, table in parts for h in table.headers))
    leading = _telling([names for names, _ in parts])
    rows = [
        [_name(names, k) for k in leading] + [dict(zip(table.headers, row)).get(h, "-") for h in headers]
        for names, table in parts
        for row in table.rows
    ]
    every = [*leading, *headers]
    kept = [i for i in range(len(every)) if any(row[i] not in ("-", "") for row in rows)]
    left = len(leading) + parts[0][1].left
    cells = tuple(tuple(row[i] for i in kept) for row in rows)
    return Table(tuple(every[i] for i in kept), cells, left=sum(i < left for i in kept))


def _telling(boards: Sequence[dict[str, str]]) -> list[str]:
    """As few names as tell all boards apart."""
    found: list[str] = []
    for name in ("task", "budget", "protected_fraction", *CELL, *EXTRA):
        told = {tuple(_name(b, k) for k in found) for b in boards}
        if len({tuple(_name(b, k) for k in (*found, name)) for b in boards}) > len(told):
            found.append(name)
    return found


def _name(names: dict[str, str], key: str) -> str:
    return names.get(key, _ABSENT.get(key, "-"))


def main(arguments: list[str] | None = None) -> int:
    """Fill the files; exit status 2 and one line if a mark asks for what there is not."""
    parser = argparse.ArgumentParser(
        prog="python -m udpbench.results.report.fill", description="Make a text's tables anew."
    )
    parser.add_argument("texts", type=Path, nargs="+", help="Markdown files with <!-- table KIND ... --> marks")
    for path in parser.parse_args(arguments).texts:
        try:
            text = filled(path)
        except (ValueError, OSError) as error:
            sys.stderr.write(f"udpbench.results.report.fill: {error}\n")
            return 2
        with atomic_write(path) as beside:
            beside.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
