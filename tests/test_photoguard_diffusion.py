"""PhotoGuard's diffusion attack against diffusers' DDIM, the chain written out, and what it promises."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
)
from shared import Watching, make_owner
from tiny import save_tiny
from torch import Tensor

from udpbench.core import images, pixels
from udpbench.core.budget import Linf
from udpbench.interfaces import Run
from udpbench.models.latent import LatentDiffusion
from udpbench.models.reverse import ddim
from udpbench.optim import chains
from udpbench.optim.chains import img2img_steps
from udpbench.optim.pgd import first_images
from udpbench.protect import photoguard_diffusion
from udpbench.protect.photoguard_diffusion import PhotoGuardDiffusion

SMALL = {"iterations": 3, "strength": 0.5, "sample_steps": 3}


@pytest.fixture(scope="module")
def models(tmp_path_factory, model) -> dict[str, LatentDiffusion]:
    """The tiny model for the noise, and one for the velocity."""
    path = save_tiny(tmp_path_factory.mktemp("models") / "v", prediction_type="v_prediction")
    return {"epsilon": model, "v_prediction": LatentDiffusion(str(path), "v")}


def method(**settings) -> PhotoGuardDiffusion:
    return PhotoGuardDiffusion(**{**SMALL, **settings})


def scheduler(model: LatentDiffusion, total: int) -> DDIMScheduler:
    ddim = DDIMScheduler.from_config(model.pipe.scheduler.config)
    ddim.set_timesteps(total)
    return ddim


def chain(model: LatentDiffusion, x: Tensor, prompt: str, total: int, steps: int, eta: float, seed: object) -> Tensor:
    """Encode, noise, denoise, decode by diffusers' own scheduler, its draws from the generator of ``seed``, one picture."""
    pipe, rng, ddim = model.pipe, Run().rng("photoguard_diffusion", seed), scheduler(model, total)
    z = pipe.vae.encode(2 * x - 1).latent_dist.mean * pipe.vae.config.scaling_factor
    text = model.embed([prompt]).hidden
    z = ddim.add_noise(z, torch.randn(z.shape, generator=rng), ddim.timesteps[-steps:][:1])
    for t in ddim.timesteps[-steps:]:
        noise = torch.randn(z.shape, generator=rng) if eta else None
        z = ddim.step(pipe.unet(z, t, text).sample, t, z, eta=eta, variance_noise=noise).prev_sample
    return pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample / 2 + 0.5


# -- the chain ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("total", [1, 7, 50])
def test_each_step_is_that_of_diffusers(models, prediction, eta, total):
    model = models[prediction]
    assert model.prediction == prediction
    theirs, rng = scheduler(model, total), torch.Generator().manual_seed(0)
    t, alpha_bar = img2img_steps(model, 1.0, total)
    assert t.tolist() == theirs.timesteps.tolist()
    assert len(alpha_bar) == total + 1
    for k, now in enumerate(t):
        z, told, noise = torch.randn(3, 2, 4, 8, 8, generator=rng)
        got = ddim(told, z, alpha_bar[k], alpha_bar[k + 1], prediction, eta, noise)
        want = theirs.step(told, now, z, eta=eta, variance_noise=noise if eta else None).prev_sample
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_edited_picture_is_that_of_a_chain_of_diffusers_steps(models, pictures, prediction, eta):
    model, prompts = models[prediction], ["a photo of a ring", "a red ball at night"]
    rngs = [Run().rng("photoguard_diffusion", name) for name in "ab"]
    with torch.no_grad():
        got = method(eta=eta).edited(torch.stack(pictures[:2]), model.embed(prompts), rngs, model)
        for made, x, prompt, name in zip(got, pictures[:2], prompts, "ab", strict=True):
            want = chain(model, x[None], prompt, 6, 3, eta, name)[0]
            torch.testing.assert_close(made, want, atol=1e-4, rtol=1e-4)
            other = chain(model, x[None], "", 6, 3, eta, name)[0]
            assert (made - other).abs().max() > 1e-3, "the prompt plays no part"


@pytest.mark.parametrize(("strength", "steps"), [(0.5, 3), (0.1, 4), (1.0, 5), (0.7, 4), (0.3, 3)])
def test_the_time_steps_are_those_of_diffusers_img2img(model, strength, steps):
    ddim = DDIMScheduler.from_config(model.pipe.scheduler.config)
    pipe = StableDiffusionImg2ImgPipeline(**{**model.pipe.components, "scheduler": ddim}, requires_safety_checker=False)
    total = round(steps / strength)
    ddim.set_timesteps(total)
    want, count = pipe.get_timesteps(total, strength, "cpu")
    t, alpha_bar = img2img_steps(model, strength, steps)
    assert count == steps
    assert t.tolist() == want.tolist()
    torch.testing.assert_close(alpha_bar[:-1], model.alpha_bar[t])
    torch.testing.assert_close(alpha_bar[-1], model.alpha_bar[0])  # Stable Diffusion's walk ends at the first level


@pytest.mark.parametrize(
    "theirs",
    [
        *(DDIMScheduler(steps_offset=0), DDIMScheduler(steps_offset=1), PNDMScheduler()),
        *(DPMSolverSinglestepScheduler(), EulerDiscreteScheduler()),
    ],
    ids=["0", "1", "PNDM", "no offset", "Euler"],
)
def test_time_steps_begin_where_those_of_diffusers_img2img_do(model, theirs):
    """Whatever a folder's scheduler says of it, its pipelines of Stable Diffusion begin at time step 1."""
    ddim = DDIMScheduler.from_config(theirs.config)
    pipe = StableDiffusionImg2ImgPipeline(**{**model.pipe.components, "scheduler": ddim}, requires_safety_checker=False)
    ddim.set_timesteps(10)
    want, _ = pipe.get_timesteps(10, 0.5, "cpu")
    with torch.inference_mode():
        t, alpha_bar = img2img_steps(model.having(scheduler=theirs), 0.5, 5)
    assert t.tolist() == want.tolist() == [401, 301, 201, 101, 1]
    assert torch.equal(alpha_bar[:-1], ddim.alphas_cumprod[t])
    assert alpha_bar[-1] == ddim.final_alpha_cumprod
    assert not alpha_bar.is_inference(), "whoever asks next may want gradients"


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_recomputed_gradients_are_those_of_a_chain_that_is_kept(model, pictures, monkeypatch, eta):
    def gradient() -> Tensor:
        x = torch.stack(pictures).requires_grad_(True)
        rngs = [Run().rng(i) for i in range(4)]
        made = method(samples=2, eta=eta).edited(x, model.embed([""] * 8), rngs, model)
        return torch.autograd.grad(made.square().sum(), x)[0]

    calls = []
    real = chains.checkpoint
    for module in (photoguard_diffusion, chains):
        monkeypatch.setattr(module, "checkpoint", lambda f, *a, **k: calls.append(f) or real(f, *a, **k))
    recomputed = gradient()
    assert calls.count(model.predict) == 3
    for module in (photoguard_diffusion, chains):
        monkeypatch.setattr(module, "checkpoint", lambda f, *a, **k: f(*a))
    kept = gradient()
    torch.testing.assert_close(recomputed, kept, rtol=1e-5, atol=1e-6 * float(kept.abs().max()))


def test_only_one_evaluation_is_kept_in_memory(model, pictures):
    """What autograd keeps does not grow by an evaluation's activations with the steps: one latent and less for each."""

    def kept(steps: int) -> int:
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.setdefault(id(x), x.numel()) and x, lambda x: x):
            x = torch.stack(pictures).requires_grad_(True)
            made = method(sample_steps=steps).edited(x, model.embed([""] * 4), [Run().rng(i) for i in range(4)], model)
            assert made.requires_grad
        return sum(sizes.values())

    latent = 4 * 4 * 8 * 8
    assert (kept(8) - kept(2)) / 6 < 12 * latent


# -- the attack --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["empty", "owner"])
def test_first_gradient_is_that_of_the_objective_written_out(model, pictures, prompt):
    """Minus the mean over samples of the mean square of f(x) - grey, in [-1,1]."""
    budget, owner = Watching(8), make_owner(pictures[:1])
    method(iterations=1, prompt=prompt).protect(owner, budget, model, Run())
    x = pictures[0][None].clone().requires_grad_(True)
    made = chain(model, x, owner.prompts[0] if prompt == "owner" else "", 6, 3, 0.0, owner.names[0])
    (want,) = torch.autograd.grad(-(2 * made - 1).square().mean(), x)
    torch.testing.assert_close(budget.gradients[0], want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_draws_are_averaged(model, pictures):
    """Two samples: the mean of the gradients that each of them has."""
    x, owner = pictures[0], make_owner(pictures[:1])
    two = Watching(8)
    method(iterations=1, samples=2).protect(owner, two, model, Run())
    rng = Run().rng("photoguard_diffusion", owner.names[0])
    noise = torch.randn(2, 4, 8, 8, generator=rng)
    pipe, t = model.pipe, img2img_steps(model, 0.5, 3)[0]
    parts = []
    for n in noise:
        y = x[None].clone().requires_grad_(True)
        ddim = scheduler(model, 6)
        z = pipe.vae.encode(2 * y - 1).latent_dist.mean * pipe.vae.config.scaling_factor
        z = ddim.add_noise(z, n[None], t[:1])
        for now in t:
            z = ddim.step(pipe.unet(z, now, model.embed([""]).hidden).sample, now, z).prev_sample
        made = pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample
        parts.append(torch.autograd.grad(-made.square().mean(), y)[0])
    want = torch.stack(parts).mean(0)
    torch.testing.assert_close(two.gradients[0], want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_distance_to_the_target_falls_more_than_under_noise(models, pictures, prediction):
    """On fresh draws; a random start of the whole budget is the noise."""
    model, owner = models[prediction], make_owner(pictures)
    made = method(iterations=10, samples=2).protect(owner, Linf(16), model, Run())
    noisy = first_images(owner, Linf(16), Run(), True)

    def distance(rows: list[Tensor]) -> float:
        rngs = [Run(seed=9).rng(i) for i in range(4)]
        with torch.no_grad():
            got = method(samples=8).edited(torch.stack(rows), model.embed([""] * 32), rngs, model)
        return float((2 * got - 1).square().mean())

    clean, noise, after = distance(pictures), distance(noisy), distance(made)
    assert after < clean
    assert clean - after > 3 * abs(clean - noise)


def test_the_target_can_be_a_picture(model, pictures, tmp_path):
    images.write_png(tmp_path / "a.png", pictures[3])
    to_file = method(target=str(tmp_path / "a.png"))
    assert torch.equal(to_file._goal((16, 16), torch.device("cpu"))[0], pictures[3])
    low = pixels.resize(pictures[3][None], (12, 16))[0]
    assert torch.equal(to_file._goal((12, 16), torch.device("cpu"))[0], low)
    assert float(method()._goal((16, 16), torch.device("cpu"))) == 0.5
    owner = make_owner(pictures[:1])
    assert not torch.equal(
        to_file.protect(owner, Linf(8), model, Run())[0], method().protect(owner, Linf(8), model, Run())[0]
    )
    before = to_file.identity()
    images.write_png(tmp_path / "a.png", pictures[2])
    assert to_file.identity() != before
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"photoguard_diffusion: no picture .*a\.png; give a file or target=null"):
        to_file.check()


@pytest.mark.slow
def test_odd_sizes_and_batches(model, pictures):
    wide = torch.cat([pictures[1], pictures[2]], 2)[:, :13, :27]
    given = [pictures[0], wide, pictures[3]]
    few, many = (method(samples=2, eta=1.0).protect(make_owner(given), Linf(8), model, Run(batch=b)) for b in (2, 32))
    assert [x.shape for x in few] == [x.shape for x in given]
    for a, b in zip(few, many, strict=True):
        assert ((a - b).abs() < 1e-5).float().mean() > 0.99


@pytest.mark.slow
def test_work_is_counted(model, pictures):
    run = Run()
    method(samples=2).protect(make_owner(pictures), Linf(8), model, run)
    assert run.count == {"unet_image": 3 * 2 * 3 * 4}


def test_shipped_settings_take_a_hundred_evaluations_a_picture(node):
    s = node("protect", "photoguard_diffusion")
    assert s.iterations * s.samples * s.sample_steps == 100


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": 0},
        {"sample_steps": 0},
        {"samples": 0},
        {"strength": 0.0},
        {"strength": 1.5},
        {"eta": -0.5},
        {"eta": 2.0},
        {"prompt": "thief"},
    ],
)
def test_wrong_settings_are_told_in_one_line(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))) as error:
        method(**wrong)
    assert "\n" not in str(error.value)
