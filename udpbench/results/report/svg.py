"""What charts are drawn with: scales and elements of SVG. Drawings take their colours from the page, and bring their
own where they stand alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

TICKS = 6  # on an axis

STYLE = """
:root{--lines:33%;--ink:#1d2430;--soft:#5d6675;--rule:#d9dee6;--band:#e8ebf0;--blue:#0b62b8;--orange:#b84a00}
@media(prefers-color-scheme:dark){
:root{--lines:65%;--ink:#e6e9ef;--soft:#a2abba;--rule:#39414e;--band:#272d38;--blue:#6cb2ff;--orange:#ff9c57}}
svg{font:12px system-ui,sans-serif}svg text{fill:var(--soft)}svg .n{fill:var(--ink)}svg .b{fill:var(--band)}
svg .r{stroke:var(--rule)}svg .z{stroke:var(--soft)}svg .p{fill:var(--blue);stroke:var(--blue)}
svg .c{fill:var(--orange);stroke:var(--orange)}svg .w{fill:none;stroke:var(--orange);stroke-width:2}
svg .k{stroke-width:1.4;fill:none}svg .l{fill:none;stroke-width:1.8}svg .t{stroke-width:.6}svg .d{stroke-dasharray:5 4}
"""


class Scale:
    """From values to px: ``start`` at the least of ``values`` and ``end`` at the largest, with some room beyond.

    ``log``: logarithmic, if the values, which are positive then, are far apart.
    """

    def __init__(
        self, values: Iterable[float], start: float, end: float, log: bool = False, room: float = 0.06
    ) -> None:
        given = list(values)
        self.start, self.end = start, end
        self.log = log and max(given) > 8 * min(given)  # else few round values lie within
        known = [self._of(x) for x in given]
        low, high = min(known), max(known)
        spread = high - low or abs(high) or 1.0
        self.low, self.high = low - room * spread, high + room * spread

    def _of(self, x: float) -> float:
        return math.log10(x) if self.log else x

    def __call__(self, x: float) -> float:
        return self.start + (self.end - self.start) * (self._of(x) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values within, about ``TICKS``."""
        if self.log:
            return self._log_ticks()
        rough = (self.high - self.low) / TICKS
        power = 10 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [i * step for i in range(first, last + 1)]

    def _log_ticks(self) -> list[float]:
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        for parts in ((1, 2, 5), (1, 3), (1,)):
            every = [m * 10.0**k for k in decades for m in parts]
            found = [x for x in every if self.low <= math.log10(x) <= self.high]
            if len(found) <= TICKS:
                break
        return found


def element(name: str, inside: str = "", **attributes: object) -> str:
    """An element with its attributes escaped; ``inside`` is markup. cls stands for class, _ for -."""
    shown = {k.replace("cls", "class").replace("_", "-"): v for k, v in attributes.items()}
    written = "".join(f' {k}="{escape(f"{v:.1f}" if isinstance(v, float) else str(v))}"' for k, v in shown.items())
    return f"<{name}{written}>{inside}</{name}>"


def text(x: float, y: float, said: str, anchor: str = "start", cls: str = "") -> str:
    """One line of plain text."""
    return element("text", escape(said), x=x, y=y, text_anchor=anchor, **({"cls": cls} if cls else {}))


def segment(x1: float, y1: float, x2: float, y2: float, cls: str) -> str:
    """A straight line."""
    return element("path", d=f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}", cls=cls)


def drawing(parts: Sequence[str], width: float, height: float, said: str) -> str:
    """The whole picture, with its words for those who do not see it."""
    inside = "".join(parts)
    label = escape(said)
    size = f'viewBox="0 0 {width:g} {height:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">{inside}</svg>'


def alone(svg: str) -> str:
    """A drawing as a file of its own: with its colours."""
    return svg.replace(">", f"><style>{STYLE}</style>", 1) + "\n"
