"""The parts of a report beside leaderboards and arms: comparisons, curves, flags, failures, environment."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

from udpbench.results import flags
from udpbench.results.record import Record
from udpbench.results.report.arms import arm_rows
from udpbench.results.report.boards import Board
from udpbench.results.report.choose import Chosen
from udpbench.results.report.document import Section, Table
from udpbench.results.stats import CONTROLS, Comparison, compare, compare_attacks, sign, victim
from udpbench.results.table import interval_text, last_line, significant, thiefs_best


def comparisons(board: Board, seed: int = 0) -> Section | None:
    """Paired differences between protections (and to the noise control) on the metrics that rank.

    None with nothing to compare.
    """
    names = sorted({row.protect for row in board.rows if not row.control})
    controls = [arm for arm in CONTROLS if any(arm in r["arms"] for r in board.records)]
    pairs = [*combinations(names, 2), *((a, c) for a in names for c in controls if c not in names)]
    with_arms = [r for r in board.records if "protected" in r["arms"]]
    found = [c for a, b in pairs for arm in ("protected", "purified") for c in compare(with_arms, a, b, arm, seed)]
    text = (
        "Paired on the same subject and seed; + means a protects better. Smallest shown: half the 95 % interval, the "
        "smallest mean difference that would have excluded zero."
    )
    return _compared("Paired comparisons", text, COMPARED, comparison_row, found, board)


def attacks(board: Board, seed: int = 0) -> Section | None:
    """What each attack gives back, and which gives back more, on the metrics that rank.

    None where nothing was attacked.
    """
    purified = [r for r in board.records if "purified" in r["arms"]]
    names = sorted({r["cell"]["attack"] for r in purified})
    pairs = [*((a, "none") for a in names), *combinations(names, 2)]
    found = [c for pair in pairs for c in compare_attacks(purified, *pair, seed)]
    text = (
        "What is left after attack a less what is left after b (none: the protected pictures as they are), paired on "
        "the same subject and seed; + means that b gives the thief more."
    )
    return _compared("Attacks compared", text, ATTACKS, _attack_row, found, board)


def _compared(
    title: str,
    text: str,
    headers: tuple[str, ...],
    row: Callable[[Comparison, float | None], tuple[str, ...]],
    found: Sequence[Comparison],
    board: Board,
) -> Section | None:
    """The section of the comparisons on the metrics that rank; None with nothing to compare."""
    compared = [(c, board.floors[c.metric]) for c in found if c.metric in board.ranked_by]
    if not compared:
        return None
    rows = tuple(row(*pair) for pair in compared)
    return Section(title, 4, (f"{text} {by_chance(compared)}",), (Table(headers, rows, left=3),), in_latex=True)


ATTACKS = ("a - b", "protection", "metric", "difference", "smallest shown", "victims", "verdict")


def _attack_row(c: Comparison, floor: float | None) -> tuple[str, ...]:
    name, *numbers = _numbers(c)
    said = verdict(c, floor)
    if c.difference.excludes_zero and floor is not None:
        gains = c.difference.mean < 0
        said = f"{c.a if gains else c.b} gives back more"
        if c.b == "none":
            said = "gives back" if gains else "spoils even more"
    return name, c.condition["protect"], *numbers, said


COMPARED = ("a - b", "arm", "metric", "difference", "smallest shown", "victims", "verdict")


def by_chance(compared: Sequence[tuple[Comparison, float | None]]) -> str:
    """How many of the intervals would mislead."""
    intervals = sum(c.difference.low is not None for c, _ in compared)
    return (
        f"Without any true difference {significant(0.05 * intervals, 2)} of these {intervals} intervals would exclude "
        "zero by chance."
    )


def comparison_row(c: Comparison, floor: float | None) -> tuple[str, ...]:
    """The cells under ``COMPARED``."""
    name, *numbers = _numbers(c)
    arm = c.arm if c.arm == "protected" else f"{c.arm}: {c.condition['attack']}"
    return name, arm, *numbers, verdict(c, floor)


def _numbers(c: Comparison) -> tuple[str, ...]:
    half = c.difference.half_width
    victims = f"{c.difference.victims}" + (f" ({c.unpaired} unpaired)" if c.unpaired else "")
    least = "-" if half is None else significant(half)
    return f"{c.a} - {c.b}", c.metric, interval_text(c.difference), least, victims


def verdict(c: Comparison, floor: float | None) -> str:
    """What may be said of a comparison."""
    if floor is None:
        return "no floor: nothing claimed"
    if c.difference.low is None:
        return "one victim: nothing claimed"
    if not c.difference.excludes_zero:
        return "no difference shown"
    return f"{c.a if c.difference.mean > 0 else c.b} protects better"


def curves(board: Board) -> Section | None:
    """Scores at multiples of the training steps and at the thief's best stop; None if no record has a curve."""
    rows, judged = [], True
    multiples = sorted({m for r in board.records for part in r["arms"].values() for m in part["curve"]}, key=float)
    if not multiples:
        return None
    for name, arm, records in arm_rows(board):
        having = list({victim(r): r for r in reversed(records) if r["arms"][arm]["curve"]}.values())
        judged &= all(r["arms"][arm].get("curve_validation") for r in having)
        for metric in board.ranked_by if having else ():
            points = [
                [c[m][metric] for r in having if metric in (c := r["arms"][arm]["curve"]).get(m, {})] for m in multiples
            ]
            best = [b[metric] for r in having if metric in (b := thiefs_best(r, arm))]
            stops = ", ".join(f"{m}x" for m in sorted({m for m, _ in best}, key=float))
            shown = f"{significant(fmean(v for _, v in best))} (at {stops})" if best else "-"
            rows.append((name, metric, str(len(having)), *(significant(fmean(p)) if p else "-" for p in points), shown))
    chosen = (
        "chosen on validation references" if judged else "chosen on the reported references, which flatters the thief"
    )
    headers = ("arm", "metric", "victims", *(f"{m}x steps" for m in multiples), "thief's best")
    text = (f"Means over victims. The thief's best stop is {chosen}, victim by victim.",)
    return Section("Training length", 4, text, (Table(headers, tuple(rows), left=2),))


def curve_points(board: Board, metric: str) -> dict[str, list[tuple[float, float]]]:
    """Arm's name -> (multiple of the steps, mean score), for a plot."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, arm, records in arm_rows(board):
        having = {victim(r): r["arms"][arm]["curve"] for r in reversed(records)}
        multiples = sorted({m for c in having.values() for m in c}, key=float)
        points = [
            (float(m), fmean(at))
            for m in multiples
            if (at := [c[m][metric] for c in having.values() if metric in c.get(m, {})])
        ]
        if points:
            found[name] = points
    return found


def flag_section(boards: Sequence[Board]) -> Section:
    """Everything that speaks against believing a number, with the victims it is about."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for board in boards:
        where = f"{board.label}: {board.title}"
        for row in (r for r in board.rows if not r.control):
            for sentence in flags.of_group(row.records, board.floors):
                rows.setdefault((where, f"{row.protect} / {row.attack}", sentence), [])
        for record in board.records:  # those without a protected arm, too
            own = [*record["flags"], *(f for f in flags.of_record(record) if f not in record["flags"])]
            for sentence in own:
                if not sentence.startswith("no seed SD"):  # a matter of the group: it knows the other seeds
                    of = f"{record['cell']['protect']} / {record['cell']['attack']}"
                    rows.setdefault((where, of, sentence), []).append("/".join(map(str, victim(record))))
    if not rows:
        return Section("Flags", 2, ("None.",))
    table = tuple((*key, ", ".join(sorted(set(who))) or "all") for key, who in rows.items())
    return Section(
        "Flags", 2, (), (Table(("where", "protection / attack", "flag", "victims (subject/seed)"), table, left=4),)
    )


def failed_section(chosen: Chosen, folder: Path) -> Section:
    """Cells that did not finish, with the last line of their traceback."""
    if not chosen.failed:
        return Section("Failed cells", 2, ("None.",))
    rows = []
    for path, record in chosen.failed.items():
        cell = record["cell"]
        who = f"{cell['data']} {cell['subject']}, seed {cell['seed']}"
        name = f"{cell['protect']} / {cell['attack']} / {cell['task']} on {who}"
        rows.append((name, last_line(record["error"]), path.relative_to(folder).as_posix()))
    return Section("Failed cells", 2, (), (Table(("cell", "error", "record"), tuple(rows), left=3),))


def environment(records: Sequence[Record]) -> Section:
    """The distinct provenances and how many records each has."""
    seen: dict[str, int] = {}
    for record in records:
        key = json.dumps(record["provenance"], sort_keys=True)
        seen[key] = seen.get(key, 0) + 1
    rows = []
    for key, count in sorted(seen.items(), key=lambda item: (-item[1], item[0])):
        p = json.loads(key)
        packages = ", ".join(f"{k} {v}" for k, v in sorted((p.get("packages") or {}).items()))
        code = (
            (str(p["commit"])[:12] + (" (dirty)" if p.get("dirty") else ""))
            if p.get("commit")
            else f"package {p.get('version')}"
        )
        rows.append((str(count), code, str(p.get("device")), str(p.get("python")), packages))
    return Section(
        "Environment", 2, (), (Table(("records", "code", "device", "python", "packages"), tuple(rows), left=5),)
    )


def better_for_thief(better_protected: str) -> str:
    """Axis note for plots of raw scores."""
    return "down" if sign(better_protected) > 0 else "up"
