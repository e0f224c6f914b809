"""Sections of a report, and their rendering as Markdown, LaTeX or one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape
from pandas import DataFrame

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$", "†": r"\textdagger{}", "->": r"$\to$",
    "|": r"\textbar{}",
}  # fmt: skip

# What Markdown reads as markup wherever it stands; underscores within a word and an ampersand by itself are none.
_MARKDOWN = r"[\\|*<`~]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)"

DEEP = 0.82  # shades beyond want white letters


@dataclass(frozen=True)
class Figure:
    """A drawing as markup and what it shows; ``name`` is its file name without suffix."""

    name: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading of ``level`` 2 to 4, paragraphs, then tables and figures. ``in_latex``: belongs into a paper."""

    title: str
    level: int = 2
    text: Sequence[str] = ()
    tables: Sequence[DataFrame] = ()
    figures: Sequence[Figure] = field(default=())
    in_latex: bool = False


def table(rows: Iterable[Mapping[str, str]], names: Sequence[str], caption: str = "") -> DataFrame:
    """A table of plain text from rows of column -> cell; the columns ``names`` are its index and aligned left, the
    others right.

    A cell that a row lacks is "-".
    """
    made = DataFrame(list(rows)).fillna("-").set_index(list(names))
    made.attrs["caption"] = caption
    return made


def render(template: str, **parts: Any) -> str:
    """The report as the file ``template`` of templates/ has it: report.md and report.tex of a ``title`` and
    ``sections``, report.html of what ``page`` puts together."""
    return _environment(template).get_template(template).render(**parts).rstrip() + "\n"


def asset(name: str) -> str:
    """A file of templates/ that pages hold as it is."""
    return files("udpbench.results.report").joinpath("templates", name).read_text(encoding="utf-8").strip()


def markdown_table(made: DataFrame) -> str:
    """A table in GitHub Markdown."""
    return _environment("table.md").get_template("table.md").render(table=made).rstrip()


def headers(made: DataFrame) -> list[str]:
    """The names of the columns, index first."""
    return [*map(str, made.index.names), *map(str, made.columns)]


def latex_text(text: str) -> str:
    """Plain text with LaTeX's special characters escaped, such as may follow the end of a row."""
    escaped = re.sub("->|.", lambda found: _LATEX.get(found[0], found[0]), _line(text))
    return re.sub(r"^(?=[\[*])", "{}", escaped)


@cache
def _environment(template: str) -> Environment:
    marks = ("<%", "%>", "<<", ">>") if template == "report.tex" else ("{%", "%}", "{{", "}}")
    made = Environment(
        *marks,
        loader=PackageLoader("udpbench.results.report"),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters |= {
        "headers": headers,
        "rows": lambda made: made.reset_index().astype(str).itertuples(index=False, name=None),
        "rule": lambda made: [":--"] * made.index.nlevels + ["--:"] * len(made.columns),
        "columns": lambda made: "l" * made.index.nlevels + "r" * len(made.columns),
        "line": _line,
        "cell": _markdown_cell,
        "markdown": _markdown_text,
        "tex": latex_text,
        "sha256": lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode(),
        "breakable": lambda text: Markup("_<wbr>").join(map(escape, text.split("_"))),
        "shade": lambda x: f"{'up' if x > 0 else 'down'}{' deep' if abs(x) > DEEP else ''}",
    }
    return made


def _line(text: str) -> str:
    return " ".join(text.split())


def _markdown_text(text: str) -> str:
    """A line in which no name is taken for markup."""
    return re.sub(rf"({_MARKDOWN}|\[)", r"\\\1", _line(text))


def _markdown_cell(text: str) -> str:
    return re.sub(rf"({_MARKDOWN}|\](?=\())", r"\\\1", _line(text))  # intervals have brackets, too
