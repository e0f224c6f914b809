"""``budget=perceptual``: what is saved has the distance, whatever was made and in whatever bound."""

from __future__ import annotations

import pytest
import torch
from factory import make_record
from shared import composed, make_owner, small

import udpbench
from udpbench.core.budget import RMS, Linf, measure
from udpbench.core.images import as_saved, read, write_png
from udpbench.interfaces import Run
from udpbench.models.perceptual import load_distance
from udpbench.optim.perceptual_budget import Perceptual, scaled
from udpbench.protect.noise import Noise
from udpbench.results import flags
from udpbench.results.words import budget_text
from udpbench.world import renderer


@pytest.fixture(scope="module")
def clean() -> list[torch.Tensor]:
    """A rendering, one that is no square, and a grey one."""
    truth = renderer.draw(2, torch.Generator().manual_seed(0), renderer.subject(0))
    found = [as_saved(x) for x in renderer.render(truth, 32)]
    return [found[0], found[1][:, :, :24], found[1][1:2].expand(3, -1, -1)]


@pytest.fixture(scope="module")
def distance():
    return load_distance("lite1", None, torch.device("cpu"))


def names(pictures: list[torch.Tensor]) -> list[str]:
    return [f"{i}.png" for i in range(len(pictures))]


def made(kind: str, clean: list[torch.Tensor]) -> list[torch.Tensor]:
    if kind == "corner":  # a change of few pixels
        found = [x.clone() for x in clean]
        for x in found:
            x[:, :12, :12] = as_saved((x[:, :12, :12] + 0.06).clamp(max=1))
        return found
    return Noise(kind=kind).protect(make_owner(clean), Linf(16), None, Run())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sign", "uniform", "corner"])
def test_every_saved_picture_has_the_distance(clean, distance, tmp_path, kind):
    budget = Perceptual(Linf(16), 0.02 if kind == "corner" else 0.2)
    got = budget.finished("x", made(kind, clean), clean, names(clean), Run())
    for i, (x, before) in enumerate(zip(got, clean, strict=True)):
        write_png(tmp_path / f"{i}.png", x)
        saved = read(tmp_path / f"{i}.png")
        assert float(distance(saved[None], before[None])) == pytest.approx(
            budget.distance, rel=0.05 if kind == "corner" else 0.01
        )
        assert float(distance(saved[None], before[None])) <= budget.distance + 1e-6
        assert measure(before, saved)["linf"] <= 16
    assert torch.equal(got[-1][0], got[-1][2])  # the grey one
    if kind == "sign":  # its draw belongs to the picture
        (alone,) = budget.finished("x", made(kind, clean)[:1], clean[:1], ["0.png"], Run())
        assert float((alone != got[0]).float().mean()) < 0.01
        (again,) = budget.finished("x", made(kind, clean)[:1], clean[:1], ["0.png"], Run(seed=1))
        assert float((again != got[0]).float().mean()) > 0.1


@pytest.mark.parametrize("inner", [Linf(8), RMS(5)])
def test_a_weak_change_is_enlarged_within_the_inner_bound_and_one_that_cannot_reach_it_says_so(clean, distance, inner):
    weak = [as_saved(x + (y - x) / 8) for x, y in zip(clean, made("sign", clean), strict=True)]
    budget = Perceptual(inner, 0.1)
    before = [float(distance(y[None], x[None])) for x, y in zip(clean, weak, strict=True)]
    assert max(before) < budget.distance
    got = budget.finished("x", weak, clean, names(clean), Run())
    for x, y in zip(clean, got, strict=True):
        assert float(distance(y[None], x[None])) == pytest.approx(budget.distance, rel=0.01)
        assert measure(x, y)[inner.kind] <= inner.eps * (1 + 1e-9)
    far = Perceptual(inner, 3.0)
    with pytest.raises(ValueError, match=r"stripes: 0\.png reaches lite1 0\.\d+ of 3 within (linf|rms)_\d; give"):
        far.finished("stripes", weak, clean, names(clean), Run())
    with pytest.raises(ValueError, match=r"none: 0\.png reaches no distance: it is unchanged"):
        far.finished("none", clean, clean, names(clean), Run())


def test_a_scaled_change_grows_with_the_factor_has_its_mean_and_is_itself_at_one(clean):
    x = torch.stack([clean[0], clean[2]]).clamp(0.3, 0.7)
    x, draw = as_saved(x), torch.rand((2, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    y = as_saved(x + 7 / 255 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).sign())
    assert torch.equal(scaled(x, y, torch.ones(2), draw), y)
    assert torch.equal(scaled(x, y, torch.zeros(2), draw), x)
    sizes = [(scaled(x, y, torch.full((2,), f), draw) - x).abs() for f in (0.1, 0.35, 0.5, 0.9)]
    for f, size in zip((0.1, 0.35, 0.5, 0.9), sizes, strict=True):
        assert float(size.mean() * 255) == pytest.approx(7 * f, rel=0.05)
    assert all(bool((a <= b + 1e-6).all()) for a, b in zip(sizes, sizes[1:], strict=False))


@pytest.mark.slow
def test_the_inner_budget_is_an_option(tiny):
    assert composed(tiny, "budget=perceptual").budget.inner == {"_target_": "udpbench.core.budget.Linf", "eps": 16}
    other = composed(tiny, "budget=perceptual", "budget@budget.inner=rms").budget.inner
    assert other == {"_target_": "udpbench.core.budget.RMS", "eps": 16}


def test_a_method_works_in_the_inner_bound(clean):
    budget, x = Perceptual(RMS(3), 0.1), torch.stack([clean[0], clean[2]])
    assert (budget.eps, budget.name) == (3, "lite1_0.1_in_rms_3")
    assert torch.equal(budget.project(x + 0.1, x), RMS(3).project(x + 0.1, x))
    assert torch.equal(budget.direction(x), RMS(3).direction(x))


@pytest.mark.parametrize("settings", [
    {"distance": 0}, {"distance": "far"}, {"network": "vgg"}, {"inner": Perceptual(Linf(8), 0.1)},
])  # fmt: skip
def test_wrong_settings_are_refused_in_one_line(settings):
    with pytest.raises(ValueError, match=r"^budget perceptual: .* given|^budget perceptual: .*allowed are") as error:
        Perceptual(**({"inner": Linf(8), "distance": 0.1} | settings))
    assert "\n" not in str(error.value)


def test_tables_and_flags_say_equal_at_what():
    facts = Perceptual(Linf(16), 0.4).facts
    assert budget_text(facts, "x") == "lite1 0.4 in linf 16/255"
    record = make_record(facts={"budget": facts})
    record["perturbation"] = {"protected": {"dist_lite1": 0.3999, "linf": 30.0}}
    assert flags.budget_exceeded(record) is None
    record["perturbation"]["protected"]["dist_lite1"] = 0.41
    assert flags.budget_exceeded(record) == "budget exceeded: protected measures dist_lite1 0.41, allowed 0.4"


@pytest.mark.slow
def test_protection_and_both_controls_are_measured_at_one_distance(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["protect=advdm", "protect.steps=3", "budget=perceptual", "budget.distance=0.03", "budget.inner.eps=12"]
    arms = "arms=[clean,noise,noise_rms,protected]"
    words += ["task.steps=1", "task.sample_steps=1", "data.reference=0", "data.heldout=0", "data.train=3", arms]
    words += [*small(tiny), "runtime.device=cpu"]
    record = udpbench.run(*words)
    for arm in ("noise", "noise_rms", "protected"):
        assert record["perturbation"][arm]["dist_lite1"] == pytest.approx(0.03, rel=0.03)
        assert record["perturbation"][arm]["linf"] <= 12
    assert record["facts"]["budget"] == {
        "kind": "perceptual", "eps": 12.0, "inner": "linf", "distance": 0.03, "network": "lite1", "score": "dist_lite1",
    }  # fmt: skip
    assert record["cell"]["budget"] == "lite1_0.03_in_linf_12"
    assert not [flag for flag in record["flags"] if "budget exceeded" in flag]
    with pytest.raises(ValueError, match=r"nothing measures dist_lite1 .* add metric@perturbation.bundle.distance="):
        udpbench.run(*words, "~perturbation.bundle.perceptual")
