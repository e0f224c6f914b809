"""FSMG, ASPL and SimAC: closed forms, what trains what, and going on after an interruption."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from shared import Stops, make_owner

from udpbench.core.budget import RMS, Linf, measure
from udpbench.core.images import as_saved, write_png
from udpbench.interfaces import Owner, Run
from udpbench.optim.denoising import denoising_loss
from udpbench.protect.advdm import AdvDM
from udpbench.protect.aspl import ASPL
from udpbench.protect.fsmg import FSMG, previous_mean
from udpbench.protect.simac import SimAC

SHORT = {"clean_steps": 2, "image_steps": 4, "lr": 1e-2, "batch": 2, "class_images": 1}
ROUNDS = {"rounds": 2, "model_steps": 2}


class ByName(Run):
    """A run whose generators belong to the last word of the key alone: the same for all methods and rounds."""

    def rng(self, *key: object) -> torch.Generator:
        return super().rng(key[-1])


def owner_of(pictures: list[torch.Tensor]) -> Owner:
    """Two pictures of two sizes, two further clean ones of the sizes, one of the class."""
    wide = torch.cat([pictures[1], pictures[2]], 2)[:, :, :27]
    owner = make_owner([pictures[0], wide])
    owner.extra_clean = [pictures[2], wide.flip(2)]
    return owner


def made(kind, pictures, model, budget=None, run=None, **settings) -> list[torch.Tensor]:
    given = SHORT | (ROUNDS if kind is ASPL else {}) | settings
    return kind(**given).protect(owner_of(pictures), budget or Linf(8), model, run or Run())


@pytest.fixture(scope="module")
def plain(pictures, model) -> dict[type, list[torch.Tensor]]:
    return {kind: made(kind, pictures, model) for kind in (FSMG, ASPL)}


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
def test_fsmg_without_training_is_advdm_and_one_round_of_aspl_is_fsmg(pictures, model):
    untrained = made(FSMG, pictures, model, run=ByName(), clean_steps=0, sample_latents=True)
    advdm = AdvDM(steps=4, random_start=False).protect(owner_of(pictures), Linf(8), model, ByName())
    assert same(untrained, advdm)
    assert same(made(FSMG, pictures, model, run=ByName()), made(ASPL, pictures, model, run=ByName(), rounds=1))


@pytest.mark.parametrize(("part", "budget"), [("unet", RMS(4)), ("text", Linf(8)), ("lora", Linf(8))])
def test_the_budget_is_kept_and_used_and_the_model_stays_as_it_is(pictures, model, budget, part):
    before = [p.clone() for p in (*model.pipe.unet.parameters(), *model.pipe.text_encoder.parameters())]
    run, owner = Run(), owner_of(pictures)
    trained = {"train_text_encoder": part == "text", "lora_rank": 2 * (part == "lora")}
    for clean, x in zip(owner.images, made(ASPL, pictures, model, budget, run, **trained), strict=True):
        measured = measure(clean, x)
        assert 0.25 * budget.eps < measured["rms"]
        assert measured[budget.kind] <= budget.eps * (1 + 1e-9)
    after = (*model.pipe.unet.parameters(), *model.pipe.text_encoder.parameters())
    assert same(before, list(after))
    # two rounds; no training on the perturbed pictures in the last
    assert run.count == {"unet_train": 2 * (2 + 2 + 2) * 2, "unet_image": 2 * 4 * 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    "other",
    [
        {"clean_steps": 0},
        {"clean": "extra"},
        {"prior_weight": 9.0},
        {"train_text_encoder": True},
        {"lora_rank": 2},
        {"samples": 2},
        {"sample_latents": True},
        {"dtype": "bf16"},
    ],
    ids=lambda o: next(iter(o)),
)
def test_every_setting_changes_the_pictures(pictures, model, plain, other):
    assert not same(plain[FSMG], made(FSMG, pictures, model, **other))


def test_what_perturbed_pictures_teach_counts(pictures, model, plain):
    assert not same(plain[ASPL], made(ASPL, pictures, model, model_steps=0))


def test_less_memory_makes_the_same_pictures(pictures, model, plain):
    slower = made(FSMG, pictures, model, gradient_checkpointing=True, run=Run(grad_batch=1))
    for a, b in zip(plain[FSMG], slower, strict=True):
        assert ((a - b).abs() < 1e-5).float().mean() > 0.99  # the sign of a vanishing gradient may flip


def test_saved_pictures_are_harder_for_a_model_that_knows_the_subject(pictures, model):
    method, owner, run = FSMG(**SHORT | {"image_steps": 10}), owner_of(pictures), Run()
    trainable = method.trainable(model, run)
    method.trainer(trainable, owner, run)(method.clean_set(trainable, owner, run), 2, "clean", 0)
    protected = method.protect(owner, Linf(8), model, run)
    trainable.train(False)
    drawn = {"samples": 64, "sample_latents": False}
    with torch.no_grad():
        cond, losses = trainable.model.embed(owner.prompts), []
        for i in range(2):
            for x in (owner.images[i], as_saved(protected[i])):
                rngs = [Run(seed=9).rng(name) for name in owner.names]
                losses.append(denoising_loss(trainable.model, cond, rngs, run, **drawn)(x[None], [i]).item())
    assert losses[1] > losses[0]
    assert losses[3] > losses[2]


def test_it_says_in_one_line_what_it_lacks(pictures, model):
    owner = owner_of(pictures)
    owner.extra_clean = []
    with pytest.raises(ValueError, match="^aspl: needs further clean pictures of the subject; give data.extra_clean$"):
        ASPL(**SHORT, **ROUNDS, clean="extra").protect(owner, Linf(8), model, Run())


@pytest.mark.slow
def test_an_interrupted_attempt_goes_on_to_the_same_pictures(pictures, model, plain, tmp_path, monkeypatch):
    monkeypatch.setattr("udpbench.optim.rounds.SAVE_EVERY", 0)
    with pytest.raises(KeyboardInterrupt):
        made(ASPL, pictures, model, run=Run(scratch=tmp_path, log=Stops()))
    run = Run(scratch=tmp_path)
    assert same(made(ASPL, pictures, model, run=run), plain[ASPL])
    assert run.count["unet_image"] == 2 * 4 * 2


# -- targeted ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_earlier_latents_are_those_of_diffusers_without_its_noise(monkeypatch, prediction):
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda shape, **_: torch.zeros(shape))
    ddpm = DDPMScheduler(beta_schedule="scaled_linear", clip_sample=False, prediction_type=prediction)
    told, noisy = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    t = torch.tensor([999, 400, 0])
    want = torch.cat([ddpm.step(told[i, None], int(t[i]), noisy[i, None]).prev_sample for i in range(3)])
    a = ddpm.alphas_cumprod.double()
    b = torch.cat([torch.ones(1), a])
    torch.testing.assert_close(previous_mean(told, noisy, a[t], b[t], prediction), want, rtol=1e-4, atol=1e-5)


def test_the_term_of_a_target_is_the_distance_of_the_latents_to_its_own(pictures, model, plain, tmp_path):
    one, other = tmp_path / "a.png", tmp_path / "b.png"
    write_png(one, pictures[3])
    write_png(other, 1 - pictures[3])
    aimed = made(FSMG, pictures, model, target=str(one))
    assert not same(aimed, plain[FSMG])
    assert not same(aimed, made(FSMG, pictures, model, target=str(other)))
    method, owner = FSMG(**SHORT, target=str(one)), make_owner([pictures[3], pictures[0]])
    objective, z = method.objective(model, owner, Run()), model.encode(torch.stack(owner.images))
    cond, t = model.embed(owner.prompts), torch.tensor([0, 0])
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    shortfall = model.loss(z, cond, t, noise) - objective(z, cond, t, noise, [0, 1])
    # At t = 0, x_(-1) is about the latents of the picture: the distance is that of the latents.
    distance = (z - z[:1]).square().flatten(1).mean(1)
    torch.testing.assert_close(shortfall, distance, atol=0.05, rtol=0.2)


def test_the_gradient_is_that_of_finite_differences(pictures, model, tmp_path):
    write_png(tmp_path / "a.png", pictures[3])
    method, owner = FSMG(**SHORT, target=str(tmp_path / "a.png")), make_owner(pictures[:1])
    x = owner.images[0][None].clone().requires_grad_(True)
    towards = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))

    def loss(x: torch.Tensor) -> torch.Tensor:
        return method.image_loss(model, owner, Run(), 0)(x, [0]).sum()

    (gradient,) = torch.autograd.grad(loss(x), x)
    with torch.no_grad():
        slope = (loss(x + 1e-3 * towards) - loss(x - 1e-3 * towards)) / 2e-3
    assert float((gradient * towards).sum()) == pytest.approx(float(slope), rel=0.02)


# -- SimAC -------------------------------------------------------------------------------------------------------------

SEARCH = {"search_rounds": 3, "candidates": 4, "window": 60}


@pytest.mark.slow
def test_simac_without_search_and_features_is_aspl(pictures, model):
    aspl = made(ASPL, pictures, model, run=ByName(), samples=2)
    assert same(aspl, made(SimAC, pictures, model, run=ByName(), **ROUNDS, samples=2, search_rounds=0))


def test_the_search_drops_the_weakest_steps_and_climbs_at_the_strongest():
    tried, climbed = [], []

    def strengths(t: torch.Tensor) -> torch.Tensor:
        tried.append(t)
        return (t - 500).abs()  # the weakest is the one next to the middle

    method = SimAC(**SHORT, **ROUNDS, **SEARCH)
    left = method.search(1000, torch.Generator().manual_seed(0), strengths, lambda t: climbed.append(int(t)))
    want = torch.ones(1000, dtype=torch.bool)
    for t, up in zip(tried, climbed, strict=True):
        assert want[t].all(), "a step that was dropped"
        weakest = int(t[(t - 500).abs().argmin()])
        want[max(weakest, 60) - 60 : max(weakest, 60) + 60] = False
        assert up == t[(t - 500).abs().argmax()]
    assert torch.equal(left, want.nonzero()[:, 0])
    assert len(tried) == 3
    few = SimAC(**SHORT, **ROUNDS, search_rounds=99, window=60, keep=300)
    assert 0 < len(few.search(1000, torch.Generator().manual_seed(0), strengths, lambda t: None)) <= 300


def test_steps_come_from_what_the_search_left_and_its_gradients_are_counted(pictures, model):
    method, owner, run = SimAC(**SHORT, **ROUNDS, **SEARCH, sample_latents=True), make_owner(pictures[:2]), Run()
    times = method.times(model, owner, Linf(8), run)
    assert run.count == {"unet_image": 2 * 3 * (4 + 1)}
    drawn = times([1, 0], [torch.Generator().manual_seed(i) for i in (0, 1)], 20000).view(2, -1)
    for i, t in zip((1, 0), drawn, strict=True):
        left = method._search(i, model, owner, Linf(8), Run())
        assert torch.equal(t.unique(), left)


def test_the_feature_term_is_of_the_clean_picture_and_has_a_gradient(pictures, model):
    method, owner = SimAC(**SHORT, **ROUNDS, **SEARCH, feature_weight=2.0), make_owner(pictures[:1])
    objective, clean = method.objective(model, owner, Run()), model.encode(owner.images[0][None])
    cond, t = model.embed(owner.prompts), torch.tensor([300])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    at_clean = objective(clean, cond, t, noise, [0])
    torch.testing.assert_close(at_clean, model.loss(clean, cond, t, noise))
    towards = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    z = (clean + 0.5 * towards).requires_grad_(True)

    def term(z: torch.Tensor) -> torch.Tensor:
        return (objective(z, cond, t, noise, [0]) - model.loss(z, cond, t, noise)).sum()

    (gradient,) = torch.autograd.grad(term(z), z)
    with torch.no_grad():
        assert term(z) > 0
        slope = (term(z + 1e-2 * towards) - term(z - 1e-2 * towards)) / 2e-2
    assert float((gradient * towards).sum()) == pytest.approx(float(slope), rel=0.05)
    assert not any(block.conv2._forward_hooks for block in model.pipe.unet.up_blocks[-1].resnets)


@pytest.mark.parametrize("sample_latents", [True, False])
def test_what_the_search_leaves_does_not_depend_on_how_many_gradients_fit_into_memory(pictures, model, sample_latents):
    method = SimAC(**SHORT, **ROUNDS, **SEARCH, sample_latents=sample_latents)
    owner = make_owner(pictures[:1])
    left = [method._search(0, model, owner, Linf(8), Run(grad_batch=n)) for n in (32, 2, 1)]
    assert all(torch.equal(left[0], other) for other in left[1:])


def test_the_search_never_drops_the_last_time_steps():
    """Time steps in one window, of which more than ``keep`` are left: they stay."""
    method = SimAC(**SHORT, **ROUNDS, search_rounds=9, window=60, keep=100)
    rng = torch.Generator().manual_seed(0)
    left = method.search(110, rng, lambda t: (t - 55).abs().float(), lambda t: None)
    assert len(left) > 0


def test_the_target_of_fsmg_is_noised_to_the_step_before(model, pictures, tmp_path):
    write_png(tmp_path / "a.png", pictures[3])
    method = FSMG(clean_steps=0, image_steps=1, lr=1e-2, batch=2, class_images=0, target=str(tmp_path / "a.png"))
    owner, t = make_owner(pictures[:2]), torch.tensor([400, 900])
    z, target = model.encode(torch.stack(owner.images)), model.encode(pictures[3][None])
    noise, cond = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)), model.embed(owner.prompts)
    a, b = (model.alpha_bar[k].view(-1, 1, 1, 1) for k in (t, t - 1))
    with torch.no_grad():
        noisy = a.sqrt() * z + (1 - a).sqrt() * noise
        told = model.predict(noisy, t, cond)
        aimed = b.sqrt() * target + (1 - b).sqrt() * noise
        want = (previous_mean(told, noisy, a.flatten(), b.flatten(), "epsilon") - aimed).square().mean((1, 2, 3))
        got = model.loss(z, cond, t, noise) - method.objective(model, owner, Run())(z, cond, t, noise, [0, 1])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
