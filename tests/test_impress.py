"""IMPRESS against a transcription of the paper's equation and algorithm."""

from __future__ import annotations

import math

import pytest
import torch
from shared import Losses
from tiny import SquaredDistance
from torch import Tensor

from udpbench.attack import impress
from udpbench.attack.impress import Impress
from udpbench.interfaces import Run
from udpbench.models.perceptual import ToOriginal
from udpbench.optim.soft_bound import gradient

PLAIN = {"iterations": 6, "lr": 0.02, "alpha": 0.5, "distance_budget": 1e-4, "start_noise": 0.05, "perceptual": "lite1"}


distance = SquaredDistance()


@pytest.fixture
def _simple(monkeypatch):
    monkeypatch.setattr(impress, "load_distance", lambda name, weights, device: distance)


def attack(**settings) -> Impress:
    return Impress(**{**PLAIN, **settings})


def purify(model, images, names=None, run=None, **settings):
    names = names or [f"{i}.png" for i in range(len(images))]
    return attack(**settings).purify(images, names, [""] * len(images), model, run or Run())


def transcription(
    model, protected: Tensor, noise: Tensor, iterations, lr, alpha, distance_budget, start_noise, scale
) -> Tensor:
    """One picture, CHW [0,1]: Algorithm 1 with the released code's Adam and cosine schedule, by hand, pixels in [-1,1], float64."""
    import copy

    vae = copy.deepcopy(model.pipe.vae).double()
    original = protected.double()[None] * 2 - 1
    y = (original + start_noise * noise.double()[None]).clamp(-1, 1)
    first, second = torch.zeros_like(y), torch.zeros_like(y)
    for k in range(iterations):
        y.requires_grad_(True)
        back = vae.decode(vae.encode(y).latent_dist.mean).sample
        excess = torch.clamp(distance((y + 1) / 2, (original + 1) / 2) - distance_budget, min=0)
        loss = ((y - back) ** 2).mean() + alpha * excess.sum()
        (g,) = torch.autograd.grad(scale * loss, y)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        rate = 1e-5 + (lr - 1e-5) * (1 + math.cos(math.pi * k / iterations)) / 2
        step = (first / (1 - 0.9 ** (k + 1))) / ((second / (1 - 0.999 ** (k + 1))).sqrt() + 1e-5)
        y = (y.detach() - rate * step).clamp(-1, 1)
    return ((y + 1) / 2)[0].float()


@pytest.mark.usefixtures("_simple")
@pytest.mark.parametrize("size_correct", [True, False])
@pytest.mark.parametrize("distance_budget", [1e-5, 0.5], ids=["hinge active", "hinge inactive"])
def test_purified_picture_is_that_of_the_paper(model, pictures, size_correct, distance_budget):
    settings = {k: PLAIN[k] for k in ("iterations", "lr", "alpha", "start_noise")} | {
        "distance_budget": distance_budget
    }
    (got,) = purify(model, pictures[:1], ["a.png"], Run(seed=3), size_correct=size_correct, **settings)
    noise = torch.randn(3, 16, 16, generator=Run(seed=3).rng("impress", "a.png"))
    scale = 16 * 16 / 512**2 if size_correct else 1.0
    want = transcription(model, pictures[0], noise, scale=scale, **settings)
    torch.testing.assert_close(got, want, atol=2e-4, rtol=0)
    assert (got - pictures[0]).abs().max() > 0.01


@pytest.mark.usefixtures("_simple")
def test_the_rate_never_falls_below_its_floor(model, pictures):
    """At a rate near the schedule's floor of 1e-5 the two are told apart."""
    settings = {"iterations": 12, "lr": 2e-5, "alpha": 0.5, "distance_budget": 1e-4, "start_noise": 0.05}
    (got,) = purify(model, pictures[:1], ["a.png"], size_correct=False, **settings)
    noise = torch.randn(3, 16, 16, generator=Run().rng("impress", "a.png"))
    want = transcription(model, pictures[0], noise, scale=1.0, **settings)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def released(model, protected: Tensor, noise: Tensor, settings: dict, clamp: bool, scale: float) -> Tensor:
    """One picture, CHW [0,1]: the loop that the released scripts run in half precision, distance in float32."""
    import copy

    vae = copy.deepcopy(model.pipe.vae).half()
    original = (protected * 2 - 1).half()[None]
    y = original + (noise * settings["start_noise"]).half()[None]
    y = y.clamp(-1, 1) if clamp else y
    adam = torch.optim.Adam([y.requires_grad_(True)], lr=settings["lr"], eps=1e-5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, settings["iterations"], eta_min=1e-5)
    for _ in range(settings["iterations"]):
        excess = distance((y.float() + 1) / 2, (original.float() + 1) / 2) - settings["distance_budget"]
        loss = torch.nn.functional.mse_loss(vae(y).sample, y) + settings["alpha"] * excess.clamp(min=0)
        adam.zero_grad()
        (scale * loss).sum().backward()
        adam.step()
        cosine.step()
        y.data.clamp_(-1, 1)
    assert y.dtype == torch.float16
    return ((y.detach().float() + 1) / 2)[0]


@pytest.mark.usefixtures("_simple")
@pytest.mark.parametrize("size_correct", [True, False])
@pytest.mark.parametrize("clamp_start", [True, False])
def test_half_precision_is_that_of_the_released_scripts(model, pictures, clamp_start, size_correct):
    settings = {k: PLAIN[k] for k in ("iterations", "lr", "alpha", "distance_budget", "start_noise")}
    options = {"size_correct": size_correct, "clamp_start": clamp_start}
    made = purify(model, pictures[2:], ["a.png", "b.png"], precision="fp16", **settings, **options)
    for name, x, got in zip("ab", pictures[2:], made, strict=True):
        noise = torch.randn(3, 16, 16, generator=Run().rng("impress", f"{name}.png"))
        want = released(model, x, noise, settings, clamp_start, 16 * 16 / 512**2 if size_correct else 1.0)
        torch.testing.assert_close(got, want, atol=1e-3, rtol=0)  # two steps of half precision
        assert (got == want).float().mean() > 0.9
    assert model.pipe.vae.dtype == torch.float32
    exact = purify(model, pictures[2:], ["a.png", "b.png"], **settings, **options)
    apart = (torch.stack(made) - torch.stack(exact)).abs()
    assert apart.max() > 1e-4
    # Squares of gradients vanish in half precision. At 512 pixels they are below Adam's eps; here, uncorrected, not.
    assert (apart.mean() < 0.01) == size_correct


@pytest.mark.usefixtures("_simple")
def test_a_start_that_is_not_clamped_moves_the_first_step(model, pictures):
    """A black or white corner under noise starts outside [0,1]; after the first step it is inside, elsewhere."""
    settings = {"start_noise": 0.3, "iterations": 2, "size_correct": False}
    (clamped,) = purify(model, pictures[3:], ["a.png"], **settings)
    (free,) = purify(model, pictures[3:], ["a.png"], clamp_start=False, **settings)
    assert free.min() >= 0
    assert free.max() <= 1
    assert (free - clamped).abs().max() > 1e-3


def objective(method: Impress, y: Tensor, far: ToOriginal, model) -> Tensor:
    """Equation 4.1 for each of N pictures, NCHW [-1,1]."""
    return method.consistency_of(y, model) + method.bound(y, far)


@pytest.mark.usefixtures("_simple")
def test_hinge(model, pictures):
    """Below the distance budget the objective is the inconsistency alone, above it the excess counts alpha times."""
    x = torch.stack(pictures[:2])
    near, far = x.clone(), (x + 0.2).clamp(0, 1)
    plain, hinged = attack(alpha=0.0, size_correct=False), attack(alpha=2.0, distance_budget=0.01, size_correct=False)

    def of(method: Impress, y: Tensor) -> Tensor:
        return objective(method, 2 * y - 1, distance.to_original(x), model)

    with torch.no_grad():
        assert torch.equal(of(plain, near), of(hinged, near))
        torch.testing.assert_close(of(hinged, far) - of(plain, far), 2 * (distance(far, x) - 0.01))
        inconsistency = (2 * model.round_trip(far) - 2 * far).square().mean((1, 2, 3))  # on [-1,1], as in the paper
        torch.testing.assert_close(of(plain, far), inconsistency)


class Watched(torch.autograd.Function):
    """Nothing, but it counts how often gradients pass."""

    passed = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        Watched.passed += 1
        return g


@pytest.mark.parametrize(("budget", "passes"), [(0.5, 0), (1e-4, 1), (0.01, 1)], ids=["none", "all", "one"])
def test_gradient_is_that_of_both_terms_and_passes_the_distance_only_where_a_picture_is_beyond(
    model, pictures, budget, passes
):
    x = torch.stack(pictures[:2])
    y = (2 * x - 1 + torch.tensor([0.1, 0.4]).view(2, 1, 1, 1)).requires_grad_(True)
    far, method = distance.to_original(x), attack(distance_budget=budget, size_correct=False)
    loss = objective(method, y, far, model)
    (want,) = torch.autograd.grad(loss.sum(), y)
    Watched.passed = 0
    value, found = gradient(
        lambda: method.consistency_of(y, model), lambda: method.bound(y, lambda z: far(Watched.apply(z))), y
    )
    assert torch.equal(found, want)
    assert torch.equal(value, loss)
    assert Watched.passed == passes


@pytest.mark.usefixtures("_simple")
@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 16)])
def test_size_correction_is_the_share_of_512_pixels_squared(model, height, width):
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, plain = (
            objective(attack(size_correct=s), 2 * x - 1, distance.to_original(x), model) for s in (True, False)
        )
    torch.testing.assert_close(ours, plain * height * width / 512**2)


@pytest.mark.usefixtures("_simple")
def test_start_noise_has_its_scale_and_belongs_to_the_name(model):
    """With a step too small to matter, what is left of the start is the noise: sigma on [-1,1], half of it on [0,1]."""
    grey = [torch.full((3, 32, 32), 0.5)] * 2
    a, b = purify(model, grey, iterations=1, lr=1e-9, start_noise=0.1)
    assert float((a - 0.5).std()) == pytest.approx(0.05, rel=0.05)
    assert abs(float((a - 0.5).mean())) < 0.005
    assert not torch.allclose(a, b, atol=1e-3)
    (again,) = purify(model, grey[:1], ["1.png"], iterations=1, lr=1e-9, start_noise=0.1)
    torch.testing.assert_close(again, b, atol=1e-6, rtol=0)
    (other,) = purify(model, grey[:1], ["1.png"], Run(seed=1), iterations=1, lr=1e-9, start_noise=0.1)
    assert not torch.allclose(other, b, atol=1e-3)
    none = purify(model, grey, iterations=1, lr=1e-9, start_noise=0.0)
    torch.testing.assert_close(torch.stack(none), torch.stack(grey), atol=1e-4, rtol=0)  # the schedule's floor is 1e-5


@pytest.mark.usefixtures("_simple")
def test_pixels_are_clamped(model):
    dark, bright = torch.zeros(3, 16, 16), torch.ones(3, 16, 16)
    for x in purify(model, [dark, bright], lr=0.5, start_noise=1.0, size_correct=False):
        assert x.min() >= 0
        assert x.max() <= 1
        assert x.min() == 0 or x.max() == 1


@pytest.mark.usefixtures("_simple")
@pytest.mark.parametrize("size_correct", [True, False])
def test_a_picture_is_purified_the_same_alone_and_in_a_batch(model, pictures, size_correct):
    whole = purify(model, pictures, size_correct=size_correct)
    halves = purify(model, pictures, run=Run(grad_batch=3), size_correct=size_correct)
    for i, x in enumerate(pictures):
        (alone,) = purify(model, [x], [f"{i}.png"], size_correct=size_correct)
        torch.testing.assert_close(alone, whole[i], atol=1e-4, rtol=0)
        torch.testing.assert_close(halves[i], whole[i], atol=1e-4, rtol=0)


@pytest.mark.usefixtures("_simple")
def test_pictures_of_two_sizes_that_are_no_multiple(model, pictures):
    images = [pictures[0], pictures[1][:, :11, :14], pictures[2]]
    made = purify(model, images)
    assert [x.shape for x in made] == [x.shape for x in images]


@pytest.mark.usefixtures("_simple")
def test_the_loss_falls_and_the_work_is_counted(model, pictures):
    log = Losses()
    run = Run(log=log)
    purify(model, pictures, run=run, iterations=40, start_noise=0.0, size_correct=False)
    assert log.values[-1] < 0.7 * log.values[0]
    assert len(log.values) == 40
    assert log.names == {"impress/loss"}
    assert run.count == {"vae_purify": 40 * 4}


def test_with_the_real_distance(model, pictures):
    made = purify(model, pictures[:2], iterations=2)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(made, pictures, strict=False))


@pytest.mark.parametrize("perceptual", ["lpips_vgg", "lpips_alex", "lpips_squeeze"])
def test_missing_weights_are_told_and_nothing_takes_their_place(model, pictures, perceptual, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=perceptual) as error:
        attack(perceptual=perceptual).check()
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=perceptual):
        purify(model, pictures[:1], perceptual=perceptual)


@pytest.mark.parametrize("wrong", [{"perceptual": "l2"}, {"precision": "bf16"}, {"iterations": 0}, {"lr": 0.0}])
def test_wrong_settings_are_told_in_one_line(wrong):
    with pytest.raises(ValueError, match=f"impress: .*{next(iter(wrong.values()))}") as error:
        attack(**wrong)
    assert "\n" not in str(error.value)
