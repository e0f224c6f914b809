"""What of a report only the page has: leaderboards and heat maps, board by board; and the maps as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from udpbench.results.intervals import Interval, subjects_in
from udpbench.results.record import of_edits
from udpbench.results.report.boards import COSTS, NO_CLAIM, Board
from udpbench.results.report.figures import figures
from udpbench.results.report.pictures import Shown
from udpbench.results.report.render import Figure, Section, table
from udpbench.results.report.standings import SEVERAL, WORST, Standing, Standings, of_several
from udpbench.results.report.worst import NONE
from udpbench.results.stats import victim
from udpbench.results.words import ARROW, ends_of, interval_text, mean_of, significant, victims_text

FEW = 4  # rows that are no map
MANY = 6  # attacks: beyond, a leaderboard shows the one that is chosen
HEADS = {"gradients": "image gradients", "memory": "MB", "psnr": "PSNR (dB)", "ssim": "SSIM", "rms": "RMS (/255)"}
HINTS = {
    "gradients": "pictures forward and backward through the UNet or the autoencoder, for a victim",
    "seconds": "to protect the pictures of a victim, on the machine that did it",
    "memory": "peak memory of the process",
}

_HEAT = (
    "s - s(clean) after each attack, mean over victims; + is better protected; no protection: the attack's damage. "
    "+3 of +9 (2): only 2 of the row's victims met the attack, and the effect on these is 9; such numbers do not "
    "compare with others of the row. In order as if all had met the same victims. What may be claimed is not marked "
    "here."
)


@dataclass(frozen=True)
class Cell:
    """A cell of a table: ``text``, in small ``more``, a ``value`` to sort by, a ``shade`` from -1 to 1, a ``hint``."""

    text: str = "-"
    more: str = ""
    value: float | None = None
    shade: float | None = None
    hint: str = ""


@dataclass(frozen=True)
class Column:
    """The head of a column; ``of``: the attack it belongs to."""

    text: str
    hint: str = ""
    of: str = ""


@dataclass(frozen=True)
class Row:
    """A row with its name in front. ``claimed``: its first number may be claimed."""

    name: str
    cells: Sequence[Cell]
    control: bool = False
    claimed: bool = False


@dataclass(frozen=True)
class Grid:
    """A table of numbers."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]


@dataclass(frozen=True)
class OnMetric:
    """What a board shows on one metric. ``many``: too many attacks to show each in the leaderboard at once."""

    title: str
    leaderboard: Grid
    heat: Grid | None
    figures: Sequence[Figure]
    many: bool


@dataclass(frozen=True)
class BoardPage:
    """One board: ``parts`` by metric, then ``details``, the sections that all formats have. ``title`` tells it from the
    others of its label; ``models``: those of the cells, if the title does not say them."""

    number: int
    board: Board
    title: str
    models: str
    parts: Sequence[OnMetric]
    details: Sequence[Section]
    pictures: Shown | None = None

    @property
    def edits(self) -> bool:
        """Whether the task edited pictures."""
        return of_edits(*self.board.records)

    @property
    def figures(self) -> list[Figure]:
        """Those of all metrics."""
        return [figure for part in self.parts for figure in part.figures]


def on_metrics(found: Standings, number: int, plots: bool) -> list[OnMetric]:
    """The board's leaderboard, heat map and figures on every metric that ranks."""
    shown = []
    for metric in found.board.ranked_by:
        title = f"{metric} {ARROW[found.board.metrics[metric]['better_protected']]}"
        drawn, many = list(figures(found, metric, number)) if plots else [], len(found.attacks[metric]) > MANY
        shown.append(OnMetric(title, leaderboard(found, metric), heat_map(found, metric), drawn, many))
    return shown


def leaderboard(found: Standings, metric: str) -> Grid:
    """One row a protection: no attack, worst case, each attack, visibility, costs."""
    floor, most = found.board.floors[metric], _most(found, metric)
    shown = [NONE, *([WORST] if found.has_worst(metric) else []), *found.attacks[metric]]
    measured = [name for name in (found.visible, "psnr", "ssim") if any(name in row.changes for row in found.rows)]
    costs = [name for name in COSTS if any(name in row.costs for row in found.rows)]
    columns = [_attack_column(attack) for attack in shown]
    columns += [Column(HEADS.get(name, name), HINTS.get(name, "")) for name in (*measured, *costs, "victims")]
    rows = []
    for row in found.rows:
        left = row.left[metric]
        victims = {victim(record) for record in row.records}
        cells = [_interval(left.get(attack), most, row, metric, attack, floor, len(victims)) for attack in shown]
        numbers = [*(row.changes.get(name) for name in measured), *(row.costs.get(name) for name in costs)]
        n = victims_text(len(victims), subjects_in(victims))
        cells += [*map(_number, numbers), Cell(n, value=len(victims))]
        rows.append(Row(row.name, cells, row.control, NONE in left and left[NONE].exceeds(floor)))
    return Grid(f"{metric}: s - s(clean) with 95 % intervals; + is better protected", columns, rows)


def _attack_column(attack: str) -> Column:
    if attack in (NONE, WORST):
        headings = {
            NONE: ("no attack", "s(protected) - s(clean)"),
            WORST: (WORST, "after the attack that leaves least"),
        }
        return Column(*headings[attack])
    return Column(attack, f"s(purified) - s(clean) after {attack}", of=attack)


def _most(found: Standings, metric: str) -> float:
    """What is shaded fully."""
    rows = [row for row in found.rows if not row.control] or found.rows
    numbers = ((row, attack, x.mean) for row in rows for attack, x in row.left[metric].items())
    shaded = (abs(mean) for row, attack, mean in numbers if row.effect_beside(metric, attack) is None)
    return max(shaded, default=0.0) or 1.0


def _interval(
    x: Interval | None, most: float, row: Standing, metric: str, attack: str, floor: float | None, victims: int
) -> Cell:
    if x is None:
        return Cell()
    mark = "" if x.exceeds(floor) else f" {NO_CLAIM}"
    effect, hint = row.effect_beside(metric, attack), ""
    more = "1 victim" if x.victims == 1 else ends_of(x)
    if effect is not None:
        more += f", {x.victims} victims" if x.victims > 1 else ""
    elif 1 < x.victims < victims:
        more += f" ({x.victims})"
    if attack == WORST:
        more += f", {_attacks(len(row.over[metric]))}"
        hint = _hint(row, metric)
    more += of_several(row, attack)
    return Cell(_beside(x, effect) + mark, more, x.mean, _shade(x, most) if effect is None else None, hint)


def _beside(x: Interval, effect: float | None, scale: float = 0.0) -> str:
    """What is left, "+3.2"; beside the effect on the victims of the attack, "+3.2 of +8.9"."""
    return " of ".join(mean_of(x, *([] if effect is None else [effect]), scale=scale))


def _attacks(n: int) -> str:
    return f"{n} attack{'s' if n != 1 else ''}"


def _hint(row: Standing, metric: str) -> str:
    """Which attacks the worst case takes, and which it is not over."""
    by = ", ".join(f"{name} ({n})" for name, n in row.taken[metric].items())
    left_out = sorted(row.values[metric].keys() - {NONE, *row.over[metric]})
    lacking = f"; left out, for fewer victims met them: {', '.join(left_out)}" if left_out else ""
    return f"attacks taken (victims): {by}{lacking}"


def _shade(x: Interval, most: float) -> float:
    return max(-1.0, min(1.0, x.mean / most))


def _number(x: float | None) -> Cell:
    return Cell() if x is None else Cell(significant(x), value=x)


def heat_map(found: Standings, metric: str) -> Grid | None:
    """Protections by attacks, the attack that leaves least first; None where that is hardly a map."""
    attacks, most = found.attacks[metric], _most(found, metric)
    if not attacks or (len(attacks) < 2 and len(found.rows) < FEW):  # the leaderboard says as much
        return None
    shown = [NONE, *attacks, *([WORST] if found.has_worst(metric) else [])]
    rows = []
    for row in found.rows:
        of = {attack: x for attack, x in row.left[metric].items() if attack in shown}
        victims = max((x.victims for x in of.values()), default=0)
        cells = [_shaded(of.get(attack), most, victims, row, metric, attack) for attack in shown]
        if any(attack in row.left[metric] for attack in attacks):
            rows.append(Row(row.name, cells, row.control))
    return Grid(f"{metric}: s - s(clean), mean over victims", [_attack_column(attack) for attack in shown], rows)


def _shaded(x: Interval | None, most: float, victims: int, row: Standing, metric: str, attack: str) -> Cell:
    if x is None:
        return Cell("")
    effect = row.effect_beside(metric, attack)
    added = (f" ({x.victims})" if x.victims < victims else "") + of_several(row, attack)
    hint = f"{row.name}, {attack}: {interval_text(x)}"
    shade = _shade(x, most) if effect is None else None
    return Cell(_beside(x, effect, most) + added, "", x.mean, shade, hint)


def heat_table(board: Board) -> Section | None:
    """The heat maps of all metrics that rank, without colours; None where there is none."""
    rows, found = [], Standings(board)
    for metric in board.ranked_by:
        if grid := heat_map(found, metric):
            for row in grid.rows:
                cells = {column.text: cell.text for column, cell in zip(grid.columns, row.cells, strict=True)}
                rows.append({"protection": row.name, "metric": metric, **cells})
    text = [_HEAT, SEVERAL] if any(row.several for row in found.rows) else [_HEAT]
    return Section("Heat map", 4, text, [table(rows, ("protection", "metric"))]) if rows else None
