"""Leaderboards: protections by attacks for one task, data set, budget and set of models; never across labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pandas import DataFrame

from udpbench.benchmark.arms import ARMS, CONTROLS
from udpbench.results.intervals import generator, seed_sd
from udpbench.results.record import MetricInfo, metrics_of, of_edits
from udpbench.results.report.render import Section, table
from udpbench.results.schema import CELL, EXTRA, Record
from udpbench.results.stats import Summary, derived, differences, summarise, values, victim
from udpbench.results.words import ARROW, box_of, interval_text, mean_text, percent, recovery_text, significant

_ROW = ("protect", "attack", "subject", "seed")  # what may differ within a board
_OF_EDITS = ("reseeded", "clean_attacked")  # how much edits differ for no reason, and by the attack alone
NO_CLAIM = "†"
_NUMBERS = ("effect", "residual", "recovery")
_COLUMNS = [
    *("label", *(name for name in (*CELL, *EXTRA) if name not in _ROW), "preset", "protect", "attack", "control"),
    *("metric", "better_protected", "victims", *(f"{x}{end}" for x in _NUMBERS for end in ("", "_low", "_high"))),
    *("recovery_reason", "floor"),
]


@dataclass(frozen=True)
class Row:
    """One protection under one attack, or a control ``arm``; ``summaries``: metric -> numbers."""

    protect: str
    attack: str
    records: list[Record]
    summaries: dict[str, Summary]
    arm: str = "protected"

    @property
    def control(self) -> bool:
        """Whether this is no protection but what protections are compared with."""
        return self.arm != "protected"


@dataclass(frozen=True)
class Board:
    """Everything that may be ranked together.

    ``names``: what all its records share. ``floors``: metric -> what an effect must exceed to be claimed, or None: the
    seed SD (pooled spread of clean victims over seeds), or, of edits, the mean effect of noise. ``shown``: metrics to
    show, none: the primary ones.
    """

    label: str
    names: dict[str, str]
    records: list[Record]
    metrics: dict[str, MetricInfo]
    floors: dict[str, float | None]
    rows: list[Row] = field(default_factory=list)
    shown: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Task, data, budget, models and what else all records share."""
        n = self.names
        return f"{self.subtitle}, {n['surrogate']} -> {n['victim']}, purifier {n['purifier']}"

    @property
    def subtitle(self) -> str:
        """The title without the models."""
        n = self.names
        prompt = f", owner prompt {n['owner_prompt']}" if "owner_prompt" in n else ""
        protected = float(n["protected_fraction"])
        fraction = f", {percent(protected)} protected" if protected < 1 else ""
        preset = "" if n["preset"] == "matched" else f", {n['preset']} settings"
        return f"{n['task']} on {n['data']}, {n['budget']}{prompt}{fraction}{preset}"

    @property
    def ranked_by(self) -> list[str]:
        """The metrics shown in the leaderboard: those asked for, else the primary ones, or all if there are none."""
        if self.shown:
            return [m for m in self.shown if m in self.metrics]
        return [m for m, info in self.metrics.items() if info["primary"]] or list(self.metrics)


def boards(records: Sequence[Record], seed: int = 0, every: Sequence[Record] | None = None) -> list[Board]:
    """Group and summarise ``records``; sorted by label, then by names.

    Protections with released settings are not ranked beside those matched in steps and work. ``every``: where clean
    victims of further seeds may be found, if that is more than ``records``.
    """
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[Record]] = {}
    for record in records:
        names = {k: str(v) for k, v in record["cell"].items() if k not in _ROW}
        names |= {name: str(record["facts"][name]) for name in ("preset", "protected_fraction")}  # type: ignore[literal-required]
        groups.setdefault((record["label"], tuple(sorted(names.items()))), []).append(record)
    every = records if every is None else every
    return [_board(label, dict(names), group, every, seed) for (label, names), group in sorted(groups.items())]


def _board(label: str, names: dict[str, str], group: list[Record], every: Sequence[Record], seed: int) -> Board:
    metrics = metrics_of(group)
    board = Board(label, names, group, metrics, {m: _floor(label, names, group, every, m) for m in metrics})
    rows = list(_rows(board, seed))
    first = next(iter(board.ranked_by), None)

    def place(row: Row) -> tuple[bool, float, str, str]:
        """By effect, controls last as they come."""
        effect = row.summaries[first].effect if first else None
        down = -effect.mean if effect else float("inf")
        return (True, 0.0, "", "") if row.control else (False, down, row.protect, row.attack)

    board.rows.extend(sorted(rows, key=place))
    return board


def _floor(
    label: str, names: dict[str, str], group: Sequence[Record], every: Sequence[Record], metric: str
) -> float | None:
    """Clean victims know nothing of budget, protection or surrogate: those of ``every`` record that shares data, task
    and victim tell how far seeds spread.

    Edits start from the same noise in every arm and do not spread, so that any change at all would count: they have to
    exceed what noise of the same budget does.
    """
    if of_edits(*group):
        effects = differences(group, "noise", "clean", metric)
        return sum(effects.values()) / len(effects) if effects else None
    same = {(k, names[k]) for k in ("data", "task", "victim")}
    alike = [r for r in every if r["label"] == label and same <= {(k, str(v)) for k, v in r["cell"].items()}]
    return seed_sd(values(alike, "clean", metric))


def _rows(board: Board, seed: int) -> Iterator[Row]:
    """Protections by attacks, then controls: noise, and of edits ``_OF_EDITS``."""
    key = (board.label, *board.names.items())
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for arm in ("protected", *CONTROLS, *(_OF_EDITS if of_edits(*board.records) else ())):
        found: dict[tuple[str, str, str], list[Record]] = {}
        for record in (r for r in board.records if arm in r["arms"]):
            protect, attack = record["cell"]["protect"], record["cell"]["attack"]
            if arm != "protected":
                of = [str(record["cell"][name]) for name in ARMS[arm].depends]  # type: ignore[literal-required]
                protect, attack = f"{arm}{' of ' if of else ''}{' / '.join(of)} (control)", "none"
            found.setdefault((arm, protect, attack), []).append(record)
        groups |= dict(sorted(found.items()))
    for (arm, protect, attack), part in groups.items():
        rng = {m: generator(seed, *key, protect, m) for m in board.metrics}  # one effect, one interval for all attacks
        summaries = {m: summarise(part, m, board.floors[m], rng[m], arm) for m in board.metrics}
        yield Row(protect, attack, part, summaries, arm)


def leaderboard(board: Board) -> Section:
    """The ranked table with what is needed to read it."""
    rows = [_cells(row, board) for row in board.rows]
    tables = [table(rows, ("protection", "attack", "box"), f"{board.label}: {board.title}")] if rows else []
    return Section(board.title, 3, _reading(board), tables, in_latex=True)


def _reading(board: Board) -> list[str]:
    floors = [f"{m} {significant(f)}" if (f := board.floors[m]) is not None else f"{m}: none" for m in board.ranked_by]
    floor = "Seed SD (pooled standard deviation of clean victims over seeds)"
    if of_edits(*board.records):
        floor = "Noise floor (mean effect of noise; the arm reseeded shows how much edits differ for no reason at all)"
    base = derived(board.records[0])["residual"][1]
    lines = [
        f"{floor}: {', '.join(floors)}.",
        f"Effect = s(protected) - s(clean), residual = s(purified) - s({base}), + is better protected; "
        "mean over victims [95 % interval]; recovery = 1 - residual/effect. Arrows: direction of better protection.",
    ]
    if base == "clean":
        lines.append("What the attack does to edits by itself (clean_attacked) counts against the recovery.")
    shown = [row.summaries[m] for row in board.rows for m in board.ranked_by]
    if any(s.effect and not s.claimed for s in shown):
        lines.append(f"{NO_CLAIM} the interval does not lie above the floor, or one of the two is missing: no claim.")
    return lines


def effect_text(found: Summary) -> str:
    """An effect with its interval, marked if nothing may be claimed of it."""
    return interval_text(found.effect) + (f" {NO_CLAIM}" if found.effect and not found.claimed else "")


def _cells(row: Row, board: Board) -> dict[str, str]:
    box = "/".join(sorted({box_of(r) for r in row.records}))
    cells = {"protection": row.protect, "attack": row.attack, "box": "-" if row.control else box}
    cells["victims"] = str(len({victim(r) for r in row.records}))
    for metric in board.ranked_by:
        s, named = row.summaries[metric], f"{metric} {ARROW[board.metrics[metric]['better_protected']]}"
        cells[f"{named} effect"] = effect_text(s)
        cells[f"{named} residual"] = interval_text(s.residual)
        cells[f"{named} recovery"] = "-" if row.control else recovery_text(s.recovery)
    cells["rms (/255)"] = mean_text(r["perturbation"].get(row.arm, {}).get("rms") for r in row.records)
    seconds = {} if row.control else _protect_seconds(row)
    cells["protect (s)"] = mean_text(seconds.values())
    cells["UNet images"] = "-" if row.control else mean_text(r["counts"].get("unet_image") for r in row.records)
    return cells


def _protect_seconds(row: Row) -> dict[str, float]:
    """Cache key -> seconds of the distinct protect stages, as measured where they were computed, if that is known."""
    seconds: dict[str, float] = {}
    for record in row.records:
        for stage in record["stages"]:
            if stage["name"] == f"protect {row.protect}" and (not stage["cached"] or stage["key"] not in seconds):
                seconds[stage["key"]] = stage["seconds"]
    return seconds


def board_frame(found: Sequence[Board]) -> DataFrame:
    """Every number behind the leaderboards, all metrics, unrounded."""
    rows = []
    for board in found:
        for row in board.rows:
            head = {"label": board.label, **board.names, "protect": row.protect, "attack": row.attack}
            for metric, s in row.summaries.items():
                better = board.metrics[metric]["better_protected"]
                numbers = {"control": row.control, "metric": metric, "better_protected": better, "floor": s.floor}
                numbers |= {"victims": s.effect.victims if s.effect else 0, "recovery_reason": s.recovery.reason}
                for name, x in zip(_NUMBERS, (s.effect, s.residual, s.recovery.interval)):
                    numbers |= {name: x.mean, f"{name}_low": x.low, f"{name}_high": x.high} if x else {}
                rows.append(head | numbers)
    return DataFrame(rows, columns=_COLUMNS, dtype=object)
