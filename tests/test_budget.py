"""Budgets hold on the PNG that is written and read again, whatever the change."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from udpbench.core import images
from udpbench.core.budget import RMS, Linf, measure

quick = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
changes = st.sampled_from(["sign", "normal", "flat", "half", "sparse"])


def clean_pictures(seed: int, n: int = 2, size: int = 6) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 3, size, size), generator=rng).float() / 255


def changed(clean: torch.Tensor, kind: str, levels: float, seed: int) -> torch.Tensor:
    draw = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    change = {
        "sign": draw.sign(),
        "normal": draw,
        "flat": torch.ones_like(draw),
        "half": draw.sign() * math.floor(levels) / levels + draw.sign() * 0.51 / levels,  # the worst case for rounding
        "sparse": draw * 100 * (draw.abs() > 2),
    }[kind]
    return clean + change * levels / 255


def saved(folder, x: torch.Tensor) -> torch.Tensor:
    for i, picture in enumerate(x):
        images.write_png(folder / f"{i}.png", picture)
    return torch.stack([images.read(folder / f"{i}.png") for i in range(len(x))])


@quick
@given(st.floats(1, 128), changes, st.floats(0.3, 3), st.integers(0, 999))
def test_linf_holds_on_the_saved_picture(tmp_path, levels, kind, factor, seed):
    clean, budget = clean_pictures(seed), Linf(levels)
    got = saved(tmp_path, budget.project(changed(clean, kind, levels * factor, seed), clean))
    measured = measure(clean, got)
    assert measured["linf"] <= levels
    assert measured[budget.kind] <= budget.eps * (1 + 1e-9)


@quick
@given(st.sampled_from([Linf, RMS]), st.floats(1, 40), changes, st.integers(0, 999))
def test_a_grey_picture_stays_grey_within_the_budget_and_one_beside_it_keeps_its_colours(
    tmp_path, kind, eps, change, seed
):
    clean, budget = clean_pictures(seed), kind(eps)
    clean[0] = clean[0, :1].expand(3, -1, -1)
    moved = changed(clean, change, eps, seed)
    got = saved(tmp_path, budget.project(moved, clean))
    assert torch.equal(got[0], got[0, :1].expand(3, -1, -1))
    assert all(measure(a, b)[budget.kind] <= eps * (1 + 1e-9) for a, b in zip(clean, got, strict=True))
    assert torch.equal(got[1:], saved(tmp_path, budget.project(moved[1:], clean[1:])))


@quick
@given(st.floats(0.02, 128), changes, st.floats(0.3, 3), st.integers(0, 999))
def test_rms_holds_on_every_saved_picture(tmp_path, levels, kind, factor, seed):
    clean, budget = clean_pictures(seed), RMS(levels)
    got = saved(tmp_path, budget.project(changed(clean, kind, levels * factor, seed), clean))
    for before, after in zip(clean, got, strict=True):
        assert measure(before, after)["rms"] <= levels * (1 + 1e-9)
        assert measure(before, after)[budget.kind] <= budget.eps * (1 + 1e-9)


@quick
@given(st.integers(1, 100), st.integers(0, 999))
def test_whole_linf_budgets_are_used_up(levels, seed):
    clean = clean_pictures(seed).clamp(100 / 255, 155 / 255)
    clean = images.as_saved(clean)
    x = changed(clean, "sign", 2 * levels, seed)
    assert measure(clean, Linf(levels).project(x, clean)) == {"linf": levels, "rms": levels}


@pytest.mark.parametrize(("levels", "largest"), [(1, 1), (6.4, 6), (7.65, 7), (7.5, 7), (12.75, 12)])
def test_published_budgets_between_levels_end_below(levels, largest):
    clean = torch.full((1, 3, 4, 4), 100 / 255)
    for direction in (1, -1):
        assert measure(clean, Linf(levels).project(clean + direction, clean))["linf"] == largest


def test_rms_uses_most_of_its_ball():
    clean = images.as_saved(clean_pictures(0, 1, 32).clamp(0.3, 0.7))
    got = RMS(5).project(changed(clean, "normal", 20, 0), clean)
    assert 4.9 < measure(clean, got)["rms"] <= 5


@pytest.mark.parametrize(("kind", "levels"), [("sign", 0.7), ("sign", 4.6), ("normal", 1.3), ("normal", 5)])
def test_rms_shrinks_no_further_than_rounding_demands(kind, levels):
    clean = images.as_saved(clean_pictures(0, 1, 32).clamp(0.3, 0.7))
    x = changed(clean, kind, levels, 0)
    assert measure(clean, RMS(128).project(x, clean))["rms"] > levels  # rounding alone would break the bound
    got = RMS(levels).project(x, clean)
    assert measure(clean, got)["rms"] <= levels
    assert measure(clean, clean + (got - clean) * 1.001)["rms"] > levels


@pytest.mark.parametrize("budget", [Linf(8), RMS(8)])
def test_what_is_inside_stays_and_projecting_twice_changes_nothing(budget):
    clean = clean_pictures(3)
    inside = changed(clean, "normal", 1, 5).clamp(0, 1)
    torch.testing.assert_close(budget.project(inside, clean), inside)
    once = budget.project(changed(clean, "normal", 30, 5), clean)
    torch.testing.assert_close(budget.project(once, clean), once)
    assert once.min() >= 0
    assert once.max() <= 1


@pytest.mark.parametrize("budget", [Linf(3.7), RMS(2.2)])
def test_a_picture_is_projected_alone_as_in_a_batch(budget):
    clean = clean_pictures(1, 4)
    x = torch.cat(
        [changed(clean[i : i + 1], kind, 9, i) for i, kind in enumerate(("sign", "half", "normal", "sparse"))]
    )
    together = budget.project(x, clean)
    alone = torch.cat([budget.project(x[i : i + 1], clean[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [Linf, RMS])
@pytest.mark.parametrize("levels", [0, -1, 128.1, float("nan"), float("inf"), "8", True, None])
def test_impossible_levels_are_refused_in_one_line(kind, levels):
    with pytest.raises(ValueError, match=r"budget (linf|rms): .*given .*") as error:
        kind(levels)
    assert "\n" not in str(error.value)


def test_linf_below_one_level_would_change_nothing_and_is_refused():
    with pytest.raises(ValueError, match="1 to 128"):
        Linf(0.9)


def test_names():
    assert (Linf(8).name, Linf(6.4).name, RMS(2).name) == ("linf_8", "linf_6.4", "rms_2")


def test_measure_closed_forms():
    clean = torch.zeros(3, 2, 2)
    other = clean.clone()
    other[0, 0, 0], other[1, 1, 1] = 3 / 255, 4 / 255
    assert measure(clean, other) == {"linf": 4, "rms": math.sqrt(25 / 12)}
    assert measure(other, clean) == measure(clean, other)
    assert measure(clean, clean) == {"linf": 0, "rms": 0}
    assert measure(clean, clean + 0.4 / 255)["linf"] == 0  # what is measured is the 8-bit picture
    with pytest.raises(ValueError, match="same size"):
        measure(clean, torch.zeros(3, 2, 3))


def test_a_grey_picture_is_moved_by_the_mean_of_its_channels():
    clean = torch.full((1, 3, 2, 2), 100 / 255)
    change = torch.tensor([6.0, 0.0, -3.0]).view(1, 3, 1, 1) / 255
    torch.testing.assert_close(Linf(8).project(clean + change, clean), clean + 1 / 255)
