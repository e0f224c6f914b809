"""Glaze against a transcription of its objective and optimiser, and img2img of its targets against diffusers' steps."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from shared import Losses, make_owner
from tiny import SquaredDistance
from torch import Tensor

from udpbench.core.budget import RMS, Linf, measure
from udpbench.core.images import as_saved
from udpbench.interfaces import Run
from udpbench.protect import glaze
from udpbench.protect.glaze import Glaze

PLAIN = {
    "iterations": 6, "lr": 0.02, "alpha": 0.7, "distance_budget": 1e-4, "start_noise": 0.05, "perceptual": "lite1",
    "style_prompt": "a photo of a checkered box at night", "strength": 0.5, "guidance": 2.0, "img2img_steps": 6,
}  # fmt: skip


distance = SquaredDistance()


@pytest.fixture(autouse=True)
def _simple(monkeypatch):
    monkeypatch.setattr(glaze, "load_distance", lambda name, weights, device: distance)


def method(**settings) -> Glaze:
    return Glaze(**{**PLAIN, **settings})


def transcription(
    model, clean: Tensor, goal: Tensor, name: str, radius, iterations, lr, alpha, distance_budget, start_noise, sampled
) -> Tensor:
    """One picture, CHW [0,1]: the objective under Adam by hand, pixels in [-1,1], clipped to the ball, float64."""
    import copy

    vae, rng = copy.deepcopy(model.pipe.vae).double(), Run().rng("glaze", name)
    x, goal = clean.double()[None] * 2 - 1, goal.double()[None] * 2 - 1
    low, high = (x - 2 * radius).clamp(min=-1), (x + 2 * radius).clamp(max=1)
    y = (x + start_noise * (2 * torch.rand(clean.shape, generator=rng)[None].double() - 1)).clamp(low, high)
    first, second = torch.zeros_like(y), torch.zeros_like(y)

    def latents(v: Tensor) -> Tensor:
        posterior = vae.encode(v).latent_dist
        noise = torch.randn(posterior.mean.shape[1:], generator=rng)[None].double() if sampled else 0.0
        return (posterior.mean + posterior.std * noise) * vae.config.scaling_factor

    for k in range(iterations):
        y.requires_grad_(True)
        excess = torch.clamp(distance((y + 1) / 2, (x + 1) / 2) - distance_budget, min=0)
        loss = ((latents(y) - latents(goal)) ** 2).mean() + alpha * excess.sum()
        (g,) = torch.autograd.grad(loss, y)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        step = (first / (1 - 0.9 ** (k + 1))) / ((second / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
        y = (y.detach() - lr * step).clamp(low, high)
    return ((y + 1) / 2)[0].float()


@pytest.mark.parametrize("sampled", [True, False], ids=["sampled", "mean"])
@pytest.mark.parametrize("distance_budget", [1e-5, 0.5], ids=["hinge active", "hinge inactive"])
@pytest.mark.parametrize("levels", [5, 128])
def test_the_picture_is_that_of_the_objective_written_out(model, pictures, sampled, distance_budget, levels):
    settings = {k: PLAIN[k] for k in ("iterations", "lr", "alpha", "start_noise")}
    settings |= {"distance_budget": distance_budget}
    owner, budget = make_owner(pictures[:1]), Linf(levels)
    (got,) = method(sample_latents=sampled, **settings).protect(owner, budget, model, Run())
    goal = method().restyled(pictures[0][None], owner.names, model, Run())[0]
    want = transcription(model, pictures[0], goal, owner.names[0], budget._radius, sampled=sampled, **settings)
    assert ((got - want).abs() < 1e-3).float().mean() > 0.99  # a vanishing gradient may turn: Adam's step is its sign
    assert (got - pictures[0]).abs().max() > 0.015


def test_the_soft_bound_holds_the_picture_back(model, pictures):
    owner, budget = make_owner(pictures), Linf(128)
    close, far = (
        method(iterations=40, alpha=a, distance_budget=1e-4).protect(owner, budget, model, Run()) for a in (1e4, 0.0)
    )
    for x, y, clean in zip(close, far, pictures, strict=True):
        assert measure(clean, x)["rms"] < 0.5 * measure(clean, y)["rms"]


def test_the_latents_come_nearer_to_the_target_s_within_the_budget(model, pictures):
    owner = make_owner(pictures)
    goal = method().restyled(torch.stack(pictures), owner.names, model, Run())
    log = Losses()
    made = method(iterations=30).protect(owner, Linf(16), model, Run(log=log))
    for clean, x in zip(pictures, made, strict=True):
        assert measure(clean, as_saved(x))["linf"] <= 16

    def far(x: list[Tensor]) -> float:
        with torch.no_grad():
            return float((model.encode(torch.stack(x)) - model.encode(goal)).square().mean())

    assert far(made) < 0.9 * far(pictures)
    assert log.values[-1] < log.values[0]


@pytest.mark.parametrize("budget", [Linf(8), Linf(2.7), RMS(3)], ids=lambda b: b.name)
def test_budgets_hold_on_the_saved_picture_at_any_rate(model, pictures, budget):
    made = method(lr=0.5).protect(make_owner(pictures), budget, model, Run())
    for clean, x in zip(pictures, made, strict=True):
        measured = measure(clean, as_saved(x))
        assert measured[budget.kind] <= budget.eps * (1 + 1e-9)
        assert measured["rms"] >= 0.25 * budget.eps


# -- targets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("strength", "steps"), [(0.5, 6), (0.35, 10), (1.0, 4)])
def test_a_target_is_img2img_with_guidance_written_out(model, pictures, strength, steps):
    """One draw of the posterior, one of noise, ``int(strength * steps)`` guided steps, from the picture's generator."""
    made = method(strength=strength, img2img_steps=steps, guidance=3.0).restyled(
        torch.stack(pictures), ["a", "b", "c", "d"], model, Run()
    )
    pipe, rng = model.pipe, Run().rng("glaze", "style", "c")
    solver = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    solver.set_timesteps(steps)
    todo = int(strength * steps)
    text = model.embed(["", PLAIN["style_prompt"]]).hidden
    with torch.no_grad():
        posterior = pipe.vae.encode(2 * pictures[2][None] - 1).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=rng)
        z = z * pipe.vae.config.scaling_factor
        z = solver.add_noise(z, torch.randn(z.shape, generator=rng), solver.timesteps[-todo:][:1])
        solver.set_begin_index(steps - todo)
        for t in solver.timesteps[-todo:]:
            without, told = pipe.unet(z.repeat(2, 1, 1, 1), t, text).sample.chunk(2)
            z = solver.step(without + 3.0 * (told - without), t, z).prev_sample
        want = (pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(made[2], want[0], atol=1e-4, rtol=1e-3)


def test_targets_belong_to_the_name_in_any_batch(model, pictures):
    many = method().restyled(torch.stack(pictures), ["a", "b", "c", "d"], model, Run())
    (alone,) = method().restyled(pictures[1][None], ["b"], model, Run())
    torch.testing.assert_close(alone, many[1], atol=1e-5, rtol=1e-4)
    (other,) = method().restyled(pictures[1][None], ["z"], model, Run())
    assert (other - alone).abs().max() > 1e-3
    odd = torch.rand(2, 3, 13, 22, generator=torch.Generator().manual_seed(0))
    assert method().restyled(odd, ["a", "b"], model, Run()).shape == odd.shape


def test_odd_sizes(model, pictures):
    given = [pictures[0], torch.cat([pictures[1], pictures[2]], 2)[:, :13, :27]]
    made = method(sample_latents=True).protect(make_owner(given), Linf(8), model, Run())
    assert [x.shape for x in made] == [x.shape for x in given]


@pytest.mark.parametrize(("sampled", "passes"), [(True, 2 * 6), (False, 6 + 1)])
def test_work_is_counted(model, pictures, sampled, passes):
    """A target whose latents are not drawn is encoded once."""
    run = Run()
    method(sample_latents=sampled).protect(make_owner(pictures), Linf(8), model, run)
    assert run.count == {"unet_forward": 2 * 4 * 3, "vae_image": passes * 4}


def test_the_shipped_style_is_in_the_embedded_model_s_words(node, model):
    """Each word is one token; the released prompt's are not."""
    words = model.pipe.tokenizer  # of the same build as the embedded model's
    counts = {o: node("protect", o).style_prompt for o in ("glaze", "glaze_released")}
    assert len(words.tokenize(counts["glaze"])) == len(counts["glaze"].split())
    assert len(words.tokenize(counts["glaze_released"])) > len(counts["glaze_released"].split())


@pytest.mark.parametrize(
    "wrong",
    [
        {"perceptual": "ssim"},
        {"iterations": 0},
        {"lr": 0.0},
        {"alpha": -1.0},
        {"distance_budget": -0.5},
        {"start_noise": -0.1},
        {"strength": 0.0},
        {"strength": 1.5},
        {"strength": 0.1},
    ],
)
def test_wrong_settings_are_told_in_one_line(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))) as error:
        method(**wrong)
    assert "\n" not in str(error.value)


def test_missing_weights_are_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    method().check()
    with pytest.raises(ValueError, match="lpips_vgg: weights are missing; put https://"):
        method(perceptual="lpips_vgg").check()
