"""Protections that aim at latents: their gradients and distances against closed forms, their variants against one another, and what they promise of the saved picture."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from shared import Watching, make_owner
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from udpbench.core import images
from udpbench.core.budget import RMS, Linf, measure
from udpbench.core.codecs import recompress
from udpbench.core.images import as_saved, write_png
from udpbench.core.jpeg import coefficients, decoded, quantisation
from udpbench.core.pixels import smooth
from udpbench.interfaces import Run
from udpbench.models.diffusion import noised, velocity
from udpbench.optim.target import checkerboard
from udpbench.protect import pid as pid_module
from udpbench.protect.ace import ACE
from udpbench.protect.ace_plus import ACEPlus
from udpbench.protect.advdm import AdvDM
from udpbench.protect.blurguard import BlurGuard, blur_by_region, spectrum
from udpbench.protect.dct_shield import DCTShield
from udpbench.protect.mist import Mist
from udpbench.protect.mist_v2 import MistV2
from udpbench.protect.pid import DISTANCES, PID
from udpbench.protect.sds import SDS, predicted_noise
from udpbench.protect.uemask import UEMask

ROUND = {"rounds": 1, "image_steps": 3, "model_steps": 1, "lr": 1e-3, "batch": 2}
STILL = {"steps": 1, "sample_latents": False, "random_start": False}


@pytest.fixture(scope="module")
def odd(pictures) -> list[Tensor]:
    """Two pictures of two sizes, neither square nor a multiple of anything."""
    return [torch.cat([pictures[0], pictures[1]], 2)[:, :15, :29], pictures[2][:, :13]]


def made(method, given: list[Tensor], model, budget=None, **settings) -> list[Tensor]:
    return method.protect(make_owner(given), budget or Linf(8), model, Run(**settings))


def first_gradient(method, x: Tensor, model) -> Tensor:
    budget = Watching(8)
    made(method, [x], model, budget)
    return budget.gradients[0]


def saved(x: Tensor, tmp_path) -> Tensor:
    write_png(tmp_path / "x.png", x)
    return images.read(tmp_path / "x.png")


# -- Mist --------------------------------------------------------------------------------------------------------------


def test_mist_is_advdm_and_its_textural_loss_at_the_ends(model, odd):
    semantic, plain = Mist(steps=2, samples=2, mode="semantic"), AdvDM(steps=2, samples=2)
    assert all(map(torch.equal, made(semantic, odd, model), made(plain, odd, model)))
    fused = Mist(steps=2, samples=2, semantic_weight=0.0, sample_latents=False)
    textural = replace(fused, mode="textural")
    assert textural.needs == {"latent"}
    assert all(map(torch.equal, made(fused, odd, model), made(textural, odd, model)))


@pytest.mark.parametrize("mode", ["fused", "textural"])
def test_the_gradient_of_mist_is_that_of_finite_differences(model, pictures, mode):
    method, owner = Mist(steps=1, samples=2, mode=mode, semantic_weight=0.6), make_owner(pictures[:1])
    x = pictures[0][None].clone().requires_grad_(True)

    def loss(at: Tensor) -> Tensor:
        return method.image_loss(model, owner, Run())(at, [0]).sum()  # a fresh run: the same draws

    (gradient,) = torch.autograd.grad(loss(x), x)
    along = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        slope = (loss(x + 2e-3 * along) - loss(x - 2e-3 * along)) / 4e-3
    assert float(slope) == pytest.approx(float((gradient * along).sum()), rel=0.02)


def test_a_picture_moves_to_the_target_and_to_which(model, pictures, tmp_path):
    write_png(tmp_path / "target.png", 1 - pictures[1])
    own = Mist(steps=8, mode="textural", sample_latents=False, target=str(tmp_path / "target.png"))
    assert own.identity() != Mist(steps=8).identity() == {"target": "checkerboard"}
    goals = {"board": checkerboard(16, 16), "own": images.read(tmp_path / "target.png")[None]}
    for name, method in (("own", own), ("board", replace(own, target=None))):
        x = saved(made(method, pictures[:1], model)[0], tmp_path)
        near = {k: float((model.encode(x[None]) - model.encode(g)).square().mean()) for k, g in goals.items()}
        was = {
            k: float((model.encode(pictures[:1][0][None]) - model.encode(g)).square().mean()) for k, g in goals.items()
        }
        assert near[name] < 0.97 * was[name]
        assert near[name] / was[name] == min(near[k] / was[k] for k in goals)


def test_the_checkerboard_has_eight_squares_along_the_shorter_side():
    board = checkerboard(64, 128)
    assert board.shape == (1, 3, 64, 128)
    assert board.mean() == 0.5
    assert board[0, 0, 0].unfold(0, 8, 8).unique(dim=1).flatten().tolist() == [0.0, 1.0] * 8
    assert checkerboard(5, 5).shape == (1, 3, 5, 5)


# -- gradients, written out --------------------------------------------------------------------------------------------


def first_of_variables(method, x: Tensor, model, budget=None) -> Tensor:
    """The gradient of the first step by what is moved: pictures, a mask, coefficients; (1, 3, H, W) float64."""
    seen: list[Tensor] = []
    made(method, [x], model, budget, gradient_hook=lambda gradient: seen.append(gradient) or gradient)
    return seen[0].double()


def in_double(model) -> tuple[Callable[[Tensor], Any], Any]:
    """The posterior of a picture's latents, not scaled, and the UNet, in float64."""
    vae, unet = (copy.deepcopy(part).double() for part in (model.pipe.vae, model.pipe.unet))
    return lambda x: vae.encode(2 * x - 1).latent_dist, unet


def assert_slopes(gradient: Tensor, raised: Callable[[Tensor], Tensor], at: Tensor) -> None:
    """Of ``raised`` at ``at`` (float64), along a random direction and along the step that is taken."""
    for along in (torch.randn(at.shape, generator=torch.Generator().manual_seed(0)), gradient.sign()):
        with torch.no_grad():
            slope = (raised(at + 1e-5 * along) - raised(at - 1e-5 * along)) / 2e-5
        assert float(slope) == pytest.approx(float((gradient * along).sum()), rel=1e-4)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_gradient_of_ace_plus_is_that_of_finite_differences(model, pictures, weight):
    """Of its objective written out; at the first step additions to the UNet change nothing yet."""
    method = ACEPlus(**{**ROUND, "image_steps": 1}, samples=2, latent_weight=weight)
    gradient = first_of_variables(method, pictures[0], model)
    (posterior, unet), scale = in_double(model), model.pipe.vae.config.scaling_factor
    hidden = model.embed(make_owner(pictures[:1]).prompts).hidden.double()
    target = posterior(checkerboard(16, 16).double()).mean * scale
    rng = Run().rng("ace_plus", 0, "0000.png")
    t, noise = torch.randint(600, 1000, (2,), generator=rng), torch.randn(2, 4, 8, 8, generator=rng)

    def raised(x: Tensor) -> Tensor:
        z = posterior(x).mean * scale
        told = unet(noised(model.alpha_bar, z.expand(2, -1, -1, -1), t, noise), t, hidden.expand(2, -1, -1)).sample
        return -(told - target).square().mean() - weight * (z - target).square().mean()

    assert_slopes(gradient, raised, pictures[0][None].double())


def test_the_gradient_of_pid_is_that_of_finite_differences(model, pictures):
    """Of the default distance, at the random start: at the clean picture there is none."""
    budget = Watching(8)
    gradient = first_of_variables(PID(steps=1), pictures[0], model, budget)
    clean = pictures[0][None]
    start = Linf(8).project(budget.moved[0], clean)
    assert not torch.equal(start, clean)
    posterior, _ = in_double(model)
    was = posterior(clean.double())

    def raised(x: Tensor) -> Tensor:
        now = posterior(x)
        return (now.mean - was.mean).square().mean() + (now.logvar - was.logvar).square().mean()

    assert_slopes(gradient, raised, start.double())


def test_the_gradient_of_uemask_is_that_of_finite_differences_of_the_mask(model, pictures):
    """Where it starts at random: at 1 the mask's own term has a kink."""
    method = UEMask(steps=1, samples=2, sample_latents=False, random_start=True, l1_weight=0.5)
    gradient = first_of_variables(method, pictures[0], model, Linf(19.2))
    (posterior, unet), scale = in_double(model), model.pipe.vae.config.scaling_factor
    hidden = model.embed(make_owner(pictures[:1]).prompts).hidden.double()
    rng = Run().rng("advdm", "0000.png")
    t, noise = torch.randint(1000, (2,), generator=rng), torch.randn(2, 4, 8, 8, generator=rng)

    def raised(mask: Tensor) -> Tensor:
        z = posterior(0.5 + (pictures[0] - 0.5) * mask).mean * scale
        told = unet(noised(model.alpha_bar, z.expand(2, -1, -1, -1), t, noise), t, hidden.expand(2, -1, -1)).sample
        return (told - noise).square().mean() - 0.5 * (1 - mask).abs().mean()

    start = 1 - 0.15 * torch.rand(pictures[0].shape, generator=Run().rng("start", "0000.png"))
    assert_slopes(gradient, raised, start[None].double())


def test_the_gradient_of_dct_shield_is_that_of_finite_differences_of_the_coefficients(model, pictures):
    x = as_saved(0.3 + 0.4 * pictures[0])  # where nothing is clipped
    gradient = first_of_variables(DCTShield(iterations=1), x, model)
    steps, scale, (posterior, _) = quantisation(95), model.pipe.vae.config.scaling_factor, in_double(model)

    def raised(c: Tensor) -> Tensor:
        return -(posterior(decoded(c, steps, 16, 16)).mean * scale).norm()

    assert_slopes(gradient, raised, coefficients(x[None], steps).double())


# -- SDS ---------------------------------------------------------------------------------------------------------------


def drawn(x: Tensor, model, prompt: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, time step, noise and (told - noise) of the first step on the picture 0000.png."""
    rng = Run().rng("advdm", "0000.png")
    z = model.encode(x)
    t, noise = torch.randint(1000, (1,), generator=rng), torch.randn(z.shape, generator=rng)
    with torch.no_grad():
        noisy = noised(model.alpha_bar, z, t, noise)
        told = model.pipe.unet(noisy, t, model.embed([prompt]).hidden).sample
    return z, t, noise, told - noise


@pytest.mark.parametrize(("direction", "sign"), [("ascend", 1.0), ("descend", -1.0)])
@pytest.mark.parametrize("rate", [0.0, 5.0])
def test_sds_pulls_the_score_back_through_the_encoder_alone(model, pictures, direction, sign, rate):
    at = pictures[0][None].clone().requires_grad_(True)
    z, _, _, score = drawn(at, model, make_owner(pictures[:1]).prompts[0])
    given = sign * score if not rate else sign * rate * score - 2 * (z - model.encode(checkerboard(16, 16))).detach()
    (want,) = torch.autograd.grad(z, at, grad_outputs=given)
    passes: list[bool] = []
    hook = model.pipe.unet.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    got = first_gradient(SDS(**STILL, direction=direction, target_rate=rate), pictures[0], model)
    hook.remove()
    assert passes == [False]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6 * float(want.abs().max()))


def test_the_noise_is_read_off_a_velocity(model, monkeypatch):
    """A model of velocities that is always right knows the noise."""
    z, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([3, 400, 990])
    monkeypatch.setattr(type(model), "prediction", "v_prediction")
    monkeypatch.setattr(model, "predict", lambda *_: velocity(model.alpha_bar, z, t, noise), raising=False)
    torch.testing.assert_close(predicted_noise(model, z, None, t, noise), noise, rtol=1e-4, atol=1e-4)


# -- PID ---------------------------------------------------------------------------------------------------------------


def test_the_distances_of_pid_are_what_they_are_called():
    rng = torch.Generator().manual_seed(0)
    clean, moved = [(torch.randn(2, 4, 3, 3, generator=rng), torch.rand(2, 4, 3, 3, generator=rng) + 0.1) for _ in "12"]
    (m, s), (n, r) = clean, moved
    got = {name: distance(clean, moved) for name, distance in DISTANCES.items()}
    want = {
        "mean": (m - n) ** 2,
        "std": (s - r) ** 2,
        "add": (m - n) ** 2 + (s - r) ** 2,
        "add_log": (m - n) ** 2 + ((s**2).log() - (r**2).log()) ** 2,
        "kl": kl_divergence(Normal(m, s), Normal(n, r)),
    }
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name].mean((1, 2, 3)))
        torch.testing.assert_close(DISTANCES[name](clean, clean), torch.zeros(2), atol=1e-6, rtol=0)
    rngs = [torch.Generator().manual_seed(i) for i in range(2)]
    assert pid_module.drawn((m, s * 0), rngs).equal(m)


@pytest.mark.parametrize("distance", [*DISTANCES, "sample"])
def test_pid_raises_its_distance_on_the_saved_picture_beyond_noise(model, pictures, tmp_path, distance):
    x, method = pictures[0], PID(steps=8, distance=distance)
    clean = PID.posterior(model, x[None])
    near = images.as_saved(x + 8 / 255 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign())
    moved = [PID.posterior(model, y[None]) for y in (saved(made(method, [x], model)[0], tmp_path), near)]
    mine, noise = (float(DISTANCES.get(distance, DISTANCES["mean"])(clean, m)) for m in moved)
    assert mine > 1.2 * noise > 0


def test_pid_knows_latents_without_their_scale(model, pictures):
    mean, std = PID.posterior(model, pictures[0][None])
    scale = model.pipe.vae.config.scaling_factor
    assert scale != 1
    torch.testing.assert_close(mean * scale, model.encode(pictures[0][None]))
    assert std.shape == mean.shape


# -- ACE, ACE+, Mist v2 ------------------------------------------------------------------------------------------------


@pytest.fixture
def _one_name(monkeypatch):
    """The three draw the same numbers."""
    monkeypatch.setattr(ACEPlus, "name", "ace")
    monkeypatch.setattr(MistV2, "name", "ace")


@pytest.mark.slow
@pytest.mark.usefixtures("_one_name")
def test_ace_is_ace_plus_without_its_term_and_mist_v2_at_ace_s_times(model, odd):
    ace = made(ACE(**ROUND, sample_latents=True), odd, model)
    plus = made(ACEPlus(**ROUND, sample_latents=True, latent_weight=0.0), odd, model)
    tool = made(MistV2(**ROUND, sample_latents=True, first_time=600), odd, model)
    assert all(map(torch.equal, ace, plus))
    assert all(map(torch.equal, ace, tool))
    assert not torch.equal(ace[0], made(ACEPlus(**ROUND, sample_latents=True), odd, model)[0])


def test_what_each_of_them_raises():
    rng = torch.Generator().manual_seed(0)
    z, told, wanted, target = (torch.randn(2, 4, 3, 3, generator=rng) for _ in range(4))
    mean = lambda x: x.square().mean((1, 2, 3))  # noqa: E731
    anti = -(told * wanted).sum((1, 2, 3))
    cases = [
        (ACE(**ROUND), -mean(told - target)),
        (ACEPlus(**ROUND), -mean(told - target) - 100 * mean(z - target)),
        (MistV2(**ROUND), -mean(told - target)),
        (MistV2(**ROUND, mode="anti-db"), mean(told - wanted)),
        (MistV2(**ROUND, mode="fused"), anti + 100 * mean(z - target)),
        (MistV2(**ROUND, mode="fused", fused_to_target=True, latent_weight=3.0), anti - 3 * mean(z - target)),
    ]
    for method, want in cases:
        torch.testing.assert_close(method.raised(z, told, wanted, target), want)


def test_time_steps_are_of_the_range_and_reach_the_unet(model, pictures):
    seen: list[int] = []
    hook = model.pipe.unet.register_forward_hook(lambda unet, given, out: seen.extend(given[1].tolist()))
    made(ACE(**{**ROUND, "model_steps": 0}, samples=64, first_time=700, last_time=702), pictures[:1], model)
    hook.remove()
    assert set(seen) == {700, 701, 702}
    with pytest.raises(ValueError, match="ace, model .*: last_time must be < 1000, given 1000"):
        ACE(**ROUND, last_time=1000).check_model(model)
    with pytest.raises(ValueError, match="mist_v2: last_time must be >= 600, given 5"):
        MistV2(**ROUND, first_time=600, last_time=5)


@pytest.mark.slow
def test_the_surrogate_of_ace_is_trained_on_the_perturbed_pictures(model, pictures):
    """With training steps the second round's pictures are others; with none they are those of a frozen model."""
    two = {**ROUND, "rounds": 2, "lr": 0.05}
    trained, frozen = (made(ACE(**{**two, "model_steps": n}), pictures[:2], model) for n in (2, 0))
    assert not torch.equal(trained[0], frozen[0])


def test_the_surrogate_learns_from_drawn_latents_whatever_the_ascent_takes(model, pictures):
    method = MistV2(**ROUND, sample_latents=False)
    trained_on = method.training_set(method.trainable(model, Run()), pictures[:1], [""], Run())
    one, two = (trained_on.draw(1, Run().rng("a", k)).z for k in range(2))
    assert not torch.equal(one, two)


# -- DCT-Shield --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [30, 85, 95])
def test_the_coefficients_are_those_of_a_jpeg(pictures, quality):
    """But for ties that another arithmetic breaks in another way."""
    steps, x = quantisation(quality), pictures[0]
    served, ours = recompress(x, "jpeg", quality, "4:4:4"), coefficients(x[None], steps)
    theirs = coefficients(served[None], steps)
    assert (ours - theirs).abs().max() <= 1
    assert (ours != theirs).float().mean() < 0.05
    assert float((decoded(ours, steps, 16, 16)[0] - served).abs().mean()) * 255 < 1


@pytest.mark.parametrize("channels", ["all", "luma"])
def test_coefficients_stay_within_their_bound_and_outlive_the_codec(model, pictures, channels):
    x = as_saved(0.3 + 0.4 * pictures[0])  # where nothing is clipped
    method = DCTShield(iterations=12, quality=85, channels=channels)
    (y,) = made(method, [x], model)
    steps = quantisation(85)
    moved = coefficients(y[None], steps) - coefficients(x[None], steps)
    assert moved.abs().max() == 1
    if channels == "luma":
        assert moved[:, 1:].abs().max() == 0
    again = recompress(y, "jpeg", 85, "4:4:4")
    left = coefficients(again[None], steps) - coefficients(x[None], steps)
    assert float((left * moved).sum() / moved.square().sum()) > 0.9
    assert float(model.encode(again[None]).norm()) < float(model.encode(x[None]).norm())


def test_dct_shield_keeps_sizes_and_grey_pictures(model, odd):
    grey = odd[0].mean(0, keepdim=True).mul(255).round().div(255).expand(3, -1, -1).contiguous()
    for x, y in zip([grey, odd[1]], made(DCTShield(iterations=2), [grey, odd[1]], model), strict=True):
        assert x.shape == y.shape
    y = made(DCTShield(iterations=2), [grey], model)[0]
    torch.testing.assert_close(y, y[:1].expand(3, -1, -1), atol=1e-5, rtol=0)
    assert measure(grey, y)["rms"] > 0.5


# -- BlurGuard ---------------------------------------------------------------------------------------------------------


def test_a_blur_is_a_gaussian_s_and_each_region_has_its_own():
    delta = torch.randn(3, 40, 48, generator=torch.Generator().manual_seed(0))
    sigmas, left = torch.tensor([1.5, 3.0]), torch.zeros(1, 40, 48)
    left[..., :20] = 1
    got = blur_by_region(delta, sigmas, torch.cat([left, 1 - left]))
    inside = (slice(None), slice(16, 24), slice(12, -12))  # away from the edges, which `smooth` repeats
    for sigma, part in ((1.5, left), (3.0, 1 - left)):
        want = smooth(delta[None], sigma)[0]
        torch.testing.assert_close((got * part)[inside], (want * part)[inside], atol=2e-3, rtol=0)
    flat = blur_by_region(torch.ones(3, 9, 20), sigmas[:1], torch.ones(1, 9, 20))
    torch.testing.assert_close(flat, torch.ones(3, 9, 20))


def test_the_blur_brings_the_spectrum_nearer(pictures):
    x, whole = torch.cat([torch.cat(pictures[:2], 2)] * 2, 1), torch.ones(1, 32, 32)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5)).clamp(-0.03, 0.03)

    def gap(steps: int) -> float:
        sigma = BlurGuard(blur_steps=steps, image_steps=1).sigmas(x, whole, 0.03, torch.Generator().manual_seed(1))
        return float((spectrum((x + blur_by_region(noise, sigma, whole)).clamp(0, 1)) - spectrum(x)).abs().max())

    assert gap(30) < 0.8 * gap(0)


def test_the_spectrum_is_the_power_of_the_picture(pictures):
    x = pictures[0]
    assert float((10 ** spectrum(x)).sum()) == pytest.approx(float(x.square().sum()) * 16 * 16, rel=1e-4)  # Parseval
    assert int(spectrum(torch.full((3, 16, 16), 0.5)).argmax()) == 11  # a flat one's is farthest from the middle


def test_blurguard_lowers_latents_smoothly_and_minds_the_masks(model, odd, tmp_path):
    owner, method = make_owner(odd), BlurGuard(blur_steps=20, image_steps=12)
    whole = method.protect(owner, Linf(8), model, Run())
    owner.masks = [torch.zeros_like(x[:1]) for x in odd]
    for mask in owner.masks:
        mask[:, :, :8] = 1
    parted = method.protect(owner, Linf(8), model, Run())
    for x, one, two in zip(odd, whole, parted, strict=True):
        assert not torch.equal(one, two)
        y = saved(one, tmp_path)
        assert float(model.encode(y[None]).square().mean()) < float(model.encode(x[None]).square().mean())
        change, rough = y - x, torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        steps = [float((d[..., 1:] - d[..., :-1]).square().mean() / d.square().mean()) for d in (change, rough)]
        assert steps[0] < 0.7 * steps[1], "smoother than noise"


# -- UEMask ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [Linf(19.2), Linf(8), RMS(4)], ids=lambda b: b.name)
def test_a_mask_moves_values_towards_grey_by_its_strength(model, odd, budget):
    for x, y in zip(odd, made(UEMask(steps=8), odd, model, budget), strict=True):
        assert measure(x, y)[budget.kind] <= budget.eps
        inward = (y - x) * (0.5 - x).sign()
        assert inward.min() >= -1e-6
        assert (inward <= 0.15 * (x - 0.5).abs() + 1e-6).all()
        assert measure(x, y)["rms"] > 1


def test_a_heavy_weight_keeps_the_mask_near_one(model, pictures):
    x = pictures[0]
    light, heavy = (made(UEMask(steps=6, l1_weight=weight), [x], model)[0] for weight in (0.0, 1e6))
    one_step = 0.15 / 8 * (x - 0.5).abs() + 1e-6  # the weight has no slope at 1, as in the released code
    assert ((heavy - x).abs() <= one_step).all()
    assert ((light - x).abs() > one_step).float().mean() > 0.3
    at_random = made(UEMask(steps=1, step_size=1e-6, random_start=True), pictures[:1], model)[0]
    assert 1 < measure(pictures[0], at_random)["rms"] < 8


# -- all ---------------------------------------------------------------------------------------------------------------


LABELS = {
    "": [SDS(steps=1), Mist(steps=1), PID(steps=1), MistV2(**ROUND)],
    "sds_ascend": [SDS(steps=1, direction="ascend")],
    "sdst_descend": [SDS(steps=1, target_rate=5.0)],
    "mist_textural": [Mist(steps=1, mode="textural")],
    "pid_kl": [PID(steps=1, distance="kl")],
    "mist_v2_anti-db": [MistV2(**ROUND, mode="anti-db")],
}


def test_variants_have_names_of_their_own_in_tables():
    assert {method.label for label in LABELS for method in LABELS[label]} == LABELS.keys()
    assert all(method.label == label for label in LABELS for method in LABELS[label])


WRONG = [
    (lambda: Mist(steps=1, mode="x"), "mist: unknown mode 'x'; allowed are fused, textural, semantic"),
    (lambda: SDS(steps=1, direction="up"), "sds: unknown direction 'up'; allowed are descend, ascend"),
    (lambda: PID(steps=1, distance="l1"), "pid: unknown distance 'l1'; allowed are add_log, .*, sample"),
    (lambda: MistV2(**ROUND, mode="x"), "mist_v2: unknown mode 'x'; allowed are lunet, fused, anti-db"),
    (lambda: DCTShield(iterations=1, quality=101), "dct_shield: quality must be >= 1 and <= 100, given 101"),
    (lambda: BlurGuard(blur_steps=-1, image_steps=1), "blurguard: blur_steps must be >= 0, given -1"),
    (lambda: UEMask(steps=1, strength=1.5), "uemask: strength must be > 0 and <= 1, given 1.5"),
]


@pytest.mark.parametrize(("make", "told"), WRONG)
def test_wrong_settings_are_told_in_one_line(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_ace_plus_moves_latents_to_the_target_on_the_saved_picture(model, pictures, tmp_path):
    x, goal = pictures[0], model.encode(checkerboard(16, 16))
    y = saved(made(ACEPlus(**{**ROUND, "image_steps": 8}), [x], model)[0], tmp_path)
    assert (model.encode(y[None]) - goal).square().mean() < 0.95 * (model.encode(x[None]) - goal).square().mean()


@pytest.mark.parametrize("method", [UEMask(steps=2), DCTShield(iterations=2), BlurGuard(blur_steps=1, image_steps=2)])
def test_a_penalty_is_of_pictures_and_is_heeded(model, pictures, method):
    seen: list[Tensor] = []

    def penalty(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return 1e4 * x.flatten(1).mean(1)

    darker = made(method, pictures[:1], model, penalty=penalty)[0]
    assert len(seen) == 2
    assert all(x.shape == (1, 3, 16, 16) and x.min() >= 0 and x.max() <= 1 for x in seen)
    assert darker.mean() < made(method, pictures[:1], model)[0].mean()


@pytest.mark.parametrize("samples", [1, 2])
def test_a_model_whose_numbers_are_not_finite_protects_nothing(model, pictures, samples):
    """The sign of NaN is 0: the pictures would be those of the random start, and nothing would say so."""
    unet = copy.deepcopy(model.pipe.unet)
    with torch.no_grad():
        next(unet.parameters()).fill_(torch.nan)
    protection = AdvDM(steps=2, samples=samples)
    with pytest.raises(
        ValueError, match="the gradient of the pictures is not finite at step 1; the likely cause are weights"
    ):
        protection.protect(make_owner(pictures), Linf(8), model.having(unet=unet), Run())


def test_dct_shield_keeps_pictures_apart_whose_sizes_differ_within_a_block(model, pictures):
    smaller = pictures[1][:, :, :27]
    alone = [made(DCTShield(iterations=2), [x], model)[0] for x in (pictures[0], smaller)]
    together = made(DCTShield(iterations=2), [pictures[0], smaller], model)
    assert all(map(torch.equal, alone, together))
