"""MetaCloak: the pool, what is transformed, and going on after an interruption."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from shared import Stops, make_owner

from udpbench.core.budget import Linf
from udpbench.interfaces import Run
from udpbench.protect.metacloak import MetaCloak

SHORT = {
    "clean_steps": 4, "snapshots": 3, "trials": 2, "rounds": 2, "image_steps": 1, "model_steps": 1, "lr": 1e-2,
    "batch": 1, "sigma": (0.1, 1.0),
}  # fmt: skip


def made(pictures, model, run=None, **settings) -> torch.Tensor:
    return torch.stack(MetaCloak(**SHORT | settings).protect(make_owner(pictures[:1]), Linf(8), model, run or Run()))


@pytest.fixture(scope="module")
def plain(pictures, model) -> torch.Tensor:
    return made(pictures, model)


def test_the_pool_is_kept_at_equal_distances_and_gone_through_in_order(pictures, model, monkeypatch):
    method, owner, run, loaded = MetaCloak(**SHORT), make_owner(pictures[:1]), Run(), []
    trainable = method.trainable(model, run)
    monkeypatch.setattr(MetaCloak, "trainable", lambda *_: trainable)
    monkeypatch.setattr(trainable, "load", lambda weights: loaded.append(weights))
    start = [p.clone() for p in trainable.weights()]
    method.protect(owner, Linf(8), model, run)
    assert len(loaded) == 6
    assert all(torch.equal(a, b) for a, b in zip(loaded[0], start, strict=True))
    for first, again in zip(loaded[:3], loaded[3:], strict=True):
        assert first is again
    apart = [sum(float((a - b).square().sum()) for a, b in zip(weights, start, strict=True)) for weights in loaded[:3]]
    assert apart[0] == 0 < apart[1] < apart[2]
    # the pool's training, with a class picture for each; then two trials of three snapshots of two rounds, of the last
    # of which nothing is trained
    assert run.count == {"unet_train": 2 * (4 + 2 * 3), "unet_image": 2 * 3 * 2}


@pytest.mark.slow
@pytest.mark.parametrize("other", [{"snapshots": 1}, {"trials": 1}, {"model_steps": 0}, {"sigma": (1.0, 2.0)}])
def test_every_part_changes_the_pictures(pictures, model, plain, other):
    assert not torch.equal(plain, made(pictures, model, **other))


def test_its_loss_is_that_of_blurred_and_mirrored_pictures(pictures, model):
    """With a blur of one width the two views are known, and both are drawn."""
    method, owner = MetaCloak(**SHORT | {"sigma": (0.0, 0.0)}), make_owner(pictures[:1])
    x, plain = owner.images[0][None], super(MetaCloak, method).image_loss
    seen = set()
    for k in range(8):
        got = method.image_loss(model, owner, Run(), k)(x, [0])
        views = [plain(model, owner, Run(), k)(view, [0]) for view in (x, x.flip(-1))]
        seen |= {i for i, view in enumerate(views) if torch.equal(got, view)}
        assert any(torch.equal(got, view) for view in views)
    assert seen == {0, 1}


@pytest.mark.slow
def test_an_interrupted_attempt_goes_on_to_the_same_pictures(pictures, model, plain, tmp_path, monkeypatch):
    monkeypatch.setattr("udpbench.optim.rounds.SAVE_EVERY", 0)
    with pytest.raises(KeyboardInterrupt):
        made(pictures, model, Run(scratch=tmp_path, log=Stops()))
    run = Run(scratch=tmp_path)
    assert torch.equal(made(pictures, model, run), plain)
    assert run.count["unet_image"] == 2 * 3 * 2


def test_sigma_is_two_numbers_in_order():
    with pytest.raises(ValueError, match="^metacloak: sigma must be two numbers >= 0, in order, given "):
        MetaCloak(**SHORT | {"sigma": (2.0, 1.0)})


def test_metacloak_s_blur_reaches_the_larger_sigma(model, pictures):
    settings = {
        "clean_steps": 1,
        "snapshots": 1,
        "trials": 1,
        "rounds": 1,
        "image_steps": 1,
        "model_steps": 0,
        "lr": 1e-2,
        "batch": 1,
    }
    owner, x = make_owner(pictures[:1]), pictures[0][None]
    one, two = (MetaCloak(**settings, sigma=(0.0, s)).image_loss(model, owner, Run(), 0)(x, [0]) for s in (0.0, 3.0))
    assert not torch.allclose(one, two)


def test_metacloak_s_blur_is_cut_where_it_is_said(model, pictures):
    """A wide blur in a kernel of three pixels is a mean over them."""
    owner, x = make_owner(pictures[:1]), pictures[0][None]
    wide = MetaCloak(**SHORT | {"sigma": (1e3, 1e3)}, radius=1)
    none = MetaCloak(**SHORT | {"sigma": (0.0, 0.0)})
    mean = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    got, want = (method.image_loss(model, owner, Run(), 0)(y, [0]) for method, y in ((wide, x), (none, mean)))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="metacloak: radius must be >= 1, given 0"):
        MetaCloak(**SHORT, radius=0)
