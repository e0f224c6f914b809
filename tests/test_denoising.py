"""The denoising loss, measured again on saved pictures."""

from __future__ import annotations

import pytest
import torch
from shared import make_owner

from udpbench.core.budget import Linf
from udpbench.core.images import read, write_png
from udpbench.interfaces import Run
from udpbench.metrics.denoising import Denoising
from udpbench.protect.advdm import AdvDM


def folder(path, images):
    path.mkdir()
    for i, x in enumerate(images):
        write_png(path / f"{i:04d}.png", x)
    return path


def test_it_is_the_mean_of_the_model_s_losses(model, pictures, tmp_path):
    """Equation 14 at the middles of four quarters of the schedule, by hand."""
    got = folder(tmp_path / "got", [1 - x for x in pictures])
    ref = folder(tmp_path / "ref", pictures)
    found = Denoising(model=model, samples=4)(got, ref, Run(batch=3))["denoising_ratio"]
    t = torch.tensor([125, 375, 625, 875])
    total = {got: 0.0, ref: 0.0}
    for where in total:
        for i in range(4):
            with torch.no_grad():
                z = model.encode(read(where / f"{i:04d}.png")[None]).expand(4, -1, -1, -1)
                noise = torch.stack([torch.randn(z.shape[1:], generator=Run().rng("denoising", k)) for k in range(4)])
                total[where] += float(model.loss(z, model.embed([""] * 4), t, noise).mean())
    assert found == pytest.approx(total[got] / total[ref], rel=1e-5)


def test_a_model_that_takes_more_than_noisy_pictures_is_refused_before_any_work(monkeypatch, model):
    monkeypatch.setattr(type(model), "capabilities", property(lambda self: frozenset({"inpaint", "latent", "text"})))
    with pytest.raises(ValueError, match=f"^denoising: model {model.name} needs a mask beside the noisy picture"):
        Denoising(model=model, samples=4)


@pytest.mark.slow
def test_equal_folders_give_one_and_batches_do_not_matter(model, pictures, tmp_path):
    ref, got = folder(tmp_path / "ref", pictures), folder(tmp_path / "got", [x.flip(-1) for x in pictures])
    metric = Denoising(model=model, samples=3)
    assert metric(ref, ref, Run())["denoising_ratio"] == 1
    assert metric(got, ref, Run(batch=1)) == pytest.approx(metric(got, ref, Run(batch=4, seed=9)))


@pytest.mark.slow
def test_what_raises_the_loss_is_seen(model, pictures, tmp_path):
    """AdvDM ascends this very loss: on noise it never saw, the saved pictures still have more of it."""
    made = AdvDM(steps=20, samples=4).protect(make_owner(pictures), Linf(32), model, Run())
    got, ref = folder(tmp_path / "got", made), folder(tmp_path / "ref", pictures)
    assert Denoising(model=model, samples=64)(got, ref, Run())["denoising_ratio"] > 1.0


def test_draws_must_be_a_count(model):
    with pytest.raises(ValueError, match="samples must be >= 1"):
        Denoising(model=model, samples=0)
