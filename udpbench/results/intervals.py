"""Means over victims with their intervals, the seed SD and recovery: numbers in, numbers out.

The unit of replication is a victim, one (subject, seed). Every function is pure; chance comes from the generator
handed in.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Key = tuple[str, int]  # (subject, seed)
NOT_ATTACKED = "n/a: not attacked"
RESAMPLES = 2000
LEVEL = 0.95
FEW = 6  # below this many subjects a t interval, from here on a bootstrap


@dataclass(frozen=True)
class Interval:
    """A mean over victims with its interval.

    ``low`` and ``high`` are None where one victim allows none.
    """

    mean: float
    low: float | None
    high: float | None
    victims: int
    subjects: int
    method: str  # "t" | "bootstrap" | "none"

    @property
    def half_width(self) -> float | None:
        """Half of the interval: a smaller mean difference would not have excluded zero."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


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
    """Pooled standard deviation of clean victims over seeds within subject; None where no subject has two seeds."""
    groups: dict[str, list[float]] = {}
    for (subject, _), value in sorted(clean.items()):
        groups.setdefault(subject, []).append(value)
    freedom = sum(len(g) - 1 for g in groups.values())
    if freedom == 0:
        return None
    return math.sqrt(sum(float(np.sum(np.square(np.array(g) - np.mean(g)))) for g in groups.values()) / freedom)


def paired_interval(
    pairs: Mapping[Key, float], rng: np.random.Generator, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """Mean of paired differences with its interval at ``level``.

    Below 6 subjects the t interval of the subjects' means (of the seeds of a single subject; one victim: none), else
    the percentiles of ``resamples`` hierarchical bootstrap means, resampling subjects and then seeds within each.

    Raises ValueError if there is no pair.
    """
    if not pairs:
        raise ValueError("paired_interval: no pair given; at least one victim needs both scores")
    keys = sorted(pairs)
    x = np.array([[pairs[k]] for k in keys], dtype=np.float64)
    if _subjects(keys) < FEW:
        units = _units(x, keys)[:, 0]
        return _t_interval(float(units.mean()), units, keys, level)
    return _percentiles(float(x.mean()), _resample(x, keys, resamples, rng)[:, 0], keys, level)


def recovery(
    effects: Mapping[Key, float],
    residuals: Mapping[Key, float],
    floor: float | None,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Recovery:
    """1 - mean(residual)/mean(effect) over the victims that have both, with its interval.

    A ratio of means, not a mean of ratios.

    Given only where the effect's interval lies above ``floor`` (the seed SD); otherwise the reason. Interval:
    hierarchical bootstrap, and below 6 subjects the t interval of the linearised ratio, for which r_i - (R/E) e_i is
    the error of subject i (of victim i, if there is one subject only).
    """
    keys = sorted(effects.keys() & residuals.keys())
    if not keys:
        return Recovery(None, NOT_ATTACKED if effects else "n/a: no effect measured")
    if floor is None:
        return Recovery(None, "n/a: no floor")
    effect = paired_interval({k: effects[k] for k in keys}, rng, resamples, level)
    if effect.low is None:
        return Recovery(None, "n/a: one victim has no interval")
    if effect.low <= max(floor, 0.0):
        return Recovery(None, "n/a: no effect to recover")
    both = np.array([(effects[k], residuals[k]) for k in keys], dtype=np.float64)
    if _subjects(keys) < FEW:
        both = _units(both, keys)
        ratio = float(both[:, 1].mean() / both[:, 0].mean())
        errors = (ratio * both[:, 0] - both[:, 1]) / both[:, 0].mean()
        return Recovery(_t_interval(1 - ratio, errors, keys, level))
    means = _resample(both, keys, resamples, rng)
    mean = 1 - float(both[:, 1].mean() / both[:, 0].mean())
    return Recovery(_percentiles(mean, 1 - means[:, 1] / means[:, 0], keys, level))


def _subjects(keys: Sequence[Key]) -> int:
    return len({subject for subject, _ in keys})


def _units(columns: np.ndarray, keys: Sequence[Key]) -> np.ndarray:
    """What a t interval counts as independent: the means of the subjects, or one subject's seeds."""
    subjects = sorted({subject for subject, _ in keys})
    if len(subjects) == 1:
        return columns
    return np.stack([columns[[k[0] == subject for k in keys]].mean(0) for subject in subjects])


def _t_interval(mean: float, x: np.ndarray, keys: Sequence[Key], level: float) -> Interval:
    """The t interval of the independent values ``x`` around ``mean``; without limits if there is one value only."""
    if len(x) < 2:
        return Interval(mean, None, None, len(keys), _subjects(keys), "none")
    from scipy.special import stdtrit  # quantile of Student's t, without the second that scipy.stats takes to import

    half = float(stdtrit(len(x) - 1, 0.5 + level / 2) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(mean, mean - half, mean + half, len(keys), _subjects(keys), "t")


def _percentiles(mean: float, x: np.ndarray, keys: Sequence[Key], level: float) -> Interval:
    low, high = np.quantile(x, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(mean, float(low), float(high), len(keys), _subjects(keys), "bootstrap")


def _resample(columns: np.ndarray, keys: Sequence[Key], resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(V, C) values of V victims -> (resamples, C) means over subjects drawn with replacement, and their seeds
    likewise."""
    subjects = sorted({k[0] for k in keys})
    groups = [columns[[i for i, k in enumerate(keys) if k[0] == s]] for s in subjects]
    counts = np.array([len(g) for g in groups])
    padded = np.zeros((len(groups), counts.max(), columns.shape[1]))
    for i, group in enumerate(groups):
        padded[i, : len(group)] = group
    drawn = rng.integers(len(groups), size=(resamples, len(groups)))
    sizes = counts[drawn][..., None]  # (resamples, subjects, 1)
    which = (rng.random((resamples, len(groups), counts.max())) * sizes).astype(np.int64)
    keep = np.arange(counts.max()) < sizes
    total = (padded[drawn[..., None], which] * keep[..., None]).sum(axis=(1, 2))
    means: np.ndarray = total / keep.sum(axis=(1, 2))[:, None]
    return means
