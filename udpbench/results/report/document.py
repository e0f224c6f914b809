"""What a report consists of, before it is Markdown, LaTeX or HTML."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Cells are plain text; the first ``left`` columns are aligned left, the others right."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    left: int = 1

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.headers)]
        if wrong:
            raise ValueError(f"table: a row must have {len(self.headers)} cells, given {wrong[0]}")


@dataclass(frozen=True)
class Figure:
    """A PNG and what it shows; ``name`` is its file name without suffix."""

    name: str
    png: bytes
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading of ``level`` 2 to 4, paragraphs, then tables and figures. ``in_latex``: belongs into a paper."""

    title: str
    level: int = 2
    text: tuple[str, ...] = ()
    blocks: tuple[Table | Figure, ...] = ()
    in_latex: bool = False


@dataclass(frozen=True)
class Document:
    """A titled list of sections."""

    title: str
    sections: tuple[Section, ...] = field(default=())
