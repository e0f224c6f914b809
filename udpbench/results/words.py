"""Numbers and facts as tables print them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean, stdev

from udpbench.results.intervals import NOT_ATTACKED, Interval, Recovery
from udpbench.results.record import MetricInfo
from udpbench.results.schema import BudgetFacts, Record

ARROW = {"up": "↑", "down": "↓"}
SIGNS = "arrows: direction of better protection"
ROUNDING = 1e-7  # what float32 scores leave of a difference that is 0


def significant(x: float, digits: int = 3, signed: bool = False) -> str:
    """``x`` to ``digits`` significant digits, without an exponent where it can be read.

    1234 -> 1230, 0.05678 -> 0.0568.
    """
    if x == 0:
        return "0"
    places = _places(x, digits)
    x = round(x, places)
    text = f"{x:.{max(places, 0)}f}" if -7 < places < digits + 4 else f"{x:.{digits - 1}e}"
    return f"+{text}" if signed and x > 0 else text


def _places(x: float, digits: int) -> int:
    """The decimal place of the last of ``digits`` significant digits of a number that is not 0."""
    places = digits - 1 - math.floor(math.log10(abs(x)))
    return digits - 1 - math.floor(math.log10(abs(round(x, places))))  # rounding may add a digit: 9.999 -> 10.0


def together(*found: float, scale: float = 0.0) -> list[str]:
    """Signed numbers that are read together, to the decimal place at which the largest of them, or ``scale``, has
    three significant digits: 0.0014, -1.75, 1.76 -> "+0.00", "-1.75", "+1.76"."""
    largest = max(scale, *map(abs, found))
    places = _places(largest, 3) if largest else 0
    if not 0 <= places < 7:  # more than is written out
        return [significant(x, signed=True) for x in found]
    return [f"{x:+.{places}f}" if x else "0" for x in found]


def percent(x: float) -> str:
    """A fraction in whole percent: 0.456 -> "46 %"."""
    return f"{100 * x:z.0f} %"


def percent_below(x: float, limit: float) -> str:
    """A fraction below ``limit`` with as many digits as show that it is: 0.296 below 0.3 -> "29.6%"."""
    digits = max(0, math.ceil(-math.log10(100 * (limit - x))))
    return f"{x:z.{digits}%}"


def mean_text(found: Iterable[float | None]) -> str:
    """The mean of what is there, "-" if nothing is."""
    known = [x for x in found if x is not None]
    return significant(fmean(known)) if known else "-"


def spread_text(found: Iterable[float]) -> str:
    """Mean ± standard deviation; of one number the number, of none "-"."""
    known = list(found)
    return mean_text(known) + (f" ± {significant(stdev(known), 2)}" if len(known) > 1 else "")


def mean_of(x: Interval, *beside: float, scale: float = 0.0) -> list[str]:
    """The mean of an interval, then numbers ``beside`` it, read together with its ends and ``scale`` (`together`);
    what rounding leaves of a difference that is 0 is 0."""
    low, high = (x.mean, x.mean) if x.low is None or x.high is None else (x.low, x.high)
    mean = 0.0 if abs(x.mean) < max(ROUNDING, 1e-12 * (high - low)) else x.mean
    return together(mean, *beside, scale=max(scale, abs(low), abs(high)))


def interval_text(x: Interval | None) -> str:
    """Mean and interval: "+0.12 [+0.05, +0.19]"; without an interval why, "+0.12 (1 victim)"."""
    return "-" if x is None else f"{mean_of(x)[0]} {ends_of(x)}"


def ends_of(x: Interval) -> str:
    """The interval, "[+0.05, +0.19]"; "(1 victim)", or that victims agree to the last digit: neither has one."""
    if x.low is None or x.high is None:
        return f"({x.victims} victim{'s' if x.victims > 1 else ''})"
    if not x.differ:
        return "(victims do not differ)"
    low, high = together(x.low, x.high, scale=abs(x.mean))
    return f"[{low}, {high}]"


def victims_text(victims: int, subjects: int) -> str:
    """How many victims; "3 (1 subject)" where they are trainings of a single one."""
    return f"{victims} (1 subject)" if subjects == 1 < victims else str(victims)


def recovery_text(x: Recovery) -> str:
    """ "45 % [30 %, 60 %]", or why not; "-" where nothing was attacked."""
    if x.interval is None:
        return "-" if x.reason == NOT_ATTACKED else str(x.reason)
    return f"{percent(x.interval.mean)} [{percent(x.interval.low or 0.0)}, {percent(x.interval.high or 0.0)}]"


def metric_text(name: str, about: MetricInfo) -> str:
    """The metric's name, marked * if primary, with an arrow for the direction of better protection."""
    return f"{name}{'*' if about['primary'] else ''} {ARROW[about['better_protected']]}"


def budget_text(budget: BudgetFacts | None, name: str) -> str:
    """The bound and its unit, "linf 8/255"; a distance and the bound of what is scaled to it, "lite1 0.4 in linf
    16/255"; of a budget of no known kind its ``name``."""
    if not budget:
        return name
    bound = f"{budget.get('inner', budget['kind'])} {budget['eps']:g}/255"
    return f"{budget['network']} {budget['distance']:g} in {bound}" if "distance" in budget else bound


def box_of(record: Record) -> str:
    """What the owner knew of the thief's models and prompt.

    White box: the weights of VAE and UNet are the same; black box: neither; grey box: one of them (the VAE, as a rule).
    """
    known = record["knowledge"]
    same = sum(bool(known.get(part)) for part in ("same_vae", "same_unet"))
    prompt = "" if known.get("same_prompt") else ", prompt unknown"
    return f"{('black', 'grey', 'white')[same]} box{prompt}"


def last_line(traceback: str | None) -> str:
    """The last line of a traceback that says anything."""
    lines = [line for line in (traceback or "").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no traceback"
