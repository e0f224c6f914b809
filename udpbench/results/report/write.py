"""From folders of records to the files of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pandas import DataFrame

from udpbench.core.atomic import atomic_text
from udpbench.results import flags
from udpbench.results.record import flipped, grouped, long_rows, read_files
from udpbench.results.report import arms, compare, pictures
from udpbench.results.report.attacked import attack_costs
from udpbench.results.report.boards import Board, board_frame, boards, leaderboard
from udpbench.results.report.choose import Chosen, choose, clashes
from udpbench.results.report.page import BoardPage, on_metrics
from udpbench.results.report.render import Section, asset, render
from udpbench.results.report.standings import Standings, frame
from udpbench.results.report.svg import STYLE as COLOURS
from udpbench.results.report.svg import alone
from udpbench.results.report.worst import worst_case
from udpbench.results.schema import LONG, Record
from udpbench.results.stats import victim
from udpbench.results.submission import objections
from udpbench.results.words import last_line

NAMED = 3  # names in a title; more are counted
LISTED = 8  # names in a cell of a table; more are counted
_OF_BOARD = (
    arms.arm_means,
    arms.learning,
    arms.pictures,
    compare.comparisons,
    compare.attacks,
    attack_costs,
    worst_case,
    arms.curves,
)
_EMBEDDED = "The embedded world says whether code and comparisons work, not how strong a protection is on large models."


@dataclass(frozen=True)
class Group:
    """The boards of one label, and what compares several of them."""

    label: str
    pages: Sequence[BoardPage]
    further: Sequence[Section]


def write_report(
    folders: Sequence[Path],
    out: Path,
    title: str | None = None,
    plots: bool = True,
    refused: list[str] | None = None,
    store: Path | None = None,
    checked: bool = False,
) -> list[Path]:
    """Read every record under ``folders`` and write the report to ``out``; returns the files.

    report.md, report.html, report.tex, records.csv, leaderboard.csv, figures.csv and figures/*.svg. Without ``title``
    it says what was run. The same records give the same bytes. ``refused``: takes a line for every broken record, which
    is left out, and for every one in which a score goes the other way than in most; if they are to be ``checked``, also
    for every one that lacks what a leaderboard of several people rests on, or that another one contradicts. ``store``:
    where the pictures of the page are (None: beside the first folder). Raises ValueError if a folder holds no record
    or, without ``refused``, a broken one.
    """
    chosen = choose(_acceptable(read_files(*folders, refused=refused), checked, refused))
    found, every = boards(chosen.ok), [*chosen.ok, *chosen.failed.values()]
    ranked = [Standings(board) for board in found]
    groups = _groups(ranked, plots, store or folders[0].parent / "store")
    told = _failed(chosen), _disagreeing(chosen), _missing(found), flag_section(found)
    problems = [section for section in told if section.tables]
    summary, environment, title = _summary(chosen), _environment(every), title or _title(every)
    sections = [summary, *problems, *_sections(groups), environment]
    texts = {name: render(name, title=title, sections=sections) for name in ("report.md", "report.tex")}
    parts = {"title": title, "summary": summary, "problems": problems, "groups": groups, "environment": environment}
    parts |= {"colours": COLOURS, "style": asset("page.css"), "script": asset("page.js")}
    texts["report.html"] = render("report.html", **parts)
    long = DataFrame(long_rows(every), columns=list(LONG), dtype=object)
    for name, made in (("records", long), ("leaderboard", board_frame(found)), ("figures", frame(ranked))):
        texts[f"{name}.csv"] = made.to_csv(index=False, lineterminator="\n")
    texts |= {f"figures/{x.name}.svg": alone(x.svg) for group in groups for page in group.pages for x in page.figures}
    for name, text in texts.items():
        atomic_text(out / name, text, newline="\n")
    return [out / name for name in texts]


def _acceptable(files: Mapping[Path, Record], checked: bool, refused: list[str] | None) -> Mapping[Path, Record]:
    """The records in which scores go the way they go in most; if they are to be ``checked``, those without objections
    that clash with no other. ValueError if there is none, with a line for each, or without ``refused`` for the first
    other one."""
    for find in (_objections, flipped, clashes) if checked else (flipped,):
        found = find(files)
        errors = [f"{path}: {line}" for path, lines in found.items() for line in lines.splitlines()]
        files = {path: record for path, record in files.items() if path not in found}
        if errors and (refused is None or not files):
            raise ValueError("\n".join(errors) if refused is not None else errors[0])
        if refused is not None:
            refused += errors
    return files


def _objections(files: Mapping[Path, Record]) -> dict[Path, str]:
    """Path -> what keeps the record from standing beside other people's, a line each."""
    found = {path: "\n".join(objections(record)) for path, record in files.items()}
    return {path: lines for path, lines in found.items() if lines}


def _title(records: Sequence[Record]) -> str:
    """What was run: "eudp, udp against dreambooth on toyworld, linf 8/255"; "12 protections ..." where it is much."""

    def of(name: str, several: str) -> str:
        found = sorted({str(record["cell"][name]) for record in records} - {"none"})  # type: ignore[literal-required]
        return ", ".join(found) if len(found) <= NAMED else f"{len(found)} {several}"

    protect, attack = of("protect", "protections"), of("attack", "attacks")
    thief = " and ".join(filter(None, (attack if protect else "", of("task", "tasks"))))
    on = f"{of('data', 'data sets')}, {of('budget', 'budgets')}"
    if not protect and not attack:
        return f"{thief} on {of('data', 'data sets')}, nothing protected"
    return f"{protect or attack} against {thief} on {on}"


def _groups(ranked: Sequence[Standings], plots: bool, store: Path) -> list[Group]:
    """The boards, label by label."""
    room = pictures.BYTES // max(1, len(ranked))
    groups = []
    for label, numbered in groupby(enumerate(ranked, start=1), key=lambda item: item[1].board.label):
        same = list(numbered)
        alike = Counter(found.board.subtitle for _, found in same)
        pages = [_board_page(found, number, plots, store, room, alike) for number, found in same]
        groups.append(Group(label, pages, compare.transfer([found.board for _, found in same])))
    return groups


def _board_page(
    found: Standings, number: int, plots: bool, store: Path, room: int, alike: Mapping[str, int]
) -> BoardPage:
    """``alike``: subtitle -> how many boards of the label have it; then the models belong into the title."""
    board = found.board
    details = [leaderboard(board), *(x for make in _OF_BOARD if (x := make(board)) is not None)]
    shown = pictures.pictures(found, store, room)
    names = (board.title, "") if alike[board.subtitle] > 1 else (board.subtitle, board.models)
    return BoardPage(number, board, *names, on_metrics(found, number, plots), details, shown)


def _sections(groups: Sequence[Group]) -> Iterator[Section]:
    """The boards in the order they are read in, where a report is nothing but sections."""
    for group in groups:
        yield Section(group.label)
        for page in group.pages:
            first, *others = page.details
            yield first
            if page.figures:
                yield Section("Figures", 4, figures=page.figures)
            yield from others
        yield from group.further


def _summary(chosen: Chosen) -> Section:
    text = f"{len(chosen.ok)} finished cells, {len(chosen.failed)} failed."
    if chosen.repeated:
        text += f" {chosen.repeated} more records are left out: the same cell is there again, finished."
    limits = ["Results under different labels are never ranked together."]
    if any(record["facts"]["embedded"] for record in chosen.ok):
        limits.append(_EMBEDDED)
    return Section("Records", 2, [text, " ".join(limits)])


def flag_section(boards: Sequence[Board]) -> Section:
    """Everything that speaks against believing a number, with the victims it is about."""
    rows: dict[tuple[str, str, str], list[str]] = {}  # where, flag, victims -> what was run
    for board in boards:
        of_pair: dict[tuple[str, str], set[str]] = {("all", said): set() for said in flags.of_board(board.records)}
        for row in (row for row in board.rows if not row.control):
            for sentence in flags.of_group(row.records, board.floors):
                of_pair.setdefault((f"{row.protect} / {row.attack}", sentence), set())
        for record in board.records:  # those without a protected arm, too
            pair = f"{record['cell']['protect']} / {record['cell']['attack']}"
            for sentence in flags.of_record(record):
                of_pair.setdefault((pair, sentence), set()).add("/".join(map(str, victim(record))))
        for (pair, sentence), who in of_pair.items():
            key = f"{board.label}: {board.title}", sentence, ", ".join(sorted(who)) or "all"
            rows.setdefault(key, []).append(pair)
    names = ("where", "protection / attack", "flag", "victims (subject/seed)")
    return _list("Flags", names, [(where, _some(pairs), said, who) for (where, said, who), pairs in rows.items()])


def _some(names: Sequence[str], between: str = ", ") -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return between.join(names[:LISTED]) + more


def _failed(chosen: Chosen) -> Section:
    """Cells that did not finish, with the last line of their traceback."""
    rows = []
    for path, record in chosen.failed.items():
        cell = record["cell"]
        name = f"{cell['protect']} / {cell['attack']} / {cell['task']} on {cell['data']} {cell['subject']}"
        rows.append((f"{name}, seed {cell['seed']}", last_line(record["error"]), path.name))
    return _list("Failed cells", ("cell", "error", "record"), rows)


def _disagreeing(chosen: Chosen) -> Section:
    """Scores of a cell that two records have as different numbers."""
    rows: dict[tuple[str, str, str], list[str]] = {}  # cell, arm, records -> scores
    for found in chosen.disagree:
        key = found.cell, found.arm, ", ".join(map(str, found.files))
        rows.setdefault(key, []).append("{}: {:.8g}, {:.8g}".format(found.metric, *found.values))
    listed = [(cell, arm, _some(scores, "; "), records) for (cell, arm, records), scores in rows.items()]
    said = "Records of one cell, with the same keys, have other numbers; those of the last file are shown."
    return _list("Cells with two results", ("cell", "arm", "scores", "records"), listed, said)


def _missing(boards: Sequence[Board]) -> Section:
    """Cells that would complete a board, a table for each: victims that a protection met, but not under every attack
    that it met."""
    tables: list[DataFrame] = []
    for board in boards:
        lacking: dict[tuple[str, str], list[str]] = {}  # attacks, victims -> protections
        protected = [record for record in board.records if "protected" in record["arms"]]
        for protect, mine in sorted(grouped(protected, lambda record: record["cell"]["protect"]).items()):
            every = set(map(victim, mine))
            attacks: dict[str, list[str]] = {}  # victims -> attacks
            for attack, part in sorted(grouped(mine, lambda record: record["cell"]["attack"]).items()):
                if left := sorted(every - set(map(victim, part))):
                    attacks.setdefault(", ".join(f"{subject}/{seed}" for subject, seed in left), []).append(attack)
            for victims, names in attacks.items():
                lacking.setdefault((_some(names), victims), []).append(protect)
        rows = [(_some(protects), attack, victims) for (attack, victims), protects in lacking.items()]
        columns = ("protections", "attacks", "victims without a record (subject/seed)")
        made = _list("", columns, rows)
        for table in made.tables:
            table.attrs |= {"caption": f"{board.label}: {board.title}", "above": True}
        tables += made.tables
    return Section("Missing cells", 2, [] if tables else ["None."], tables)


def _environment(records: Sequence[Record]) -> Section:
    """The distinct provenances and how many records each has."""

    def made_by(record: Record) -> tuple[str, ...]:
        p = record["provenance"]
        packages = ", ".join(f"{k} {v}" for k, v in sorted((p.get("packages") or {}).items()))
        dirty = " (dirty)" if p.get("dirty") else ""
        commit = p.get("commit")
        code = f"{commit[:12]}{dirty}" if commit else f"package {p.get('version')}"
        return code, str(p.get("device")), str(p.get("python")), packages

    counted = sorted(Counter(map(made_by, records)).items(), key=lambda item: (-item[1], item[0]))
    rows = [(str(count), *key) for key, count in counted]
    return _list("Environment", ("records", "code", "device", "python", "packages"), rows)


def _list(title: str, names: Sequence[str], rows: Sequence[tuple[str, ...]], *text: str) -> Section:
    """A section with one table of words only, its columns called ``names``, and ``text`` above it."""
    made = DataFrame(rows, columns=list(names)).set_index(list(names))
    return Section(title, 2, text, [made]) if rows else Section(title, 2, ["None."])
