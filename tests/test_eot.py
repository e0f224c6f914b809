"""Transformations of pictures, and a protection in expectation over them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from shared import Watching, make_owner

from udpbench.core.budget import Linf
from udpbench.core.codecs import recompress
from udpbench.interfaces import Run
from udpbench.optim import transforms
from udpbench.optim.transforms import blur, crop, flip, jpeg, noisy, resized
from udpbench.protect.advdm import AdvDM
from udpbench.protect.anti_diffusion import AntiDiffusion
from udpbench.protect.eot import EOT, TRANSFORMS
from udpbench.protect.noise import Noise

STRENGTHS = {"views": 1, "quality": (50, 95), "sigma": 1.0, "scale": 0.5, "part": 0.8, "std": 8.0}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def eot(*transforms: str, inner=None, **settings) -> EOT:
    inner = inner or AdvDM(steps=2, random_start=False)
    return EOT(inner=inner, transforms=list(transforms), **STRENGTHS | settings)


# -- the transformations -----------------------------------------------------------------------------------------------


def test_jpeg_is_the_encoder_and_its_gradient_that_of_the_identity(pictures):
    x = pictures[0].clone().requires_grad_(True)
    made = jpeg(x, rng(), 60, 60)
    torch.testing.assert_close(made, recompress(pictures[0], "jpeg", 60))
    (gradient,) = torch.autograd.grad(made.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))


EVERY = {
    "blur": lambda x, r: blur(x, r, 0.5, 1.5),
    "resize": lambda x, r: resized(x, r, 0.4),
    "crop": lambda x, r: crop(x, r, 0.5),
    "flip": flip,
    "noise": lambda x, r: noisy(x, r, 8.0),
}


@pytest.mark.parametrize("kind", EVERY)
def test_a_transformation_keeps_size_and_range_is_drawn_anew_and_has_its_gradient(pictures, kind):
    x = (0.2 + 0.6 * torch.cat([pictures[0], pictures[1]], 2)[:, :, :27]).double()
    views = [EVERY[kind](x, rng(seed)) for seed in range(8)]
    assert all(view.shape == x.shape and view.min() >= 0 and view.max() <= 1 for view in views)
    assert any(not torch.equal(views[0], view) for view in views)
    assert torch.equal(views[3], EVERY[kind](x, rng(3)))
    towards, away = torch.randn(2, *x.shape, generator=rng(9), dtype=x.dtype)
    y = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((EVERY[kind](y, rng(1)) * away).sum(), y)
    moved = [(EVERY[kind](x + sign * 1e-4 * towards, rng(1)) * away).sum() for sign in (1, -1)]
    assert float((gradient * towards).sum()) == pytest.approx(float((moved[0] - moved[1]) / 2e-4), rel=1e-3)


def test_transformations_of_a_gradient_picture_in_closed_form():
    ramp = torch.linspace(0.2, 0.8, 33).expand(3, 33, 33)
    assert torch.equal(
        torch.stack([flip(ramp, rng(seed)) for seed in range(40)]).unique(dim=0), torch.stack([ramp, ramp.flip(-1)])
    )
    torch.testing.assert_close(blur(ramp, rng(), 1.0, 1.0)[:, :, 4:-4], ramp[:, :, 4:-4])  # a straight line stays
    for seed in range(5):  # a part of a straight line is one, of a slope that the fraction of the width makes smaller
        line = crop(ramp, rng(seed), 0.5)[0, 16, 6:-6]
        slope = (line[1:] - line[:-1]) / (0.6 / 32)
        assert float(slope.min()) > 0.45
        assert float(slope.max()) < 1.05
        assert float(slope.max() - slope.min()) < 0.02
    noise = noisy(torch.full((3, 64, 64), 0.5), rng(), 8.0) - 0.5
    assert float(noise.std()) * 255 == pytest.approx(8.0, rel=0.03)


# -- the wrapper -------------------------------------------------------------------------------------------------------


def test_without_transformations_it_is_the_inner_protection(pictures, model):
    owner = make_owner(pictures[:2])
    plain = AdvDM(steps=2, random_start=False).protect(owner, Linf(8), model, Run())
    same = eot("none").protect(owner, Linf(8), model, Run())
    assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))


def test_the_gradient_is_that_of_the_loss_of_the_changed_picture(pictures, model):
    """Of the mirrored picture, mirrored back; two draws of the same are twice the work and the mean."""
    owner, mirrored, seen = make_owner(pictures[:1]), make_owner([pictures[0].flip(-1)]), set()
    inner = AdvDM(steps=1, random_start=False, sample_latents=False)
    plain, other = Watching(8), Watching(8)
    inner.protect(owner, plain, model, Run())
    inner.protect(mirrored, other, model, Run())
    wanted = [plain.gradients[0], other.gradients[0].flip(-1)]
    for name in map(str, range(8)):
        budget, owner.names = Watching(8), [name]
        eot("flip", inner=inner).protect(owner, budget, model, _KeyedBy())
        seen |= {i for i, want in enumerate(wanted) if torch.equal(budget.gradients[0], want)}
    assert seen == {0, 1}
    twice = Run()
    eot("jpeg", inner=inner, views=2).protect(owner, Linf(8), model, twice)
    assert twice.count == {"unet_image": 2}


class _KeyedBy(Run):
    """A run whose samples of AdvDM belong to no picture."""

    def rng(self, *key: object) -> torch.Generator:
        return super().rng(*(("advdm", "0000.png") if key[0] == "advdm" else key))


@pytest.mark.parametrize("transform", [t for t in TRANSFORMS if t != "none"])
def test_every_transformation_changes_the_pictures(pictures, model, transform):
    owner = make_owner(pictures[:2])
    plain = eot("none").protect(owner, Linf(8), model, Run())
    changed = eot(transform).protect(owner, Linf(8), model, Run())
    assert any(not torch.equal(a, b) for a, b in zip(plain, changed, strict=True))


def test_what_cannot_be_changed_is_refused_in_one_line(pictures, model):
    with pytest.raises(ValueError, match="^eot: Noise does not heed transformations; "):
        eot("flip", inner=Noise(kind="sign"))
    with pytest.raises(ValueError, match="^eot: unknown transform 'twirl'; allowed are none, jpeg, "):
        eot("twirl")
    with pytest.raises(ValueError, match="^eot: quality must be two numbers from 1 to 100, in order, given "):
        eot("jpeg", quality=(95, 50))

    class Deaf(AdvDM):
        def protect(self, owner, budget, surrogate, run):
            return super().protect(owner, budget, surrogate, replace(run, loss_hook=None))

    with pytest.raises(ValueError, match="^eot: Deaf says that it heeds transformations and does not$"):
        eot("flip", inner=Deaf(steps=1)).protect(make_owner(pictures[:1]), Linf(8), model, Run())


def test_a_picture_perturbed_by_itself_has_transformations_of_its_own(model, pictures):
    """Anti-Diffusion ascends one picture after the other, each as the first of an ascent."""
    inner = AntiDiffusion(rounds=2, text_steps=0, image_steps=2, model_steps=0, lr=1e-3, attention_weight=0.0)
    owner, method = make_owner(pictures[:2]), eot("crop", "noise", inner=inner)
    both = method.protect(owner, Linf(8), model, Run())
    alone = method.protect(make_owner(pictures[1:2], owner.names[1:]), Linf(8), model, Run())
    torch.testing.assert_close(both[1], alone[0], atol=1e-5, rtol=0)


def test_strengths_of_transformations_are_drawn_from_their_whole_range(pictures, monkeypatch):
    qualities, sigmas = [], []
    monkeypatch.setattr(transforms, "recompress", lambda x, format, quality: qualities.append(quality) or x)
    monkeypatch.setattr(transforms, "smooth", lambda x, sigma, radius: sigmas.append(sigma) or x)
    eot = EOT(
        inner=AdvDM(steps=1),
        transforms=["jpeg", "blur"],
        views=1,
        quality=(50, 55),
        sigma=2.0,
        scale=0.5,
        part=0.8,
        std=8.0,
    )
    for seed in range(60):
        for change in eot._kinds():
            change(pictures[0], torch.Generator().manual_seed(seed))
    assert set(qualities) == set(range(50, 56))
    assert 0 <= min(sigmas) < 0.3
    assert 1.7 < max(sigmas) < 2
    ramp = torch.linspace(0.2, 0.8, 33).expand(3, 33, 33)
    slopes = [
        float(transforms.crop(ramp, torch.Generator().manual_seed(k), 0.5)[0, 16, 6:-6].diff().mean())
        for k in range(20)
    ]
    assert max(slopes) > 1.5 * min(slopes)
