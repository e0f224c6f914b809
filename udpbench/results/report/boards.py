"""Leaderboards: protections by attacks for one task, data set, budget and set of models; never across labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from udpbench.results.intervals import Interval, Recovery, generator, paired_interval, recovery, seed_sd
from udpbench.results.record import MetricInfo, Record, metrics_of, of_edits
from udpbench.results.report.document import Section, Table
from udpbench.results.stats import CONTROLS, Summary, derived, differences, summarise, values, victim
from udpbench.results.table import ARROW, box_of, interval_text, significant

_ROW = ("protect", "attack", "subject", "seed")  # what may differ within a board
NOT_SHOWN = "†"
_DEPENDS = {"noise_rms": "protect", "clean_attacked": "attack"}  # controls that are a row for each of these


@dataclass(frozen=True)
class Row:
    """One protection under one attack, or a control."""

    protect: str
    attack: str
    records: list[Record]
    summaries: dict[str, Summary]  # metric -> numbers
    control: bool = False


@dataclass(frozen=True)
class Board:
    """Everything that may be ranked together.

    ``floors``: metric -> what an effect must exceed to be claimed, or None: the pooled spread of clean victims over
    seeds, or, of edits, the mean effect of noise (see ``_floor``).
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
        n = self.names
        models = f"{n['surrogate']} -> {n['victim']}, purifier {n['purifier']}"
        return f"{n['task']} on {n['data']}, {n['budget']}, {models}{self._further}"

    @property
    def subtitle(self) -> str:
        """The title without the models."""
        n = self.names
        return f"{n['task']} on {n['data']}, {n['budget']}{self._further}"

    @property
    def _further(self) -> str:
        n = self.names
        prompt = f", owner prompt {n['owner_prompt']}" if "owner_prompt" in n else ""
        share = f", {float(n['protected_fraction']):.0%} protected" if "protected_fraction" in n else ""
        settings = ", settings as published" if n.get("settings") == "published" else ""
        return f"{prompt}{share}{settings}"

    @property
    def ranked_by(self) -> list[str]:
        """The metrics shown in the leaderboard: those asked for, else the primary ones, or all if there are none."""
        if self.shown:
            return [m for m in self.shown if m in self.metrics]
        return [m for m, info in self.metrics.items() if info["primary"]] or list(self.metrics)


def boards(records: Sequence[Record], seed: int = 0, every: Sequence[Record] | None = None) -> list[Board]:
    """Group and summarise ``records``; sorted by label, then by names.

    Protections with settings as published are not ranked beside those matched in steps and work. ``every``: where
    clean victims of further seeds may be found, if that is more than ``records``.
    """
    every = records if every is None else every
    groups: dict[tuple[tuple[str, str], ...], list[Record]] = {}
    for record in records:
        names = sorted((k, str(v)) for k, v in record["cell"].items() if k not in _ROW)
        if record["facts"]["preset"] == "released":
            names.append(("settings", "published"))
        groups.setdefault((("label", record["label"]), *names), []).append(record)
    return [_board(dict(key), group, every, seed) for key, group in sorted(groups.items())]


def _board(names: dict[str, str], group: list[Record], every: Sequence[Record], seed: int) -> Board:
    label, key, metrics = names.pop("label"), tuple(names.items()), metrics_of(group)
    alike = _alike(label, names, every)
    floors = {m: _floor(group, alike, m) for m in metrics}
    board = Board(label, names, group, metrics, floors)
    pairs: dict[tuple[str, str], list[Record]] = {}
    for record in group:
        if "protected" in record["arms"]:
            pairs.setdefault((record["cell"]["protect"], record["cell"]["attack"]), []).append(record)
    for (protect, attack), part in sorted(pairs.items()):
        rng = {m: generator(seed, label, *key, protect, m) for m in metrics}  # one effect, one interval for all attacks
        found = {m: summarise(part, m, metrics[m]["better_protected"], floors[m], rng[m]) for m in metrics}
        board.rows.append(Row(protect, attack, part, found))
    board.rows.sort(key=lambda row: (-_rank(row, board), row.protect, row.attack))
    board.rows.extend(_controls(board, key, seed))
    return board


def _floor(group: Sequence[Record], alike: Sequence[Record], metric: str) -> float | None:
    """Clean victims spread over seeds; edits start from the same noise in every arm and do not, so that any change at
    all would count: they have to beat what noise of the same budget does."""
    if not of_edits(*group):
        return seed_sd(values(alike, "clean", metric))
    effects = differences(group, "noise", "clean", metric)
    return sum(effects.values()) / len(effects) if effects else None


def _alike(label: str, names: dict[str, str], every: Sequence[Record]) -> list[Record]:
    """Clean victims know nothing of budget, protection or surrogate: all that share data, task and victim count."""
    same = {(k, names[k]) for k in ("data", "task", "victim")}
    return [r for r in every if r["label"] == label and same <= {(k, str(v)) for k, v in r["cell"].items()}]


def _controls(board: Board, key: tuple[tuple[str, str], ...], seed: int) -> list[Row]:
    """The noise arms as rows of their own; of edits, too, how much they differ for no reason (reseeded) and what the
    attack does to clean pictures."""
    rows = []
    for arm in (*CONTROLS, "reseeded", *(["clean_attacked"] if of_edits(*board.records) else [])):
        holders = [r for r in board.records if arm in r["arms"]]
        of = _DEPENDS.get(arm)
        for which in sorted({r["cell"][of] for r in holders}) if of else [""]:  # type: ignore[literal-required]
            part = [r for r in holders if not of or r["cell"][of] == which]  # type: ignore[literal-required]
            if part:
                name = f"{arm} of {which} (control)" if of else f"{arm} (control)"
                found = {
                    m: _control_summary(part, arm, m, board, generator(seed, board.label, *key, name, m))
                    for m in board.metrics
                }
                rows.append(Row(name, "none", part, found, control=True))
    return rows


def _control_summary(records: list[Record], arm: str, metric: str, board: Board, rng: np.random.Generator) -> Summary:
    effects = differences(records, arm, "clean", metric)
    effect = paired_interval(effects, rng) if effects else None
    return Summary(
        metric,
        board.metrics[metric]["better_protected"],
        effect,
        None,
        recovery(effects, {}, None, rng),
        board.floors[metric],
    )


def _rank(row: Row, board: Board) -> float:
    effect = row.summaries[board.ranked_by[0]].effect if board.ranked_by else None
    return effect.mean if effect is not None else float("-inf")


def leaderboard(board: Board) -> Section:
    """The ranked table with what is needed to read it."""
    shown = board.ranked_by
    headers = ["protection", "attack", "box", "victims"]
    for metric in shown:
        named = f"{metric} {ARROW[board.metrics[metric]['better_protected']]}"
        headers += [f"{named} effect", f"{named} residual", f"{named} recovery"]
    headers += ["rms (levels)", "protect (s)", "UNet images"]
    rows = tuple(tuple(_cells(row, shown)) for row in board.rows)
    table = Table(tuple(headers), rows, f"{board.label}: {board.title}", left=3)
    return Section(board.title, 3, tuple(_reading(board)), (table,), in_latex=True)


def _reading(board: Board) -> list[str]:
    floors = [f"{m} {significant(f)}" if (f := board.floors[m]) is not None else f"{m}: none" for m in board.ranked_by]
    floor = "Seed SD (pooled standard deviation of clean victims over seeds)"
    if of_edits(*board.records):
        floor = "Noise floor (mean effect of noise; the arm reseeded shows how much edits differ for no reason at all)"
    base = derived(board.records[0])["residual"][1]
    lines = [
        f"{floor}: {', '.join(floors)}.",
        f"Effect = s(protected) - s(clean), residual = s(purified) - s({base}), + is what the owner wants; "
        "mean over victims [95 % interval]; recovery = 1 - residual/effect. Arrows: what the owner wants of the score.",
    ]
    if base == "clean":
        lines.append("What the attack does to edits by itself (clean_attacked) counts against the recovery.")
    if any(
        not above_floor(s.effect, s.floor)
        for row in board.rows
        for m in board.ranked_by
        if (s := row.summaries[m]).effect
    ):
        lines.append(f"{NOT_SHOWN} the interval does not lie above the floor, or one of the two is missing: no claim.")
    return lines


def above_floor(effect: Interval | None, floor: float | None) -> bool:
    """Whether an effect may be claimed."""
    return effect is not None and floor is not None and effect.low is not None and effect.low > max(floor, 0.0)


def _cells(row: Row, shown: list[str]) -> list[str]:
    knowledge = sorted({box_of(r["knowledge"]) for r in row.records})
    cells = [
        row.protect,
        row.attack,
        "-" if row.control else "/".join(knowledge),
        str(len({victim(r) for r in row.records})),
    ]
    for metric in shown:
        s = row.summaries[metric]
        mark = "" if s.effect is None or above_floor(s.effect, s.floor) else f" {NOT_SHOWN}"
        cells += [interval_text(s.effect) + mark, interval_text(s.residual), recovery_text(s.recovery, row.control)]
    arm = row.protect.partition(" ")[0] if row.control else "protected"
    return [
        *cells,
        _mean([r["perturbation"].get(arm, {}).get("rms") for r in row.records]),
        *(("-", "-") if row.control else _costs(row)),
    ]


def recovery_text(x: Recovery, control: bool = False) -> str:
    """ "45 % [30 %, 60 %]", or why not."""
    if x.interval is None:
        return "-" if control or x.reason == "n/a: not attacked" else str(x.reason)
    mean, low, high = (
        f"{v:.0%}".replace("%", " %") for v in (x.interval.mean, x.interval.low or 0.0, x.interval.high or 0.0)
    )
    return f"{mean} [{low}, {high}]"


def _costs(row: Row) -> tuple[str, str]:
    """(mean seconds of the distinct protect stages, computed before cached; mean UNet images) of a row."""
    seconds: dict[str, float] = {}
    made = f"protect {row.protect.partition(' (')[0]}"  # of a variant without the settings that the report adds
    for record in row.records:
        for stage in record["stages"]:
            if stage["name"] == made and (not stage["cached"] or stage["key"] not in seconds):
                seconds[stage["key"]] = stage["seconds"]
    return _mean(list(seconds.values())), _mean([r["counts"].get("unet_image") for r in row.records])


def _mean(found: Sequence[float | None]) -> str:
    known = [x for x in found if x is not None]
    return significant(sum(known) / len(known)) if known else "-"
