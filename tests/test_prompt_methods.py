"""CAAT and PAP: their steps by hand, what they share with AdvDM, and what the embeddings of PAP are."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from shared import Watching, make_owner
from torch import nn

from udpbench.core.budget import Linf
from udpbench.core.images import as_saved
from udpbench.interfaces import Run
from udpbench.models.diffusion import Cond
from udpbench.optim import pgd as optim_pgd
from udpbench.protect.advdm import AdvDM
from udpbench.protect.caat import CAAT
from udpbench.protect.pap import PAP

STEPS = {"image_steps": 3}
LAPLACE = {"rounds": 1, "image_steps": 3, "text_steps": 10, "text_rate": 20.0, "per_value": True}


class SameDraws(Run):
    """A run in which a picture's numbers do not depend on who asks for them."""

    def rng(self, *key: object) -> torch.Generator:
        return super().rng(key[-1])


def kv(model) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.pipe.unet.named_parameters() if ".attn2.to_k." in n or ".attn2.to_v." in n}


def test_caats_first_step_is_advdms_and_its_later_ones_are_not(model, owner):
    mine = CAAT(image_steps=1, lr=0.1).protect(owner, Linf(8), model, SameDraws())
    theirs = AdvDM(steps=1, random_start=False).protect(owner, Linf(8), model, SameDraws())
    assert torch.equal(torch.stack(mine), torch.stack(theirs))
    frozen, tuned = (CAAT(**STEPS, lr=lr).protect(owner, Linf(8), model, Run()) for lr in (0.0, 0.01))
    assert not torch.equal(torch.stack(frozen), torch.stack(tuned))


def test_caat_tunes_keys_and_values_alone_by_adamw_at_the_pictures_before_the_step(model, owner, monkeypatch):
    """One step of AdamW: by lr against the sign of the gradient of the loss that the pictures raise in that step."""
    before = {n: p.clone() for n, p in model.pipe.unet.named_parameters()}
    kept = []
    real = CAAT._trainable
    monkeypatch.setattr(CAAT, "_trainable", lambda self, *a: kept.append(real(self, *a)) or kept[-1])
    lr = 1e-3
    CAAT(image_steps=1, lr=lr, sample_latents=False).protect(owner, Linf(8), model, Run())
    after = dict(kept[0].model.pipe.unet.named_parameters())
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == kv(model).keys()
    assert all(torch.equal(p, before[n]) for n, p in model.pipe.unet.named_parameters())
    from udpbench.optim.denoising import denoising_loss

    fresh = real(CAAT(**STEPS, lr=lr), model, Run()).model
    weights = kv(fresh)
    for p in weights.values():
        p.requires_grad_(True)
    rngs = [Run().rng("caat", 0, name) for name in owner.names]
    with torch.no_grad():
        cond = model.embed(owner.prompts)
    loss = denoising_loss(fresh, cond, rngs, Run(), samples=1, sample_latents=False)
    x = torch.stack(owner.images)
    gradients = torch.autograd.grad(loss(x, list(range(len(x)))).mean(), list(weights.values()))
    for (name, start), gradient in zip(weights.items(), gradients, strict=True):
        clear = gradient.abs() > 1e-3 * gradient.abs().max()
        wanted = start * (1 - lr * 0.01) - lr * gradient.sign()
        torch.testing.assert_close(after[name][clear], wanted[clear], atol=0.05 * lr, rtol=0)


def test_paps_embeddings_fit_the_pictures_and_its_variance_is_laplaces(model, owner):
    z, cond = model.encode(torch.stack(owner.images)), model.embed(owner.prompts)
    t, noise = torch.tensor([50, 300, 600, 900]), torch.randn(z.shape, generator=Run().rng("x"))
    method = PAP(**LAPLACE)
    c, deviation = method.approximation(model, z, cond, t, noise)
    first, last = model.loss(z, cond, t, noise), model.loss(z, Cond(c), t, noise)
    assert (last < first).all()
    moved = (c - cond.hidden).square().flatten(1).sum(1)
    variance = moved / (2 * (first - last)) / c[0].numel()
    torch.testing.assert_close(deviation.flatten(), variance.sqrt(), rtol=1e-2, atol=0)
    _, whole = replace(method, per_value=False).approximation(model, z, cond, t, noise)
    torch.testing.assert_close(whole.flatten(), deviation.flatten() * c[0].numel() ** 0.5)
    _, square = replace(method, deviation="square").approximation(model, z, cond, t, noise)
    torch.testing.assert_close(square.flatten(), deviation.flatten() ** 4)
    _, of_four = replace(method, pictures=4).approximation(model, z, cond, t, noise)
    torch.testing.assert_close(of_four.flatten(), 2 * deviation.flatten())


def test_paps_approximation_of_a_bowl_is_the_bowl():
    """Of a loss h/2 |c - m|^2 the mean is m and H^-1 is 1/h."""
    h, m = 0.25, torch.randn((1, 3, 5), generator=Run().rng("m"))
    bowl = SimpleNamespace(loss=lambda z, cond, t, noise: (cond.hidden - m).square().flatten(1).sum(1) * h / 2)
    method = PAP(rounds=1, image_steps=1, text_steps=50, text_rate=2.0, per_value=False)
    none = torch.zeros(2)
    c, deviation = method.approximation(bowl, none, Cond(torch.zeros(2, 3, 5)), none, none)
    torch.testing.assert_close(c, m.expand(2, -1, -1))
    torch.testing.assert_close(deviation.flatten().square(), torch.full((2,), 1 / h))


def test_pap_descends_once_a_round_and_its_steps_draw_anew(model, owner):
    run, budget = Run(), Watching(8)
    PAP(**{**LAPLACE, "rounds": 2, "samples": 2}).protect(owner, budget, model, run)
    assert run.count == {"unet_image": 2 * 3 * 2 * 4, "unet_text": 2 * 10 * 2 * 4}
    assert len(budget.gradients) == 6


@pytest.mark.parametrize("method", [CAAT(**STEPS, lr=0.01, sample_latents=False), PAP(**LAPLACE, sample_latents=False)])
def test_the_gradient_of_the_first_step_is_that_of_the_loss(model, pictures, method, monkeypatch):
    """Against finite differences along a random direction, on what pgd is handed."""
    owner, losses, budget = make_owner(pictures[:2]), [], Watching(8)
    real = optim_pgd.pgd

    def keeping(images, clean, loss, *args, **more):
        losses.append(loss)
        return real(images, clean, loss, *args, **more)

    module = f"udpbench.protect.{type(method).__name__.lower()}.pgd"
    monkeypatch.setattr(module, lambda images, clean=None, loss=None, budget=None, run=None, **more: keeping(
        images, clean, loss, budget, run, **more))  # fmt: skip
    method.protect(owner, budget, model, SameDraws())
    budget.gradients, losses = [], []
    again = SameDraws()
    states: list[torch.Generator] = []
    monkeypatch.setattr(SameDraws, "rng", lambda self, *key: states.append(Run.rng(self, key[-1])) or states[-1])
    method.protect(owner, budget, model, again)
    assert len(budget.gradients[0]) == 2
    x = torch.stack(owner.images).double().float()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    direction = direction / direction.norm()

    def value(at: torch.Tensor) -> float:
        for state in states:
            state.manual_seed(3)
        return float(losses[0](at, [0, 1]).sum())

    for state in states:
        state.manual_seed(3)
    at = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(losses[0](at, [0, 1]).sum(), at)
    h = 3e-3
    slope = (value(x + h * direction) - value(x - h * direction)) / (2 * h)
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=0.1, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [CAAT(image_steps=16, samples=2, lr=1e-4), PAP(**{**LAPLACE, "image_steps": 8, "samples": 8, "step_size": 4.0})],
)
def test_the_saved_pictures_have_a_higher_loss(model, owner, method):
    """Of the pretrained model, at fresh time steps and noise, under the owner's prompts."""
    made = as_saved(torch.stack(method.protect(owner, Linf(16), model, Run())))
    with torch.no_grad():
        cond = model.embed(owner.prompts)

        def loss(x: torch.Tensor) -> float:
            rng, n = torch.Generator().manual_seed(99), 64
            z, many = model.encode(x).repeat_interleave(n, 0), cond.repeat(n)
            return float(model.training_loss(z, many, rng).mean())

        assert loss(made) > loss(torch.stack(owner.images))


@pytest.mark.parametrize(("kind", "settings"), [
    (CAAT, {**STEPS, "lr": -1}), (CAAT, {"image_steps": 0, "lr": 1e-4}), (PAP, {**LAPLACE, "text_rate": 0}),
    (PAP, {**LAPLACE, "deviation": "cube"}), (PAP, {**LAPLACE, "text_steps": 0}),
])  # fmt: skip
def test_wrong_settings_are_refused_in_one_line(kind, settings):
    with pytest.raises(ValueError, match="given|allowed are") as error:
        kind(**settings)
    assert "\n" not in str(error.value)


def test_caat_counts_all_samples_of_its_training(model, owner):
    run, n = Run(), len(owner.images)
    CAAT(image_steps=2, samples=3, lr=1e-4).protect(owner, Linf(8), model, run)
    assert run.count == {"unet_image": 2 * 3 * n, "unet_train": 2 * 3 * n}


def test_caats_keys_and_values_learn_the_same_whatever_fits_into_memory(model, owner):
    whole = CAAT(**STEPS, lr=0.01, sample_latents=True).protect(owner, Linf(8), model, Run())
    parts = CAAT(**STEPS, lr=0.01, sample_latents=True).protect(owner, Linf(8), model, Run(grad_batch=1))
    changed = torch.stack([(x - y).abs().max() for x, y in zip(whole, parts, strict=True)])
    near = torch.cat([(x - y).abs().flatten() < 1e-5 for x, y in zip(whole, parts, strict=True)]).float().mean()
    assert float(near) > 0.98, f"pictures differ by up to {changed.max():.3f}: signs of a few gradients near 0 may"


def test_pap_fits_its_prompts_in_float32_whatever_the_model_is(model, owner):
    half = model.having(text_encoder=copy.deepcopy(model.pipe.text_encoder).bfloat16())
    z, t = model.encode(torch.stack(owner.images)).detach(), torch.full((len(owner.images),), 100)
    noise = torch.randn(z.shape, generator=Run().rng("noise"))
    method = PAP(rounds=1, image_steps=1, text_steps=3, text_rate=1e-3, per_value=True)
    c, deviation = method.approximation(model, z, half.embed(owner.prompts), t, noise)
    assert c.dtype == deviation.dtype == torch.float32
    moved = (c - half.embed(owner.prompts).hidden.float()).abs().max()
    assert 0 < float(moved) < 2**-9 * float(c.abs().max()), "less than bfloat16 could show of the largest values"
