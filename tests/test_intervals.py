"""Closed forms, and scipy.stats where it has the same thing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from udpbench.results import intervals
from udpbench.results.intervals import (
    Interval,
    Key,
    Recovery,
    _resample,
    adjusted_means,
    paired_interval,
    recovery,
    seed_sd,
    seeds_behind,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=5))
def test_few_victims_get_the_t_interval_of_scipy(x: list[int]) -> None:
    got = paired_interval({(str(i), 0): float(v) for i, v in enumerate(x)}, rng())
    spread = len(set(x)) > 1  # scipy has no interval for equal values; ours has width zero
    want = reference.ttest_1samp(x, 0).confidence_interval(0.95) if spread else (np.mean(x), np.mean(x))
    assert (got.low, got.high) == pytest.approx(tuple(want), rel=1e-9, abs=1e-9)
    assert got.method == "t"
    assert got.half_width == pytest.approx((want[1] - want[0]) / 2, rel=1e-9, abs=1e-9)


@given(
    st.lists(st.lists(st.integers(-100, 100), min_size=1, max_size=4), min_size=2, max_size=5),
    st.integers(1, 3),
)
def test_seeds_of_a_subject_are_not_counted_as_subjects(groups: list[list[int]], times: int) -> None:
    """Few subjects: the interval is that of their means, and running every seed again narrows nothing."""
    pairs = {(str(s), k): float(v) for s, g in enumerate(groups) for k, v in enumerate(g * times)}
    means = {(str(s), 0): float(np.mean(g)) for s, g in enumerate(groups)}
    got, want = paired_interval(pairs, rng()), paired_interval(means, rng())
    assert (got.mean, got.low, got.high) == pytest.approx((want.mean, want.low, want.high), abs=1e-9)
    assert (got.victims, got.subjects, got.method) == (len(pairs), len(groups), "t")


def test_what_victims_stand_for_is_counted_in_subjects() -> None:
    def found(*subjects: str) -> Interval:
        keys = [(subject, seed) for subject in subjects for seed in range(2)]
        return paired_interval({key: 5.0 + 0.1 * i for i, key in enumerate(keys)}, rng())

    assert [found(*names).subjects for names in (("7",), ("",), ("7", "8"), ("", "draw_1"))] == [1, 0, 2, 2]
    assert [found(*names).exceeds(1.0) for names in (("7",), ("",), ("7", "8"))] == [False, True, True]
    assert [found(*names).excludes_zero for names in (("7",), ("",), ("7", "8"))] == [False, True, True]
    effects = {("7", seed): 5.0 + 0.1 * seed for seed in range(3)}
    back = recovery(effects, effects, 1.0, rng())
    assert (back.interval, back.reason) == (None, "n/a: one subject stands for no others")
    assert recovery({("", k): x for (_, k), x in effects.items()}, {("", 0): 1.0, ("", 1): 1.1}, 0.1, rng()).interval


def test_seeds_of_one_subject_give_an_interval_over_seeds() -> None:
    got = paired_interval({("0", k): v for k, v in enumerate((1.0, 2.0, 4.0))}, rng())
    want = reference.ttest_1samp([1.0, 2.0, 4.0], 0).confidence_interval(0.95)
    assert (got.low, got.high) == pytest.approx(tuple(want))


@given(st.dictionaries(st.sampled_from("abcd"), st.floats(-50, 50), min_size=4), st.integers(0, 2**31))
def test_adjusted_means_are_those_of_an_additive_table(effects: dict[str, float], seed: int) -> None:
    """value = condition + unit, some cells missing: the conditions come out apart by what they are."""
    draw = np.random.default_rng(seed)
    units = {(str(unit), 0): float(draw.normal(0, 100)) for unit in range(5)}
    full = {c: {u: x + y for u, y in units.items()} for c, x in effects.items()}
    kept = {c: {u: y for u, y in row.items() if u == ("0", 0) or draw.random() < 0.5} for c, row in full.items()}
    found = adjusted_means(kept)
    plain = adjusted_means(full)
    assert [found[c] - found["a"] for c in "abcd"] == pytest.approx(
        [effects[c] - effects["a"] for c in "abcd"], abs=1e-6
    )
    assert plain == pytest.approx({c: np.mean(list(row.values())) for c, row in full.items()}, abs=1e-6)
    assert adjusted_means({}) == {}


def test_resamples_of_many_subjects_are_drawn_in_parts_and_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    units = np.random.default_rng(1).normal(size=(9, 2))
    whole = _resample(units, 100, rng())
    monkeypatch.setattr(intervals, "DRAWN", 30)
    assert np.array_equal(_resample(units, 100, rng()), whole)


def test_one_victim_has_no_interval_and_none_is_an_error() -> None:
    one = paired_interval({("0", 0): 2.0}, rng())
    assert (one.mean, one.low, one.high, one.method, one.half_width) == (2.0, None, None, "none", None)
    assert not one.excludes_zero
    with pytest.raises(ValueError, match="no pair given"):
        paired_interval({}, rng())


def test_one_seed_per_subject_is_the_bootstrap_of_scipy_with_expanded_percentiles() -> None:
    x = np.random.default_rng(1).normal(3, 2, size=40)
    got = paired_interval({(f"{i:02}", 0): v for i, v in enumerate(x)}, rng(), resamples=20_000)
    beyond = reference.norm.sf(reference.t.isf(0.025, 39) * math.sqrt(40 / 39))
    want = reference.bootstrap(
        (x,), np.mean, n_resamples=20_000, method="percentile", random_state=2, confidence_level=1 - 2 * beyond
    ).confidence_interval
    assert (got.low, got.high) == pytest.approx((want.low, want.high), abs=0.03)
    assert got.method == "bootstrap"


@pytest.mark.parametrize(
    ("subjects", "seeds", "apart"), [(5, 1, 1.0), (6, 1, 1.0), (8, 2, 1.0), (5, 3, 0.1), (6, 3, 0.1)]
)
def test_intervals_hold_the_truth_as_often_as_they_say(subjects: int, seeds: int, apart: float) -> None:
    """Of 6 subjects the percentiles of 2.5 and 97.5 would in 86 of 100 cases, resampled seeds in 99 where subjects are
    hardly ``apart``."""
    draw, held = np.random.default_rng(5), 0
    for _ in range(600):
        x = apart * draw.normal(size=(subjects, 1)) + 0.5 * draw.normal(size=(subjects, seeds))
        found = {(str(s), k): x[s, k] for s in range(subjects) for k in range(seeds)}
        got = paired_interval(found, draw, resamples=500)
        held += got.low is not None and got.high is not None and got.low <= 0 <= got.high
    assert 0.92 <= held / 600 <= 0.97


@pytest.mark.parametrize("subjects", [6, 10])
def test_intervals_of_skewed_effects_hold_the_truth_as_often_as_the_docs_say(subjects: int) -> None:
    draw, held = np.random.default_rng(5), 0
    for _ in range(1000):
        found = {(str(s), 0): float(x) for s, x in enumerate(draw.exponential(size=subjects))}
        got = paired_interval(found, draw, resamples=500)
        held += got.low is not None and got.high is not None and got.low <= 1 <= got.high
    assert 0.86 <= held / 1000 <= 0.93


def test_a_subject_run_with_more_seeds_weighs_no_more() -> None:
    """Above and below the number of subjects from which intervals are of the bootstrap."""
    for subjects in (5, 6):
        once = {(str(s), 0): float(s) for s in range(subjects)}
        got = paired_interval(once | {("0", k): 0.0 for k in range(1, 9)}, rng())
        assert got.mean == pytest.approx(np.mean(range(subjects)))


@given(st.lists(st.lists(st.integers(-100, 100), min_size=1, max_size=4), min_size=6, max_size=8))
def test_an_interval_of_many_subjects_is_that_of_their_means(groups: list[list[int]]) -> None:
    """How far seeds are apart is in the spread of the means already."""
    pairs = {(str(s), k): float(v) for s, g in enumerate(groups) for k, v in enumerate(g)}
    means = {(str(s), 0): float(np.mean(g)) for s, g in enumerate(groups)}
    got, want = paired_interval(pairs, rng()), paired_interval(means, rng())
    assert (got.mean, got.low, got.high) == pytest.approx((want.mean, want.low, want.high), abs=1e-9)
    assert (got.victims, got.subjects, got.method) == (len(pairs), len(groups), "bootstrap")


def test_the_ends_of_an_interval_hardly_hang_on_what_was_drawn() -> None:
    """Of 2,000 resamples they would move by 5 % of the half-width (SD)."""
    pairs = {(str(i), 0): v for i, v in enumerate(np.random.default_rng(1).normal(size=6))}
    found = [paired_interval(pairs, np.random.default_rng(seed)) for seed in range(40)]
    half = np.mean([x.half_width for x in found])
    assert all(np.std(ends) < 0.025 * half for ends in ([x.low for x in found], [x.high for x in found]))


def test_bootstrap_has_the_variance_of_theory() -> None:
    x = np.random.default_rng(3).normal(size=(8, 2))
    means = _resample(x, 60_000, rng())
    assert means.var(axis=0) == pytest.approx(x.var(axis=0) / 8, rel=0.03)
    assert means.mean(axis=0) == pytest.approx(x.mean(axis=0), abs=0.01)


def test_the_same_generator_gives_the_same_interval_and_the_order_of_victims_does_not_matter() -> None:
    pairs = {(str(i), k): math.sin(7.0 * i + k) for i in range(6) for k in range(2)}
    turned = dict(reversed(pairs.items()))
    assert paired_interval(pairs, rng()) == paired_interval(turned, rng())
    assert paired_interval(pairs, rng()) != paired_interval(pairs, np.random.default_rng(9))


def test_seed_sd_is_the_pooled_standard_deviation_within_subjects() -> None:
    clean = {("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 10.0, ("b", 1): 10.0, ("b", 2): 13.0, ("c", 0): 99.0}
    groups = ([1.0, 3.0], [10.0, 10.0, 13.0])
    want = math.sqrt(sum(np.var(g, ddof=1) * (len(g) - 1) for g in groups) / 3)
    assert seed_sd(clean) == pytest.approx(want)
    assert seed_sd({("a", 0): 1.0, ("b", 0): 2.0}) is None
    assert seed_sd({}) is None
    assert seeds_behind(clean) == (3, 2)


def test_seeds_that_agree_but_for_rounding_are_no_floor() -> None:
    """Above a floor of 0 every effect would be claimed."""
    alike = {("a", 0): 0.97, ("a", 1): float(np.float32(0.97)), ("b", 0): 0.5}
    assert seed_sd(alike) is None
    assert seeds_behind(alike) == (1, 1)
    assert seed_sd(alike | {("b", 1): 0.505}) == pytest.approx(0.005 / 2)


def pairs(values: list[float]) -> dict[Key, float]:
    return {(str(i), 0): v for i, v in enumerate(values)}


def test_recovery_is_a_ratio_of_means() -> None:
    effects, residuals = [10.0, 30.0, 20.0], [4.0, 6.0, 5.0]
    got = recovery(pairs(effects), pairs(residuals), 0.5, rng())
    assert got.interval is None  # t interval of (10, 30, 20) reaches below zero
    assert got.reason == "n/a: no effect to recover"
    effects = [19.0, 21.0, 20.0]
    got = recovery(pairs(effects), pairs(residuals), 0.5, rng())
    assert got.interval is not None
    assert got.interval.mean == pytest.approx(1 - 15 / 60)
    assert got.interval.low < got.interval.mean < got.interval.high
    means = recovery(pairs([19.0, 21.0, 20.0] * 4), pairs(residuals * 4), 0.5, rng()).interval
    assert means is not None
    assert (means.mean, means.method) == (pytest.approx(0.75), "bootstrap")


def test_exact_proportion_has_an_interval_of_width_zero() -> None:
    for times in (1, 3):
        effects = [19.0, 21.0, 20.0] * times
        got = recovery(pairs(effects), pairs([e / 4 for e in effects]), 0.5, rng()).interval
        assert got is not None
        assert (got.low, got.high) == pytest.approx((0.75, 0.75))


@pytest.mark.filterwarnings("error")
def test_a_recovery_has_an_interval_where_some_resamples_have_no_effect() -> None:
    """A score that counts pictures is often 0: of six subjects' effects a resample may hold zeros only."""
    effects, residuals = [0.0, 0.0, 0.01, 0.01, 0.01, 0.03], [0.0, 0.0, 0.0, 0.005, 0.01, 0.015]
    got = recovery(pairs(effects), pairs(residuals), 0.0, rng())
    assert got.interval is not None
    assert got.interval.mean == pytest.approx(0.5)
    assert got.interval.low < 0.5 < got.interval.high


@pytest.mark.parametrize(
    ("effects", "residuals", "floor", "reason"),
    [
        ([20.0, 21.0], [], 0.1, "n/a: not attacked"),
        ([], [], 0.1, "n/a: no effect measured"),
        ([20.0, 21.0], [1.0, 1.0], None, "n/a: no floor"),
        ([20.0], [1.0], 0.1, "n/a: one victim has no interval"),
        ([20.0, 20.1, 20.2], [1.0, 1.0, 1.0], 25.0, "n/a: no effect to recover"),
        ([-20.0, -20.1, -20.2], [1.0, 1.0, 1.0], 0.1, "n/a: no effect to recover"),
    ],
)
def test_recovery_says_why_there_is_none(effects: list, residuals: list, floor: float | None, reason: str) -> None:
    assert recovery(pairs(effects), pairs(residuals), floor, rng()) == Recovery(None, reason)


def test_a_negative_floor_claims_no_effect_below_zero():
    assert not Interval(0.1, -0.5, 0.7, 6, 6, "t").exceeds(-1.0)
