"""Small charts: points with intervals, rows of intervals, lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise, product

from udpbench.results.report.svg import Scale, drawing, element, segment, text
from udpbench.results.words import significant

WIDTH, HEIGHT = 420, 300
LETTER, LINE = 6.6, 13.0  # px that a letter of a name takes, and its line
DIGIT = 7.4  # px of a digit where digits are wide
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Mark:
    """A point with an interval in y; ``kind``: "p" a protection, "c" a control, "w" a worst case."""

    name: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    kind: str = "p"

    @property
    def ends(self) -> tuple[float, float]:
        """The interval; without one the point."""
        return (self.y, self.y) if self.low is None or self.high is None else (self.low, self.high)


def _within(marks: Sequence[Mark], others: Sequence[float]) -> list[float]:
    """What an axis spans: means and ``others``, and of the intervals as much as leaves the means apart."""
    means = [*(mark.y for mark in marks), *others]
    low, high = min(means), max(means)
    room = 1.5 * (high - low) or math.inf
    return [*means, *(min(max(end, low - room), high + room) for mark in marks for end in mark.ends)]


def _x_axis(scale: Scale, top: float, bottom: float, label: str) -> list[str]:
    parts = [segment(scale(x), top, scale(x), bottom, "r") for x in scale.ticks()]
    for x in scale.ticks():
        number = _number(x)
        parts.append(text(min(scale(x), WIDTH - DIGIT / 2 * len(number)), bottom + 14, number, "middle"))
    return [*parts, text(WIDTH / 2, bottom + 30, label, "middle")]


def _y_axis(scale: Scale, left: float, right: float) -> list[str]:
    grid = (segment(left, scale(y), right, scale(y), "r") for y in scale.ticks())
    numbers = (text(left - 5, scale(y) + 4, _number(y), "end") for y in scale.ticks())
    return [line + number for line, number in zip(grid, numbers, strict=True)]


def _left(scale: Scale) -> float:
    """Where a drawing begins, with room for the numbers of its y axis."""
    return max(46.0, 6 + DIGIT * max((len(_number(y)) for y in scale.ticks()), default=0))


def _short(name: str, most: int) -> str:
    """The name, or as much of it as ``most`` letters hold."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _number(x: float) -> str:
    return f"{x:g}" if abs(x) < 1e5 else significant(x, 1)


def scatter(
    marks: Sequence[Mark],
    labels: tuple[str, str],
    floor: float | None,
    line: Sequence[tuple[float, float]] = (),
    log: bool = False,
) -> str:
    """Points with intervals and names; ``labels`` of x and y; ``line``: of the controls; grey: within the ``floor``."""
    height = HEIGHT + 5.0 * max(0, len(marks) - 12)  # room for names
    right, top, bottom = WIDTH - 10.0, 24.0, height - 40.0
    y = Scale(_within(marks, [*(y for _, y in line), 0.0]), bottom, top)
    left = _left(y)
    x = Scale([*(mark.x for mark in marks), *(x for x, _ in line)], left, right, log)
    parts = [_band(x.start, y(floor), x.end, y(-floor), top, bottom)] if floor else []
    parts += _x_axis(x, top, bottom, labels[0])
    parts += _y_axis(y, left, right)
    parts += [segment(left, y(0), right, y(0), "z"), text(4, 12, labels[1])]
    drawn = [(x(a), y(b)) for a, b in line]
    if drawn:
        parts.append(_line(drawn, "c l d"))
    at = [(x(mark.x), y(mark.y)) for mark in marks]
    whiskers = [(a, max(y(m.ends[1]), top), a, min(y(m.ends[0]), bottom)) for m, (a, _) in zip(marks, at, strict=True)]
    dots = [(a - 5, b - 5, a + 5, b + 5) for a, b in at]
    names = Names((left, top, right, bottom), [*dots, (left, y(0) - 1, right, y(0) + 1), *_covered(drawn)], whiskers)
    for mark, point, whisker in zip(marks, at, whiskers, strict=True):
        interval = segment(*whisker, f"{mark.kind} k")
        parts.append(_with_tooltip(mark, interval + _dot(*point, mark.kind)) + names.beside(point, mark.name))
    return drawing(parts, WIDTH, height, f"{labels[1]} against {labels[0]}")


def _band(x1: float, y1: float, x2: float, y2: float, top: float, bottom: float) -> str:
    y1, y2 = max(y1, top), min(y2, bottom)
    return element("rect", x=x1, y=y1, width=x2 - x1, height=max(y2 - y1, 0.0), cls="b")


def _line(points: Sequence[tuple[float, float]], cls: str, **further: str) -> str:
    return element("path", d="M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points), cls=cls, **further)


def _dot(x: float, y: float, kind: str) -> str:
    if kind == "c":
        return element("rect", x=x - 3.5, y=y - 3.5, width=7.0, height=7.0, cls=kind)
    return element("circle", cx=x, cy=y, r=4.0, cls=kind)


def _with_tooltip(mark: Mark, inside: str) -> str:
    """``inside`` with the name and the numbers of ``mark`` as its tooltip."""
    between = "" if mark.low is None or mark.high is None else f" [{significant(mark.low)}, {significant(mark.high)}]"
    return element("g", element("title", escape(f"{mark.name}: {significant(mark.y, signed=True)}{between}")) + inside)


class Names:
    """Finds room for names near their points.

    ``within``: the drawing's box; ``taken``: boxes that no name may cover; ``crossed``: those that one should not. A
    box is (left, top, right, bottom) in px.
    """

    letter = 7.4  # px, of wide letters: names must not touch
    places = sorted(product((8, -8, 26, -26, 52, -52, 84, -84), range(-110, 120, 6)), key=lambda at: math.hypot(*at))

    def __init__(self, within: Box, taken: Sequence[Box], crossed: Sequence[Box]) -> None:
        self.within, self.taken, self.crossed = within, list(taken), list(crossed)

    def beside(self, at: tuple[float, float], name: str) -> str:
        """The name, with a line to its point ``at`` if it is not next to it; nothing where there is no room."""
        wide, best = self.letter * len(name), math.inf
        found: tuple[Box, list[Box]] | None = None
        for dx, dy in self.places:
            x1, y1 = at[0] + dx - (wide if dx < 0 else 0), at[1] + dy - LINE / 2
            box = (x1, y1, x1 + wide, y1 + LINE)
            if (far := math.hypot(dx, dy)) >= best:
                break
            cost = far + 10 * sum(_meet(box, other) for other in self.crossed)
            if cost >= best or not self._free(box):
                continue
            lead = _covered([at, (at[0] + dx * 0.97, at[1] + dy)])[2:] if far > 14 else []
            if not any(_meet(part, other) for part in lead for other in self.taken):
                best, found = cost, (box, lead)
        if found is None:
            return ""
        box, lead = found
        self.taken += [box, *lead]
        end, anchor = (box[0], "start") if box[0] > at[0] else (box[2], "end")
        line = segment(*at, end, box[1] + LINE / 2, "z t") if lead else ""
        return line + text(end, box[3] - 3, name, anchor, "n")

    def _free(self, box: Box) -> bool:
        left, top, right, bottom = self.within
        inside = left <= box[0] and box[2] <= right and top <= box[1] and box[3] <= bottom
        return inside and not any(_meet(box, other) for other in self.taken)


def _meet(one: Box, two: Box) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


def _covered(points: Sequence[tuple[float, float]]) -> list[Box]:
    """Small boxes along a line through the points, 4 px apart."""
    found = []
    for (x1, y1), (x2, y2) in pairwise(points):
        n = max(1, math.ceil(math.hypot(x2 - x1, y2 - y1) / 4))
        along = ((x1 + (x2 - x1) * i / n, y1 + (y2 - y1) * i / n) for i in range(n + 1))
        found += [(x - 1, y - 1, x + 1, y + 1) for x, y in along]
    return found


def forest(rows: Mapping[str, Sequence[Mark]], label: str, floor: float | None) -> str:
    """A row of intervals for each name; grey: within the ``floor``. The x of marks says nothing."""
    most = 26  # letters of a name
    left, right, top, height = min(most, max(map(len, rows))) * LETTER + 12, WIDTH - 12.0, 8.0, 20.0
    bottom = top + height * len(rows)
    x = Scale(_within([mark for marks in rows.values() for mark in marks], [0.0]), left, right)
    parts = [_band(max(x(-floor), left), top, min(x(floor), right), bottom, top, bottom)] if floor else []
    parts += [*_x_axis(x, top, bottom, label), segment(x(0), top, x(0), bottom, "z")]
    for i, (name, marks) in enumerate(rows.items()):
        middle = top + height * (i + 0.5)
        shown = _short(name, most)
        parts.append(element("g", element("title", escape(name)) + text(left - 8, middle + 4, shown, "end", "n")))
        for mark, shift in zip(marks, (0.0,) if len(marks) == 1 else (-3.5, 3.5)):
            y, ends = middle + shift, (max(x(mark.ends[0]), left), min(x(mark.ends[1]), right))
            parts.append(
                _with_tooltip(mark, segment(ends[0], y, ends[1], y, f"{mark.kind} k") + _dot(x(mark.y), y, mark.kind))
            )
    return drawing(parts, WIDTH, bottom + 40, label)


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], labels: tuple[str, str]) -> str:
    """A line for each name, which stands at its right end."""
    wide = LETTER * min(22, max(map(len, lines))) + 14
    right, top, bottom = WIDTH - wide, 24.0, HEIGHT - 40.0
    points = [point for line in lines.values() for point in line]
    y = Scale((b for _, b in points), bottom, top)
    left = _left(y)
    x = Scale((a for a, _ in points), left, right)
    parts = _x_axis(x, top, bottom, labels[0])
    parts += _y_axis(y, left, right)
    parts.append(text(4, 12, labels[1]))
    ends = dict(zip(lines, _apart([y(line[-1][1]) for line in lines.values()], LINE, bottom)))
    for i, (name, line) in enumerate(lines.items()):
        colour = f"stroke:hsl({i * 137.5 % 360:.0f} 70% var(--lines))"  # far apart, whatever their number
        path = [(x(a), y(b)) for a, b in line]
        lead = _line([path[-1], (right + 8, ends[name] - 4)], "l", style=f"{colour};stroke-width:.7")
        shown = text(right + 11, ends[name], _short(name, 22), cls="n")
        inside = element("title", escape(name)) + _line(path, "l", style=colour) + lead + shown
        parts.append(element("g", inside))
    return drawing(parts, WIDTH, HEIGHT, f"{labels[1]} against {labels[0]}")


def _apart(at: Sequence[float], least: float, bottom: float) -> list[float]:
    """The heights of names, moved until they are ``least`` apart, none below ``bottom``."""
    order = sorted(range(len(at)), key=lambda i: at[i])
    found = [at[i] + 4 for i in order]
    for i, j in pairwise(range(len(order))):
        found[j] = max(found[j], found[i] + least)
    over = found[-1] - bottom if found else 0.0
    for i in reversed(range(len(order))):
        limit = bottom - (len(order) - 1 - i) * least
        found[i] = min(found[i], limit) if over > 0 else found[i]
    return [found[order.index(i)] for i in range(len(at))]
