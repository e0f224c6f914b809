"""From folders of records to the files of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from pandas import DataFrame

from udpbench.core.atomic import atomic_write
from udpbench.results import flags
from udpbench.results.record import long_rows, read_files
from udpbench.results.report import arms, compare
from udpbench.results.report.boards import Board, board_frame, boards, leaderboard
from udpbench.results.report.choose import Chosen, choose
from udpbench.results.report.render import Figure, Section, render
from udpbench.results.report.worst import worst_case
from udpbench.results.schema import LONG, Record
from udpbench.results.stats import victim
from udpbench.results.words import last_line

_OF_BOARD = (
    arms.arm_means,
    arms.learning,
    arms.pictures,
    compare.comparisons,
    compare.attacks,
    worst_case,
    arms.curves,
)


def write_report(
    folders: Sequence[Path], out: Path, title: str | None = None, plots: bool = True, refused: list[str] | None = None
) -> list[Path]:
    """Read every record under ``folders`` and write the report to ``out``; returns the files.

    report.md, report.html, report.tex, records.csv, leaderboard.csv and figures/*.png. Without ``title`` it says what
    was run. The same records give the same bytes. ``refused``: takes a line for
    every broken record, which is left out. Raises ValueError if a folder holds no record or, without ``refused``, a
    broken one.
    """
    chosen = choose(read_files(*folders, refused=refused))
    found, every = boards(chosen.ok), [*chosen.ok, *chosen.failed.values()]
    sections = list(_sections(chosen, found, plots))
    title = title or _title(every)
    texts = {name: render(name, title, sections) for name in ("report.md", "report.html", "report.tex")}
    long = DataFrame(long_rows(every), columns=list(LONG), dtype=object)
    for name, made in (("records.csv", long), ("leaderboard.csv", board_frame(found))):
        texts[name] = made.to_csv(index=False, lineterminator="\n")
    files = {name: text.encode() for name, text in texts.items()}
    files |= {f"figures/{figure.name}.png": figure.png for section in sections for figure in section.figures}
    for name, data in files.items():
        with atomic_write(out / name) as beside:
            beside.write_bytes(data)
    return [out / name for name in files]


def _title(records: Sequence[Record]) -> str:
    """What was run: "eudp, udp against dreambooth on toyworld, linf 8/255"."""

    def of(*names: str) -> str:
        found = (str(record["cell"][name]) for name in names for record in records)  # type: ignore[literal-required]
        return ", ".join(sorted({name for name in found if name != "none"}))

    return f"{of('protect') or of('attack') or 'no protection'} against {of('task')} on {of('data')}, {of('budget')}"


def _sections(chosen: Chosen, found: Sequence[Board], plots: bool) -> Iterator[Section]:
    """The whole report, in the order it is read in."""
    yield _summary(chosen)
    for label, group in groupby(enumerate(found, start=1), key=lambda numbered: numbered[1].label):
        yield Section(label)
        same = list(group)
        for number, board in same:
            yield leaderboard(board)
            if plots and (drawn := _figures(board, number)):
                yield Section("Figures", 4, figures=drawn)
            yield from (section for make in _OF_BOARD if (section := make(board)) is not None)
        yield from compare.transfer([board for _, board in same])
    yield flag_section(found)
    yield _failed(chosen)
    yield _environment([*chosen.ok, *chosen.failed.values()])


def _summary(chosen: Chosen) -> Section:
    text = f"{len(chosen.ok)} finished cells, {len(chosen.failed)} failed."
    if chosen.repeated:
        text += f" {chosen.repeated} more records are left out: the same cell is there again, finished."
    limits = ["Results under different labels are never ranked together."]
    if any(record["facts"]["embedded"] for record in chosen.ok):
        limits.append(
            "The embedded world says whether code and comparisons work, not how strong a protection is on large models."
        )
    return Section("Records", 2, [text, " ".join(limits)])


def _figures(board: Board, number: int) -> list[Figure]:
    from udpbench.results.report.plots import figures

    return figures(board, number)


def flag_section(boards: Sequence[Board]) -> Section:
    """Everything that speaks against believing a number, with the victims it is about."""
    rows: dict[tuple[str, str, str], set[str]] = {}
    for board in boards:
        where = f"{board.label}: {board.title}"
        for row in (row for row in board.rows if not row.control):
            for sentence in flags.of_group(row.records, board.floors):
                rows.setdefault((where, f"{row.protect} / {row.attack}", sentence), set())
        for record in board.records:  # those without a protected arm, too
            of = f"{record['cell']['protect']} / {record['cell']['attack']}"
            for sentence in flags.of_record(record):
                rows.setdefault((where, of, sentence), set()).add("/".join(map(str, victim(record))))
    names = ("where", "protection / attack", "flag", "victims (subject/seed)")
    return _list("Flags", names, [(*key, ", ".join(sorted(who)) or "all") for key, who in rows.items()])


def _failed(chosen: Chosen) -> Section:
    """Cells that did not finish, with the last line of their traceback."""
    rows = []
    for path, record in chosen.failed.items():
        cell = record["cell"]
        name = f"{cell['protect']} / {cell['attack']} / {cell['task']} on {cell['data']} {cell['subject']}"
        rows.append((f"{name}, seed {cell['seed']}", last_line(record["error"]), path.name))
    return _list("Failed cells", ("cell", "error", "record"), rows)


def _environment(records: Sequence[Record]) -> Section:
    """The distinct provenances and how many records each has."""

    def made_by(record: Record) -> tuple[str, ...]:
        p = record["provenance"]
        packages = ", ".join(f"{k} {v}" for k, v in sorted((p.get("packages") or {}).items()))
        dirty = " (dirty)" if p.get("dirty") else ""
        code = f"{p['commit'][:12]}{dirty}" if p.get("commit") else f"package {p.get('version')}"
        return code, str(p.get("device")), str(p.get("python")), packages

    counted = sorted(Counter(map(made_by, records)).items(), key=lambda item: (-item[1], item[0]))
    rows = [(str(count), *key) for key, count in counted]
    return _list("Environment", ("records", "code", "device", "python", "packages"), rows)


def _list(title: str, names: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Section:
    """A section with one table of words only, its columns called ``names``."""
    made = DataFrame(rows, columns=list(names)).set_index(list(names))
    return Section(title, 2, [], [made]) if rows else Section(title, 2, ["None."])
