"""Protections against a model that stays as it is: AdvDM and PhotoGuard's encoder attack."""

from __future__ import annotations

import pytest
import torch
from shared import Watching, as_saved, make_owner

from udpbench.core.budget import Linf
from udpbench.core.images import write_png
from udpbench.interfaces import Run
from udpbench.protect.advdm import AdvDM
from udpbench.protect.photoguard import PhotoGuard


def stacked(made) -> torch.Tensor:
    return torch.stack([as_saved(x) for x in made])


def test_advdm_s_first_gradient_is_that_of_the_loss_written_out(model, pictures):
    owner, budget = make_owner(pictures[:1]), Watching(8)
    AdvDM(steps=1, samples=2, random_start=False).protect(owner, budget, model, Run())
    rng = Run().rng("advdm", owner.names[0])
    x = pictures[0][None].clone().requires_grad_(True)
    pipe = model.pipe
    posterior = pipe.vae.encode(2 * x - 1).latent_dist
    # The samples in the order of the code: the posterior's, the time steps, the noise.
    drawn = torch.randn(2, *posterior.mean.shape[1:], generator=rng)
    t = torch.randint(1000, (2,), generator=rng)
    noise = torch.randn(2, *posterior.mean.shape[1:], generator=rng)
    z = (posterior.mean + posterior.std * drawn) * pipe.vae.config.scaling_factor
    noisy = pipe.scheduler.add_noise(z, noise, t)
    hidden = model.embed(owner.prompts).hidden.expand(2, -1, -1)
    loss = (pipe.unet(noisy, t, hidden).sample - noise).square().mean()
    (want,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(budget.gradients[0], want, rtol=1e-3, atol=1e-7)


def test_advdm_raises_the_loss_more_than_noise_does(model, pictures):
    owner = make_owner(pictures)
    made = stacked(AdvDM(steps=30, samples=2).protect(owner, Linf(8), model, Run()))
    sign = torch.randn(made.shape, generator=torch.Generator().manual_seed(1)).sign()
    noisy = (torch.stack(pictures) + sign * 8 / 255).clamp(0, 1)
    rng = torch.Generator().manual_seed(2)
    t, cond = torch.randint(1000, (128,), generator=rng), model.embed(owner.prompts).repeat(32)
    noise = torch.randn(128, *model.encode(made).shape[1:], generator=rng)

    def loss(x: torch.Tensor) -> float:
        with torch.no_grad():
            return float(model.loss(model.encode(x).repeat_interleave(32, 0), cond, t, noise).mean())

    assert loss(made) > loss(noisy)


@pytest.mark.parametrize(
    "method", [AdvDM(steps=2, random_start=True), PhotoGuard(steps=2)], ids=["advdm", "photoguard"]
)
def test_a_picture_is_on_its_own(model, pictures, method):
    together = method.protect(make_owner(pictures), Linf(8), model, Run())
    alone = method.protect(make_owner(pictures[1:2], ["0001.png"]), Linf(8), model, Run())
    # A vanishing gradient may turn its sign with the order of summation.
    assert ((together[1] - alone[0]).abs() < 1e-6).float().mean() > 0.97


def test_photoguard_moves_latents_to_zero_with_the_notebook_s_steps(model, pictures):
    budget = Watching(6)
    made = stacked(PhotoGuard(steps=20).protect(make_owner(pictures), budget, model, Run()))
    with torch.no_grad():
        before, after = (model.encode(x).flatten(1).norm(dim=1) for x in (torch.stack(pictures), made))
    assert (after < before).all()
    # The longest move of a step, before projection, is its length; the first starts from the random start.
    lengths, at = [], None
    for moved, gradient in zip(budget.moved[-20:], budget.gradients, strict=True):
        before_step = moved - gradient.sign() / 255 * _length(len(lengths))
        if at is not None:
            torch.testing.assert_close(before_step, at, rtol=0, atol=1e-6)
        lengths.append(_length(len(lengths)))
        at = Linf(6).project(moved, torch.stack(pictures))
    assert lengths[0] == pytest.approx(2)
    assert lengths[-1] == pytest.approx(2 * 0.0595)  # 0.99 / 20 short of a hundredth of the first


def _length(k: int) -> float:
    """Of step k of twenty, in levels, from a third of six levels: as the notebook has it, of step size s and n steps."""
    s, n = 2, 20
    return s - (s - s / 100) / n * k


def test_photoguard_with_a_target_comes_nearer_to_it(model, pictures, tmp_path):
    write_png(tmp_path / "target.png", pictures[3])
    method = PhotoGuard(steps=20, target=str(tmp_path / "target.png"))
    made = stacked(method.protect(make_owner(pictures[:1]), Linf(16), model, Run()))
    with torch.no_grad():
        goal = model.encode(pictures[3][None])
        distances = [(model.encode(x) - goal).norm() for x in (pictures[0][None], made)]
    assert distances[1] < distances[0]
    assert method.identity() != PhotoGuard(steps=20).identity()


def test_a_target_for_a_picture_that_is_not_square_is_resized(tmp_path):
    """Its right half is white: so is the right half of what a wide picture is moved to, and of a tall one."""
    x = torch.zeros(3, 20, 40)
    x[:, :, 20:] = 1
    write_png(tmp_path / "target.png", x)
    method = PhotoGuard(steps=1, target=str(tmp_path / "target.png"))
    for size in ((8, 24), (24, 8), (8, 8)):
        made = method.picture(size)
        assert made.shape == (1, 3, *size)
        assert made[..., : size[1] // 2].mean() < 0.1
        assert made[..., size[1] // 2 :].mean() > 0.9


def test_wrong_settings_are_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="advdm: steps must be >= 1, given 0"):
        AdvDM(steps=0)
    with pytest.raises(ValueError, match="photoguard: steps must be >= 1, given 0"):
        PhotoGuard(steps=0)
    with pytest.raises(ValueError, match="photoguard: no picture .*nothing.png; give a file or target=null"):
        PhotoGuard(steps=1, target=str(tmp_path / "nothing.png")).check()
