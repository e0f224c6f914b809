"""From a folder of records to the files of a report."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from udpbench.core.atomic import atomic_write
from udpbench.results.record import EXTRA, LONG, Record, long_rows, read_files
from udpbench.results.report import arms, sections
from udpbench.results.report.boards import Board, boards, leaderboard
from udpbench.results.report.choose import Chosen, choose
from udpbench.results.report.document import Document, Figure, Section
from udpbench.results.report.render import latex, markdown, page
from udpbench.results.report.transfer import transfer
from udpbench.results.stats import Summary

_BOARD_COLUMNS = (
    "label", "data", "budget", "task", "surrogate", "victim", "purifier", *EXTRA, "settings", "protect", "attack",
    "control", "metric", "better_protected", "victims", "effect", "effect_low", "effect_high", "residual", "residual_low",
    "residual_high", "recovery", "recovery_low", "recovery_high", "recovery_reason", "seed_sd",
)  # fmt: skip


def write_report(folder: Path, out: Path, title: str, plots: bool = True) -> list[Path]:
    """Read every record under ``folder`` and write the report to ``out``; returns the files.

    report.md, report.html, report.tex, records.csv, leaderboard.csv and figures/*.png. The same records give the same
    bytes. Raises ValueError if the folder holds no record or a broken one.
    """
    files = read_files(folder)
    chosen = choose(files)
    found = boards(chosen.ok)
    document = build(title, chosen, found, folder, plots)
    texts = {
        "report.md": markdown(document),
        "report.html": page(document),
        "report.tex": latex(document),
        "records.csv": records_csv([*chosen.ok, *chosen.failed.values()]),
        "leaderboard.csv": board_csv(found),
    }
    written = [_write(out / name, text.encode()) for name, text in texts.items()]
    drawn = [block for section in document.sections for block in section.blocks if isinstance(block, Figure)]
    return written + [_write(out / "figures" / f"{figure.name}.png", figure.png) for figure in drawn]


def build(title: str, chosen: Chosen, found: Sequence[Board], folder: Path, plots: bool) -> Document:
    """The whole report, in the order it is read in."""
    parts = [_summary(chosen)]
    for label, group in groupby(enumerate(found, start=1), key=lambda numbered: numbered[1].label):
        parts.append(Section(label, 2))
        same = list(group)
        for number, board in same:
            parts += [leaderboard(board), *_figures(board, number, plots), arms.arm_means(board)]
            further = (arms.learning, arms.pictures, sections.comparisons, sections.attacks, sections.curves)
            parts += [part for make in further if (part := make(board)) is not None]
        parts += transfer([board for _, board in same])
    every = [*chosen.ok, *chosen.failed.values()]
    parts += [sections.flag_section(found), sections.failed_section(chosen, folder), sections.environment(every)]
    return Document(title, tuple(parts))


def _summary(chosen: Chosen) -> Section:
    text = f"{len(chosen.ok)} finished cells, {len(chosen.failed)} failed."
    if chosen.repeated:
        text += f" {chosen.repeated} more records are left out: the same cell is there again, finished."
    limit = (
        "Results under different labels are never ranked together; the embedded world says whether code and "
        "comparisons work, not how strong a protection is on large models."
    )
    return Section("Records", 2, (text, limit))


def _figures(board: Board, number: int, plots: bool) -> list[Section]:
    if not plots:
        return []
    from udpbench.results.report.plots import figures

    drawn = figures(board, number)
    return [Section("Figures", 4, (), tuple(drawn))] if drawn else []


def records_csv(records: Sequence[Record]) -> str:
    """The long table, one row per cell, arm and metric."""
    return _csv(LONG, long_rows(records))


def board_csv(found: Sequence[Board]) -> str:
    """Every number behind the leaderboards, all metrics, unrounded."""
    rows = []
    for board in found:
        for row in board.rows:
            head = {
                "label": board.label,
                **board.names,
                "protect": row.protect,
                "attack": row.attack,
                "control": row.control,
            }
            rows += [{**head, **_numbers(summary)} for summary in row.summaries.values()]
    return _csv(_BOARD_COLUMNS, rows)


def _numbers(s: Summary) -> dict[str, object]:
    found: dict[str, object] = {"metric": s.metric, "better_protected": s.better_protected, "seed_sd": s.floor}
    found |= {"victims": s.effect.victims if s.effect else 0, "recovery_reason": s.recovery.reason}
    for name, x in (("effect", s.effect), ("residual", s.residual), ("recovery", s.recovery.interval)):
        if x is not None:
            found |= {name: x.mean, f"{name}_low": x.low, f"{name}_high": x.high}
    return found


def _csv(columns: Sequence[str], rows: Sequence[dict[str, object]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _write(path: Path, data: bytes) -> Path:
    with atomic_write(path) as beside:
        beside.write_bytes(data)
    return path
