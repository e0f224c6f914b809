"""DisDiff, HF-ADB and Anti-Diffusion: what they add to their parents, in closed form and against finite differences."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from shared import make_owner

from udpbench.core.budget import RMS, Linf, measure
from udpbench.core.images import as_saved
from udpbench.interfaces import Run
from udpbench.models.attention import mean_map, read_attention
from udpbench.models.tokenizer import Tokenizer
from udpbench.optim.pgd import pgd
from udpbench.protect.anti_diffusion import AntiDiffusion
from udpbench.protect.aspl import ASPL
from udpbench.protect.disdiff import DisDiff, energy_fraction, merit
from udpbench.protect.hf_adb import HFADB, HighFrequency, high_frequencies

PARENT = {"rounds": 2, "clean_steps": 1, "image_steps": 2, "model_steps": 1, "lr": 1e-3, "batch": 2}
DISDIFF = {**PARENT, "search_rounds": 0, "attention_weight": 0.1}
ANTI = {"rounds": 3, "text_steps": 4, "image_steps": 2, "model_steps": 2, "lr": 1e-3, "text_lr": 1e-2}


class SameDraws(Run):
    """A run in which numbers do not depend on the method that asks for them."""

    def rng(self, *key: object) -> torch.Generator:
        return super().rng(*key[1:])


def drawn(owner, model):
    z, cond = model.encode(torch.stack(owner.images)), model.embed(owner.prompts)
    t = torch.tensor([50, 300, 600, 900])
    return z.detach(), cond, t, torch.randn(z.shape, generator=Run().rng("noise"))


# -- DisDiff -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_disdiff_without_its_terms_is_aspl(model, owner):
    plain = ASPL(**PARENT).protect(owner, Linf(8), model, SameDraws())
    bare = {"attention_weight": 0.0, "by_time": False, "keep": 1000}
    same = DisDiff(**{**DISDIFF, **bare}).protect(owner, Linf(8), model, SameDraws())
    assert torch.equal(torch.stack(same), torch.stack(plain))
    for more in ({"by_time": False}, {"attention_weight": 0.0}):
        other = DisDiff(**{**DISDIFF, **more}).protect(owner, Linf(8), model, SameDraws())
        assert not torch.equal(torch.stack(other), torch.stack(plain))


def test_the_attention_erased_is_that_of_the_perturbed_picture_beside_the_feature_term_too(model, owner):
    z = model.encode(owner.images[0][None]) + 0.1
    cond, noise = model.embed(owner.prompts[:1]), torch.randn(z.shape, generator=torch.Generator().manual_seed(0))

    def value(**weights: float) -> torch.Tensor:
        settings = {**DISDIFF, "feature_weight": 0.0, "attention_weight": 0.0, **weights}
        objective = DisDiff(**settings).objective(model, owner, Run())
        assert objective is not None
        return objective(z, cond, torch.tensor([100]), noise, [0])

    plain = model.loss(z, cond, torch.tensor([100]), noise)
    alone = [value(feature_weight=1.0) - plain, value(attention_weight=1.0) - plain]
    assert value(feature_weight=1.0, attention_weight=1.0) - plain == pytest.approx(sum(alone), rel=1e-4)
    assert min(alone) > 0


def test_features_are_not_read_behind_a_compiled_network_either():
    method = DisDiff(**{**DISDIFF, "attention_weight": 0.0, "search_rounds": 1, "feature_weight": 1.0})
    compiled = SimpleNamespace(compile="unet", name="mine")
    with pytest.raises(ValueError, match="compile"):
        method.check_model(compiled)


@pytest.mark.parametrize(("kind", "settings"), [(DisDiff, DISDIFF), (ASPL, PARENT)])
@pytest.mark.parametrize("forgets", [True, False])
def test_the_surrogate_keeps_what_clean_pictures_taught_as_released(model, owner, kind, settings, forgets):
    method = kind(**{**settings, "rounds": 1, "model_steps": 0}, forgets=forgets)
    trainable = method.trainable(model, Run())
    before = [p.clone() for p in trainable.weights()]
    turn = method.turns(trainable, model, owner, Linf(8), Run())
    turn(list(owner.images), 0, lambda n: None)
    assert all(torch.equal(a, b) for a, b in zip(before, trainable.weights(), strict=True)) == forgets


def test_the_word_is_the_rare_one_the_class_noun_or_the_one_given(model, owner):
    tokenizer, method = Tokenizer(model.pipe.tokenizer), DisDiff(**DISDIFF)
    owner.token = "sks"
    assert method.word_places(tokenizer, owner, "a photo of a sks ring") == [5]
    assert method.word_places(tokenizer, owner, "a photo of a ring") == [5]
    assert replace(method, word="photo").word_places(tokenizer, owner, "a photo of a sks ring") == [2]
    with pytest.raises(ValueError, match=r"^disdiff: the prompt '' lacks the word 'ring'; give protect.word"):
        method.word_places(tokenizer, owner, "")
    with pytest.raises(ValueError, match="lacks the word 'dog'"):
        replace(method, word="dog").check_texts(tokenizer, owner)
    replace(method, word="dog", attention_weight=0).check_texts(tokenizer, owner)  # nothing is looked for


def test_a_share_is_of_energy():
    sharp = torch.zeros(6, 4)
    sharp[:, 2] = 1.0  # every place looks at one word
    assert float(energy_fraction(sharp, [2])) == pytest.approx(1)
    assert float(energy_fraction(sharp, [0])) == pytest.approx(0, abs=1e-6)
    assert float(energy_fraction(torch.full((6, 4), 0.1), [0, 1])) == pytest.approx(0.5)


def test_a_step_s_length_is_the_mean_of_all_that_was_drawn_for_it():
    """Two views of two pictures; then one of the second alone."""
    given = iter([[0, 999], [999, 999], [0]])
    drawn, scale = DisDiff(**DISDIFF).paced(lambda index, rngs, n: torch.tensor(next(given)), 1000, 2)
    for _ in range(2):
        drawn([0, 1], [], 1)
    assert scale([0, 1]).tolist() == pytest.approx([0.5, 0], abs=1e-6)
    drawn([1], [], 1)
    assert scale([1]).tolist() == pytest.approx([1])


def test_hf_adb_at_a_small_root_mean_square_leaves_the_other_pixels_of_the_saved_picture(pictures):
    """Its bound there is less than a step of 8 bits at 8, a step at 8.8."""
    clean = torch.stack(pictures[:1])
    for eps, most in ((8.0, 0), (8.8, 1)):
        within = HighFrequency(RMS(eps), 0.03, 0.02, "rms")
        moved = within.project(torch.where(clean < 0.5, 1.0, 0.0), clean)  # as far as it goes
        outside = ~high_frequencies(clean, 0.03).expand_as(clean)
        assert int(((as_saved(moved[0]) - clean[0])[outside[0]] * 255).abs().round().max()) == most


def test_steps_shrink_with_the_time_step():
    assert merit(torch.tensor([0, 999]), 1000).tolist() == pytest.approx([1, 0], abs=1e-6)
    assert float(merit(torch.tensor([333]), 1000)) == pytest.approx(0.75)
    clean = [torch.full((3, 4, 4), 0.5)] * 2
    got = pgd(clean, clean, lambda x, index: x.sum((1, 2, 3)), Linf(20), Run(), steps=[8, 8], most=None,
              scale=lambda index: torch.tensor([1.0, 0.25])[index])  # fmt: skip
    assert [round(float((x - 0.5).mean() * 255)) for x in got] == [16, 4]


def test_disdiffs_objective_is_the_loss_and_the_erasure_with_its_gradient(model, owner):
    z, cond, t, noise = drawn(owner, model)
    method, which = DisDiff(**DISDIFF), [0, 1, 2, 3]
    value = method.objective(model, owner, Run())(z, cond, t, noise, which)
    with read_attention(model.pipe.unet) as read:
        plain = model.loss(z, cond, t, noise)
    whole = mean_map(read, 4)
    n = [len(Tokenizer(model.pipe.tokenizer).ids(prompt)) - 2 for prompt in owner.prompts]  # words of each prompt
    place = 4  # of "ring" among them: a photo of a ring
    fractions = torch.stack([energy_fraction(x[:, 1 : 1 + k], [place]) for x, k in zip(whole, n, strict=True)])
    torch.testing.assert_close(value, plain + 0.1 * (1 - fractions).square())
    heavy = replace(method, attention_weight=50.0).objective(model, owner, Run())
    _check_slope(lambda at: heavy(at, cond, t, noise, which).sum(), z)


def _check_slope(value, z: torch.Tensor) -> None:
    """The gradient of ``value`` at ``z`` along itself, against finite differences."""
    at = z.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(at), at)
    direction, h = gradient / gradient.norm(), 1e-2
    with torch.no_grad():
        slope = float(value(z + h * direction) - value(z - h * direction)) / (2 * h)
    assert slope == pytest.approx(float(gradient.norm()), rel=0.05)


# -- HF-ADB ------------------------------------------------------------------------------------------------------------


def test_high_frequencies_are_where_the_laplacian_is_largest():
    x = torch.full((2, 3, 10, 12), 0.2)
    x[0, :, 4, 5] = x[1, :, 7, 2] = 0.9  # a bright point; its neighbours' responses are negative
    x[1, :, 2, 6] = 0.3
    found = high_frequencies(x, 2.5 / 120)
    assert found.shape == (2, 1, 10, 12)
    assert found.flatten(1).sum(1).tolist() == [2, 2]
    assert found[0, 0, 4, 5]
    assert found[1, 0, 7, 2]
    assert found[1, 0, 2, 6]


@pytest.mark.parametrize("eps", [8.0, 63.75])
def test_the_budget_is_large_there_and_small_elsewhere(pictures, eps):
    clean = torch.stack(pictures[:3]).clamp(0.3, 0.7)
    clean = as_saved(clean)
    far = clean + torch.randn(clean.shape, generator=Run().rng("far")).sign()
    inside = high_frequencies(clean, 0.03).expand_as(clean)
    steps = (as_saved(HighFrequency(Linf(eps), 0.03, 0.02, "linf").project(far, clean)) - clean).mul(255).abs().round()
    assert float(steps[inside].max()) <= eps
    assert float(steps[inside].min()) >= min(math.floor(eps), 0.3 * 255)
    assert float(steps[~inside].max()) <= max(1, 0.02 * eps) + 1e-3
    whole = HighFrequency(Linf(eps), 0.03, 0.5, "rms")
    assert math.sqrt(0.03 * whole.eps**2 + 0.97 * (0.5 * whole.eps) ** 2) == pytest.approx(eps)
    kept = HighFrequency(RMS(5), 0.03, 0.5, "rms").project(far, clean)
    assert all(measure(a, b)["rms"] <= 5 for a, b in zip(clean, kept, strict=True))


def test_hf_adb_with_one_bound_everywhere_is_aspl(model, owner):
    plain = ASPL(**PARENT).protect(owner, Linf(8), model, SameDraws())
    same = HFADB(**PARENT, fraction=0.5, outside=1.0).protect(owner, Linf(8), model, SameDraws())
    assert torch.equal(torch.stack(same), torch.stack(plain))
    assert HFADB(**PARENT, fraction=0.5, outside=1.0).keeps_budget
    assert not HFADB(**PARENT, fraction=0.5, outside=1.0, bound="rms").keeps_budget


# -- Anti-Diffusion ----------------------------------------------------------------------------------------------------


def test_anti_diffusions_objective_is_the_loss_less_the_attention(model, owner):
    z, cond, t, noise = drawn(owner, model)
    value = AntiDiffusion(**ANTI)._objective(model)(z, cond, t, noise, [0, 1, 2, 3])
    with read_attention(model.pipe.unet) as read:
        plain = model.loss(z, cond, t, noise)
    cut = (100 * mean_map(read, 4)).clamp(max=1)
    torch.testing.assert_close(value, plain - cut.square().mean((1, 2)))
    assert torch.equal(
        replace(AntiDiffusion(**ANTI), attention_weight=0.0)._objective(model)(z, cond, t, noise, [0]), plain
    )


@pytest.mark.slow
def test_anti_diffusion_counts_its_work_moves_by_rounds_and_tunes_what_it_says(model, owner):
    run, few = Run(), make_owner(owner.images[:2])
    AntiDiffusion(**ANTI).protect(few, Linf(8), model, run)
    prompts, unet = 2 * 4, 2 * 2  # the prompt is tuned in two of three rounds, the UNet in the last two
    assert run.count == {"unet_image": 2 * 3 * 2, "unet_train": 2 * (prompts + unet)}
    near = AntiDiffusion(**{**ANTI, "round_eps": 1.275, "image_steps": 3, "step_size": 1.0})
    few = make_owner(owner.images[:1])
    made = near.protect(few, Linf(8), model, Run())
    sizes = [measure(a, b)["linf"] for a, b in zip(few.images, made, strict=True)]
    assert all(1 <= size <= 4 for size in sizes)  # three rounds of 1.275
    frozen = {"text_steps": 0, "model_steps": 0}
    kinds = [{}, frozen, {**frozen, "text_steps": 4}, {**frozen, "model_steps": 2}]
    got = [AntiDiffusion(**{**ANTI, **kind}).protect(few, Linf(8), model, Run())[0] for kind in kinds]
    assert all(not torch.equal(a, b) for i, a in enumerate(got) for b in got[:i])


@pytest.mark.parametrize(("kind", "settings"), [
    (DisDiff, {**DISDIFF, "attention_weight": -1}), (HFADB, {**PARENT, "fraction": 0, "outside": 0.1}),
    (HFADB, {**PARENT, "fraction": 0.1, "outside": 2}), (HFADB, {**PARENT, "fraction": 0.1, "outside": 0.1, "bound": "l2"}),
    (AntiDiffusion, {**ANTI, "rounds": 0}), (AntiDiffusion, {**ANTI, "round_eps": 0.5}),
])  # fmt: skip
def test_wrong_settings_are_refused_in_one_line(kind, settings):
    with pytest.raises(ValueError, match="given|allowed are") as error:
        kind(**settings)
    assert "\n" not in str(error.value)
