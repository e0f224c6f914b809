"""Captions that lie beside pictures, as people have them.

One table, ``metadata.jsonl`` or ``metadata.csv``, with the column ``file_name`` and one of ``COLUMNS`` (the conventions
of Hugging Face's ImageFolder), or a text file by the name of each picture, without its suffix or with it (those of
kohya's scripts and others); all in UTF-8. A caption is one line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from udpbench.core.text import CONTROL, shown_name

TABLES = ("metadata.jsonl", "metadata.csv")
BESIDE = (".txt", ".caption")
COLUMNS = ("text", "caption", "prompt")  # of a table that has several, the first of these holds the captions
SHOWN = 5  # names of files that are not read
Row = tuple[int, dict[str, Any]]  # line of the file, from 1, and what it says


def is_table(path: Path) -> bool:
    """Whether that is a file by the name of a table of captions, in whatever case."""
    return path.name.lower() in TABLES and path.is_file()


def caption_files(folder: Path, pictures: Sequence[Path]) -> list[Path]:
    """The files of ``folder`` that hold captions of ``pictures``, by name: a table, or text files beside them.

    Raises ValueError if a picture could have its caption from two of them.
    """
    stem_of = _stems(pictures)
    tables = sorted(filter(is_table, folder.iterdir()), key=lambda path: TABLES.index(path.name.lower()))
    beside = sorted(p for p in folder.iterdir() if p.suffix.lower() in BESIDE and p.stem in stem_of and p.is_file())
    first: dict[str, Path] = {}
    for path in (*tables, *beside):
        other = tables[0] if tables else first.setdefault(stem_of[path.stem], path)
        if path != other:
            raise ValueError(f"captions: both {other} and {path.name} hold captions; keep one")
    return tables or beside


def _stems(pictures: Sequence[Path]) -> dict[str, str]:
    """Stem of a text file -> that of the picture whose caption it holds: ``a`` and ``a.png`` for ``a.png``."""
    return {path.name: path.stem for path in pictures} | {path.stem: path.stem for path in pictures}


def unread_captions(folder: Path, pictures: Sequence[Path]) -> str:
    """A line that names the files of ``folder`` that may be meant as captions and are not read: text files by the name
    of no picture, and tables of other names (``metadata.json``); "" if there are none."""
    stems = _stems(pictures)
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    texts = [path for path in visible if path.suffix.lower() in BESIDE and path.stem not in stems]
    tables = [path for path in visible if path.stem.lower() == "metadata" and path.name.lower() not in TABLES]
    names = [CONTROL.sub("?", shown_name(path.name)) for path in dict.fromkeys((*texts, *tables)) if path.is_file()]
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    read = f"captions are those in NAME.txt or NAME.caption of a picture NAME, or in {' or '.join(TABLES)}"
    return f"not read as captions: {', '.join(names[:SHOWN])}{more} in {folder}; {read}"


def read_captions(folder: Path, pictures: Sequence[Path]) -> dict[str, str]:
    """File name -> caption, of those of ``pictures`` that have one.

    Raises ValueError naming file and line if a caption is anything but one text.
    """
    files, names = caption_files(folder, pictures), {path.name for path in pictures}
    if files and is_table(files[0]):
        return _of_table(files[0], names)
    stem_of = _stems(pictures)
    texts = {stem_of[path.stem]: _of_file(path) for path in files}
    return {path.name: texts[path.stem] for path in pictures if path.stem in texts}


def _of_file(path: Path) -> str:
    lines = _lines(read_text(path))
    if len(lines) != 1:
        raise ValueError(f"captions: {path} has {len(lines)} lines; a caption is one line")
    return lines[0]


def _lines(text: str) -> list[str]:
    """The lines of a text that are not empty, without space around them."""
    return [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]


def _of_table(path: Path, names: set[str]) -> dict[str, str]:
    rows = list(table_rows(path))
    columns = {column for _, row in rows for column in row} - {"file_name"}
    column = next((name for name in COLUMNS if name in columns), None)
    if column is None:
        has = f"it has {', '.join(sorted(columns)) or 'no other'}" if rows else "it is empty"
        raise ValueError(f"captions: {path} has no column {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}; {has}")
    found = {}
    for line, row in rows:
        name, text = row["file_name"], _given(row, column)
        where = f"captions: {path} line {line}"
        if name not in names:
            raise ValueError(f"{where} names {name}, but there is no such picture")
        if text is None and (other := [c for c in COLUMNS if _given(row, c) is not None]):
            said = f"has its caption in column {other[0]}, others have it in {column}"
            raise ValueError(f"{where} {said}; use one column")
        if text is None:
            continue
        if not isinstance(text, str):
            raise ValueError(f"{where} column {column} must be a text, it is {json.dumps(text)[:80]}")
        if len(lines := _lines(text)) > 1:
            raise ValueError(f"{where} column {column} has {len(lines)} lines; a caption is one line")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"{where} column {column} holds half a character: {json.dumps(text)[:80]}")
        found[name] = lines[0]
    return found


def _given(row: Mapping[str, Any], column: str) -> Any:
    """What a row has in a column; None for nothing, and for a text that is nothing but space."""
    value = row.get(column)
    return None if isinstance(value, str) and not value.strip() else value


def table_rows(path: Path) -> Iterator[Row]:
    """Line and content of every row of ``metadata.jsonl`` or ``metadata.csv``, each with another "file_name".

    Raises ValueError naming the line of one that has none, cannot be read, or names a file a second time.
    """
    seen: set[str] = set()
    for line, row in _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path):
        if row["file_name"] in seen:
            raise ValueError(f"captions: {path} line {line} names {row['file_name']} a second time")
        seen.add(row["file_name"])
        yield line, row


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            wanted = 'must be a JSON object with a "file_name"'
            raise ValueError(f"captions: {path} line {number} {wanted}; it is {_shown(line)}")
        yield number, row


def _csv_rows(path: Path) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = next(reader, [])
        if "file_name" not in header or len(set(header)) < len(header):
            wanted = "must be the columns' names, each once, with file_name"
            raise ValueError(f"captions: {path} line 1 {wanted}; it is {_shown(','.join(header))}")
        for cells in reader:
            if cells and len(cells) != len(header):
                where, n = f"captions: {path} line {reader.line_num}", len(cells)
                counts = f"has {n} columns, the first line {len(header)}"
                raise ValueError(f"{where} {counts}; put texts with a comma into quotes")
            if cells:  # an empty one says nothing
                yield reader.line_num, {name: cell or None for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise ValueError(f"captions: {path} line {reader.line_num} is not CSV: {error}") from error


def _shown(text: str) -> str:
    """The beginning of a line of a file, as part of a message of one line."""
    return CONTROL.sub("?", text.strip())[:80]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark; ValueError naming the file if it is none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        found = "UTF-16" if path.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte {error.start} is none"
        raise ValueError(f"captions: {path} is not UTF-8 ({found}); save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"captions: {path} is not UTF-8 text (it holds zero bytes); save it as UTF-8")
    return text
