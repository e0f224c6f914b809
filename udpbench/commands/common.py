"""What the commands have in common: the command line's parser, tables, names of cells."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from udpbench.commands.telling import say

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from udpbench.benchmark.cell import Cell


class Parser(argparse.ArgumentParser):
    """The words of a command; what is wrong with them is told like any other error."""

    def __init__(self, command: str, description: str, epilog: str | None = None) -> None:
        super().__init__(prog=f"python -m udpbench {command}", description=description, epilog=epilog)
        self.words: list[str] = []

    def parse_intermixed_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        self.words = list(sys.argv[1:] if args is None else args)
        return super().parse_intermixed_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        odd = (word for word in self.words if re.match(r"-[^-\d]", word) and word not in self._option_string_actions)
        if word := next(odd, ""):
            message += f" (a file or folder {word} is written ./{word})"
        say(f"error: {message}; {self.prog} --help says more")
        sys.exit(2)

    def takes_overrides(self, about: str) -> None:
        """Words as those of a cell, anywhere among the others: ``parse_intermixed_args`` finds them."""
        self.add_argument("overrides", nargs="*", default=[], metavar="GROUP=OPTION", help=about)


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
