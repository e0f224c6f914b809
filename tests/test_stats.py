"""Closed forms, and scipy.stats where it has the same thing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from factory import SCORES, make_record, shifted
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from udpbench import flags
from udpbench import stats as S
from udpbench.record import Record


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_sign_is_the_owner_s_wish() -> None:
    assert (S.sign("higher"), S.sign("lower")) == (1, -1)
    with pytest.raises(ValueError, match="unknown 'up'; allowed are higher, lower"):
        S.sign("up")


def test_differences_pair_within_the_record() -> None:
    records = [make_record(shifted(10.0 * i), subject=str(i)) for i in range(3)]
    assert S.differences(records, "protected", "clean", "distance") == {(str(i), 0): 30.0 for i in range(3)}
    assert S.differences(records, "purified", "clean_attacked", "similarity")["0", 0] == pytest.approx(0.15)
    assert S.differences(records, "noise_rms", "clean", "distance") == {}


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=5))
def test_few_victims_get_the_t_interval_of_scipy(x: list[int]) -> None:
    got = S.paired_interval({(str(i), 0): float(v) for i, v in enumerate(x)}, rng())
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
    got, want = S.paired_interval(pairs, rng()), S.paired_interval(means, rng())
    assert (got.mean, got.low, got.high) == pytest.approx((want.mean, want.low, want.high), abs=1e-9)
    assert (got.victims, got.subjects, got.method) == (len(pairs), len(groups), "t")


def test_seeds_of_one_subject_give_an_interval_over_seeds() -> None:
    got = S.paired_interval({("0", k): v for k, v in enumerate((1.0, 2.0, 4.0))}, rng())
    want = reference.ttest_1samp([1.0, 2.0, 4.0], 0).confidence_interval(0.95)
    assert (got.low, got.high) == pytest.approx(tuple(want))


def test_one_victim_has_no_interval_and_none_is_an_error() -> None:
    one = S.paired_interval({("0", 0): 2.0}, rng())
    assert (one.mean, one.low, one.high, one.method, one.half_width) == (2.0, None, None, "none", None)
    assert not one.excludes_zero
    with pytest.raises(ValueError, match="no pair given"):
        S.paired_interval({}, rng())


def test_one_seed_per_subject_is_the_plain_bootstrap_of_scipy() -> None:
    x = np.random.default_rng(1).normal(3, 2, size=40)
    got = S.paired_interval({(f"{i:02}", 0): v for i, v in enumerate(x)}, rng(), draws=20_000)
    want = reference.bootstrap((x,), np.mean, n_resamples=20_000, method="percentile", rng=2).confidence_interval
    assert (got.low, got.high) == pytest.approx((want.low, want.high), abs=0.03)
    assert got.method == "bootstrap"


def test_hierarchical_bootstrap_has_the_variance_of_theory() -> None:
    # balanced: variance of the mean = (variance of subject means)/S + (mean variance within a subject)/(S K)
    x = np.random.default_rng(3).normal(size=(8, 3)) + 5 * np.random.default_rng(4).normal(size=(8, 1))
    keys = [(str(s), k) for s in range(8) for k in range(3)]
    means = S._resample(x.reshape(-1, 1), keys, 60_000, rng())[:, 0]
    theory = x.mean(1).var() / 8 + x.var(axis=1).mean() / 24
    assert means.var() == pytest.approx(theory, rel=0.03)
    assert means.mean() == pytest.approx(x.mean(), abs=0.03)


def test_resampling_uneven_subjects_never_reads_padding() -> None:
    keys = [("a", 0), ("b", 0), ("b", 1), ("b", 2)]
    means = S._resample(np.full((4, 1), 7.0), keys, 500, rng())
    assert np.array_equal(means, np.full((500, 1), 7.0))


def test_the_same_generator_gives_the_same_interval_and_the_order_of_victims_does_not_matter() -> None:
    pairs = {(str(i), k): math.sin(7.0 * i + k) for i in range(6) for k in range(2)}
    turned = dict(reversed(pairs.items()))
    assert S.paired_interval(pairs, rng()) == S.paired_interval(turned, rng())
    assert S.paired_interval(pairs, rng()) != S.paired_interval(pairs, np.random.default_rng(9))


def test_seed_floor_is_the_pooled_standard_deviation_within_subjects() -> None:
    clean = {("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 10.0, ("b", 1): 10.0, ("b", 2): 13.0, ("c", 0): 99.0}
    groups = ([1.0, 3.0], [10.0, 10.0, 13.0])
    want = math.sqrt(sum(np.var(g, ddof=1) * (len(g) - 1) for g in groups) / 3)
    assert S.seed_floor(clean) == pytest.approx(want)
    assert S.seed_floor({("a", 0): 1.0, ("b", 0): 2.0}) is None
    assert S.seed_floor({}) is None


def pairs(values: list[float]) -> dict[S.Key, float]:
    return {(str(i), 0): v for i, v in enumerate(values)}


def test_recovery_is_a_ratio_of_means() -> None:
    effects, residuals = [10.0, 30.0, 20.0], [4.0, 6.0, 5.0]
    got = S.recovery(pairs(effects), pairs(residuals), 0.5, rng())
    assert got.interval is None  # t interval of (10, 30, 20) reaches below zero
    assert got.reason == "n/a: no effect to recover"
    effects = [19.0, 21.0, 20.0]
    got = S.recovery(pairs(effects), pairs(residuals), 0.5, rng())
    assert got.interval is not None
    assert got.interval.mean == pytest.approx(1 - 15 / 60)
    assert got.interval.low < got.interval.mean < got.interval.high
    means = S.recovery(pairs([19.0, 21.0, 20.0] * 4), pairs(residuals * 4), 0.5, rng()).interval
    assert means is not None
    assert (means.mean, means.method) == (pytest.approx(0.75), "bootstrap")


def test_exact_proportion_has_an_interval_of_width_zero() -> None:
    for times in (1, 3):
        effects = [19.0, 21.0, 20.0] * times
        got = S.recovery(pairs(effects), pairs([e / 4 for e in effects]), 0.5, rng()).interval
        assert got is not None
        assert (got.low, got.high) == pytest.approx((0.75, 0.75))


@pytest.mark.parametrize(
    ("effects", "residuals", "floor", "reason"),
    [
        ([20.0, 21.0], [], 0.1, "n/a: not attacked"),
        ([], [], 0.1, "n/a: no effect measured"),
        ([20.0, 21.0], [1.0, 1.0], None, "n/a: no seed floor"),
        ([20.0], [1.0], 0.1, "n/a: one victim has no interval"),
        ([20.0, 20.1, 20.2], [1.0, 1.0, 1.0], 25.0, "n/a: no effect to recover"),
        ([-20.0, -20.1, -20.2], [1.0, 1.0, 1.0], 0.1, "n/a: no effect to recover"),
    ],
)
def test_recovery_says_why_there_is_none(effects: list, residuals: list, floor: float | None, reason: str) -> None:
    assert S.recovery(pairs(effects), pairs(residuals), floor, rng()) == S.Recovery(None, reason)


def eudp_and_udp() -> list[Record]:
    records = []
    for s in range(3):
        for k in range(2):
            for attack in ("none", "jpeg"):
                who = {"subject": str(s), "seed": k, "attack": attack}
                records.append(make_record(shifted(s, protected=5.0 + k), protect="eudp", **who))
                records.append(make_record(shifted(s), protect="udp", **who))
    return records


def test_compare_pairs_protections_on_the_same_victims() -> None:
    found = {c.metric: c for c in S.compare(eudp_and_udp(), "eudp", "udp")}
    assert set(found) == {"distance", "similarity"}
    assert found["distance"].difference.mean == pytest.approx(5.5)
    assert found["distance"].difference.victims == 6  # the attack is no reason to count a victim twice
    assert found["distance"].unpaired == 0
    assert "attack" not in found["distance"].condition
    assert found["similarity"].difference.mean == 0
    assert S.compare(eudp_and_udp(), "udp", "eudp")[0].difference.mean == pytest.approx(-5.5)


def test_compare_with_the_noise_arm_and_after_attacks() -> None:
    noise = {c.metric: c for c in S.compare(eudp_and_udp(), "eudp", "noise")}
    assert noise["distance"].difference.mean == pytest.approx(SCORES["protected"][0] + 5.5 - SCORES["noise"][0])
    assert noise["similarity"].difference.mean == pytest.approx(0.38)  # lower is what the owner wants
    purified = S.compare(eudp_and_udp(), "eudp", "udp", arm="purified")
    assert sorted({c.condition["attack"] for c in purified}) == ["jpeg", "none"]
    assert S.compare(eudp_and_udp(), "eudp", "noise", arm="purified") == []


def test_compare_keeps_conditions_apart_and_counts_the_unpaired() -> None:
    records = [make_record(protect="eudp"), make_record(protect="eudp", subject="1"), make_record(protect="udp")]
    records += [make_record(protect=p, label="SD 1.5", owner_prompt="data") for p in ("eudp", "udp")]
    found = [c for c in S.compare(records, "eudp", "udp") if c.metric == "distance"]
    assert [(c.condition["label"], c.difference.victims, c.unpaired) for c in found] == [
        ("embedded world (64 px)", 1, 1),
        ("SD 1.5", 1, 0),
    ]
    with pytest.raises(ValueError, match="no record of protection 'mist'; there are eudp, udp"):
        S.compare(records, "eudp", "mist")


def test_a_sound_cell_raises_no_flag() -> None:
    assert flags.of_record(make_record()) == []


def spoilt(**arms: float) -> Record:
    return make_record({arm: (arms.get(arm, d), s) for arm, (d, s) in SCORES.items()})


@pytest.mark.parametrize(
    ("record", "flag"),
    [
        (spoilt(clean=77.0), "victim did not learn: clean covers 29% of the untuned-ceiling window on distance"),
        (spoilt(ceiling=100.0), "no window: ceiling is no better than untuned on distance"),
        (spoilt(protected=100.1), "protected past the untuned floor (saturated) on distance"),
        (
            spoilt(clean_attacked=64.1),
            "attack ruins clean data: it costs 30% of the untuned-ceiling window on distance",
        ),
        ({**make_record(), "cloak": {"protected": {"linf": 9.0}}}, "budget exceeded: protected measures linf 9 levels"),
        ({**make_record(), "config": {}, "cloak": {"noise": {"linf": 9.0}}}, "budget exceeded: noise measures linf 9"),
        ({**make_record(), "provenance": {"dirty": True}}, "dirty tree: the code differs"),
    ],
)
def test_flags(record: Record, flag: str) -> None:
    (found,) = flags.of_record(record)
    assert found.startswith(flag)


def test_flags_at_their_limits_are_not_raised() -> None:
    assert flags.of_record(spoilt(clean=76.0, clean_attacked=76.0)) == []  # exactly 30 % learnt
    assert flags.of_record(spoilt(protected=100.0)) == []
    assert flags.of_record({**make_record(), "cloak": {"protected": {"linf": 8.0}}}) == []


def test_flags_of_a_group() -> None:
    other = make_record(subject="0", seed=1)
    other["stages"][0]["device"] = "cuda"
    assert flags.cross_device([make_record(), other]) == "cross-device comparison: cpu, cuda"
    assert flags.no_seed_floor([None, 0.5]) is None
    assert flags.no_seed_floor([None]) == flags.NO_FLOOR
    assert flags.few_subjects([make_record(), other]) == "few subjects: intervals rest on 1"
    whole = [make_record(subject=str(s), seed=k) for s in range(3) for k in range(2)]
    assert flags.of_group(whole, {"distance": 0.5}) == []
    assert flags.of_group(whole, {"distance": None}) == [flags.NO_FLOOR]
