"""Means over victims with their intervals, the seed SD and recovery: numbers in, numbers out.

The unit of replication is a victim, one (subject, seed). Every function is pure; chance comes from the generator
handed in.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

import numpy as np

Key = tuple[str, int]  # (subject, seed)
NOT_ATTACKED = "n/a: not attacked"
RESAMPLES = 20_000  # of 2,000 the ends of an interval, 5 of them beyond each, would hang on which were drawn
LEVEL = 0.95
ALIKE = 1e-6  # of the scores: what differs by no more is equal but for rounding (older records hold float32 means)
DRAWN = 2**20  # subjects that are drawn at a time
Condition = TypeVar("Condition", bound=Hashable)
Unit = TypeVar("Unit", bound=tuple[Any, ...])
_Of = Callable[..., Any]  # a function of columns
FEW = 6  # below this many subjects a t interval, from here on a bootstrap


@dataclass(frozen=True)
class Interval:
    """A mean over victims with its interval.

    ``low`` and ``high`` are None where one victim allows none. ``subjects``: how many there are, 0 of a data set that
    has none, whose victims are trainings on it. ``differ``: whether victims differ by more than scores are rounded.
    """

    mean: float
    low: float | None
    high: float | None
    victims: int
    subjects: int
    method: str  # "t" | "bootstrap" | "none"
    differ: bool = True

    @property
    def half_width(self) -> float | None:
        """Half of the interval: a smaller mean difference would not have excluded zero."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def ends(self) -> tuple[float, float] | None:
        """``low`` and ``high`` if victims differ. A few that agree by chance, as scores that count pictures often do,
        say nothing of how far others would lie: then None, as for one victim."""
        return None if self.low is None or self.high is None or not self.differ else (self.low, self.high)

    @property
    def of_one_subject(self) -> bool:
        """Whether it is over seeds of a single subject: it says nothing of others."""
        return self.subjects == 1

    def exceeds(self, floor: float | None) -> bool:
        """Whether the whole interval, of victims that differ and of more than one subject, lies above zero and above
        ``floor``, which must be known."""
        if self.ends is None or self.of_one_subject or floor is None:
            return False
        return self.ends[0] > max(floor, 0.0)

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval, of victims that differ and of more than one subject, lies on one side of zero."""
        return self.ends is not None and not self.of_one_subject and self.ends[0] * self.ends[1] > 0


@dataclass(frozen=True)
class Recovery:
    """The fraction of the effect that an attack gave back, or ``reason``: why there is none to print."""

    interval: Interval | None
    reason: str | None = None


def generator(seed: int, *key: object) -> np.random.Generator:
    """The generator that belongs to ``key``: an interval is the same whatever else a report holds."""
    text = "/".join(map(str, (seed, *key)))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))


def seed_sd(clean: Mapping[Key, float]) -> float | None:
    """Pooled standard deviation of clean victims over seeds within subject; None where no subject has two seeds that
    differ by more than rounding: seeds that agree, as on a score that counts pictures, do not say that none differ."""
    return _pooled_sd(clean)[0]


def seeds_behind(clean: Mapping[Key, float]) -> tuple[int, int]:
    """The degrees of freedom of the seed SD, and how many subjects it is of: those with two seeds."""
    seeds = Counter(subject for subject, _ in clean)
    return len(clean) - len(seeds), sum(n > 1 for n in seeds.values())


def seeds_apart(clean: Mapping[Key, float]) -> float | None:
    """How far apart two seeds of a subject are at most, 95 times in 100, by the seed SD and its degrees of freedom.

    None where there is no seed SD.
    """
    from scipy.special import stdtrit

    sd, freedom = _pooled_sd(clean)
    return None if sd is None else float(stdtrit(freedom, 0.5 + LEVEL / 2)) * math.sqrt(2) * sd


def _pooled_sd(clean: Mapping[Key, float]) -> tuple[float | None, int]:
    """The seed SD and its degrees of freedom."""
    keys = sorted(clean)
    scores = np.array([clean[key] for key in keys])
    groups = _by_subject(scores, keys) if keys else []
    if not (freedom := len(keys) - len(groups)):
        return None, 0
    sd = math.sqrt(sum(float(np.sum(np.square(group - np.mean(group)))) for group in groups) / freedom)
    return (sd if sd > ALIKE * np.abs(scores).max() else None), freedom


def subjects_in(victims: Iterable[Key]) -> int:
    """How many subjects there are; 0 of a data set that has none."""
    found = {subject for subject, _ in victims}
    return 0 if found == {""} else len(found)


def subjects_mean(values: Mapping[Key, float]) -> float:
    """The mean of the subjects' means: a subject that was run with more seeds weighs no more."""
    found: dict[str, list[float]] = {}
    for (subject, _), value in values.items():
        found.setdefault(subject, []).append(value)
    return fmean(map(fmean, found.values()))


def adjusted_means(values: Mapping[Condition, Mapping[Unit, float]]) -> dict[Condition, float]:
    """Condition -> its mean as if each had met the same units: ``values``: condition -> unit -> value.

    A unit is what a victim is, (subject, seed), or more beside it, the seed last. Least squares of value = condition +
    unit, in which a subject weighs no more for having been run with more seeds. Where conditions met different units
    (one attack six victims, another the first of them only), plain means would compare the victims. Conditions that
    share no unit, nor a third one with both, compare by the means of what they met.
    """
    from scipy.sparse.csgraph import connected_components

    units = {unit: j for j, unit in enumerate(dict.fromkeys(unit for found in values.values() for unit in found))}
    if not units:
        return {}
    x, weight = np.zeros((len(values), len(units))), np.zeros((len(values), len(units)))
    for i, found in enumerate(values.values()):
        seeds = Counter(unit[:-1] for unit in found)
        for unit, value in found.items():
            x[i, units[unit]], weight[i, units[unit]] = value, 1 / seeds[unit[:-1]]
    total = weight.sum(0)
    # The normal equations, from which the units are eliminated: there may be thousands of them.
    left = np.diag(weight.sum(1)) - (weight / total) @ weight.T
    of_unit = (weight * x).sum(0) / total
    fit = np.linalg.pinv(left) @ (weight * (x - of_unit)).sum(1)
    of_unit -= (fit @ weight) / total
    _, together = connected_components(weight @ weight.T)
    means = {}
    for condition, a, component in zip(values, fit, together, strict=True):
        here = weight[together == component].sum(0)
        if here.any():
            means[condition] = float(a + here @ of_unit / here.sum())
    return means


def paired_interval(
    pairs: Mapping[Key, float], rng: np.random.Generator, resamples: int = RESAMPLES, size: float = 0.0
) -> Interval:
    """Mean of paired differences with its 95 % interval; ``size``: that of the scores behind them, by which is judged
    whether differences are equal but for rounding.

    The mean is that of the subjects' means. Below 6 subjects its t interval (of one subject, or of a data set that has
    none, that of the seeds; one victim: none), else expanded percentiles (Hesterberg 2015) of ``resamples`` bootstrap
    means: n subjects' tails are those of a normal beyond sqrt(n / (n - 1)) times the quantile of Student's t. Subjects
    are resampled, not seeds within them: how far a subject's mean is off by its seeds is in the spread of the means
    already, and would count twice (Davison & Hinkley 1997, section 3.8).

    Raises ValueError if there is no pair.
    """
    if not pairs:
        raise ValueError("paired_interval: no pair given; at least one victim needs both scores")
    keys = sorted(pairs)
    rows = np.array([[pairs[key]] for key in keys], dtype=np.float64)
    return _interval(rows, keys, lambda mean: mean, lambda x: x, rng, resamples, size)


def recovery(
    effects: Mapping[Key, float],
    residuals: Mapping[Key, float],
    floor: float | None,
    rng: np.random.Generator,
    size: float = 0.0,
) -> Recovery:
    """1 - mean(residual)/mean(effect) over the victims that have both, with its 95 % interval.

    A ratio of means, not a mean of ratios. ``size`` as of ``paired_interval``.

    Given only where the effect's interval lies above ``floor`` (the seed SD); otherwise the reason. Interval:
    bootstrap over subjects, and below 6 subjects the t interval of the linearised ratio, for which r_i - (R/E) e_i is
    the error of subject i (of victim i, if there is one subject only).
    """
    keys = sorted(effects.keys() & residuals.keys())
    if not keys:
        return Recovery(None, NOT_ATTACKED if effects else "n/a: no effect measured")
    if floor is None:
        return Recovery(None, "n/a: no floor")
    effect = paired_interval({key: effects[key] for key in keys}, rng, size=size)
    if effect.low is None:
        return Recovery(None, "n/a: one victim has no interval")
    if effect.ends is None:
        return Recovery(None, "n/a: victims do not differ")
    if effect.of_one_subject:
        return Recovery(None, "n/a: one subject stands for no others")
    if not effect.exceeds(floor):
        return Recovery(None, "n/a: no effect to recover")

    def errors(e: np.ndarray, r: np.ndarray) -> np.ndarray:
        return (r.mean() / e.mean() * e - r) / e.mean()

    both = np.array([(effects[key], residuals[key]) for key in keys], dtype=np.float64)
    return Recovery(_interval(both, keys, lambda e, r: 1 - r / e, errors, rng, RESAMPLES, size))


def _interval(
    rows: np.ndarray,
    keys: Sequence[Key],
    statistic: _Of,
    errors: _Of,
    rng: np.random.Generator,
    resamples: int,
    size: float,
) -> Interval:
    """A statistic of the means of columns; ``rows`` (V, C): of the victims ``keys``, sorted.

    ``statistic``: means of the columns -> its value. ``errors``: columns of independent values -> the error that each
    value adds to the statistic. These are the means of the subjects, or the seeds of a single one.
    """
    from scipy.special import ndtr, stdtrit  # without the second that scipy.stats takes to import

    groups = _by_subject(rows, keys)
    counts = len(keys), subjects_in(keys)
    units = rows if len(groups) == 1 else np.stack([group.mean(0) for group in groups])
    mean = _at_means(statistic, units)
    if len(units) < 2:
        return Interval(mean, None, None, *counts, "none")
    differ = bool(np.ptp(units, axis=0).max() > ALIKE * max(size, np.abs(units).max()))
    t = float(stdtrit(len(units) - 1, 0.5 + LEVEL / 2))
    if len(groups) >= FEW:
        with np.errstate(divide="ignore", invalid="ignore"):
            values = statistic(*_resample(units, resamples, rng).T)
        # Means of n drawn with replacement spread too little by sqrt((n - 1) / n), and as if the spread were known: the
        # 2.5 and 97.5 percentiles of 6 hold the truth 86 times in 100 (Hesterberg 2015, section 4.1 and 5.1).
        beyond = float(ndtr(-t * math.sqrt(len(units) / (len(units) - 1))))
        # A ratio has no value in a resample whose effect is exactly 0, as it may be of a score that counts pictures.
        low, high = np.quantile(values[np.isfinite(values)], [beyond, 1 - beyond])
        return Interval(mean, float(low), float(high), *counts, "bootstrap", differ)
    half = t * float(errors(*units.T).std(ddof=1)) / math.sqrt(len(units))
    return Interval(mean, mean - half, mean + half, *counts, "t", differ)


def _at_means(statistic: _Of, rows: np.ndarray) -> float:
    return float(statistic(*(column.mean() for column in rows.T)))


def _by_subject(rows: np.ndarray, keys: Sequence[Key]) -> list[np.ndarray]:
    """The rows of each subject; ``keys``: those of the rows, sorted."""
    _, first = np.unique([subject for subject, _ in keys], return_index=True)
    return np.split(rows, first[1:])


def _resample(units: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(n, C) values of n subjects -> (resamples, C) means over n of them drawn with replacement."""
    most = max(1, DRAWN // len(units))  # so that many subjects fill no memory
    sizes = [min(most, resamples - first) for first in range(0, resamples, most)]
    return np.concatenate([units[rng.integers(len(units), size=(n, len(units)))].mean(axis=1) for n in sizes])
