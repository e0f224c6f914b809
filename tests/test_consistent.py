"""A protection that also keeps the autoencoder consistent: the gradient, what may be inside, and what names it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from shared import CONF, Watching, make_owner, options

from udpbench.benchmark.build import make_part
from udpbench.core import images
from udpbench.core.budget import Linf
from udpbench.core.errors import ConfigError
from udpbench.interfaces import Protection, Run
from udpbench.models.latent import inconsistency
from udpbench.optim.pgd import pgd
from udpbench.protect.advdm import AdvDM
from udpbench.protect.consistent import Consistent
from udpbench.protect.glaze import Glaze
from udpbench.protect.noise import Noise
from udpbench.protect.photoguard import PhotoGuard
from udpbench.protect.photoguard_diffusion import PhotoGuardDiffusion
from udpbench.protect.udp import EUDP, UDP

UDP_SMALL: dict[str, Any] = {"rounds": 1, "model_steps": 0, "image_steps": 2, "lr": 1e-3, "batch": 2}
INNER = {
    "udp": lambda: UDP(**UDP_SMALL),
    "eudp": lambda: EUDP(**UDP_SMALL, samples=2),
    "udp, outer=clean": lambda: UDP(**UDP_SMALL, outer="clean"),
    "advdm": lambda: AdvDM(steps=2, samples=2),
    "photoguard": lambda: PhotoGuard(steps=2),
    "photoguard_diffusion": lambda: PhotoGuardDiffusion(iterations=2, strength=0.5, sample_steps=2, samples=2),
}


class Deaf(AdvDM):
    """One that keeps its run from pgd."""

    def protect(self, owner, budget, surrogate, run):
        return super().protect(owner, budget, surrogate, replace(run, penalty=None))


# -- what is ascended --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", INNER)
def test_the_gradient_is_the_inner_one_minus_that_of_the_inconsistency(model, pictures, kind):
    """From one start with the same draws; the second term by diffusers' autoencoder alone, mean over pixels in [-1,1]."""
    owner, beta = make_owner(pictures[:2]), 3.0
    plain, mixed = Watching(8), Watching(8)
    INNER[kind]().protect(owner, plain, model, Run())
    Consistent(inner=INNER[kind](), beta=beta).protect(owner, mixed, model, Run())
    first = mixed.moved[0] if kind in ("advdm", "photoguard") else None  # of a random start only the moved are kept
    start = torch.stack(owner.images) if first is None else torch.cat(mixed.moved[:2])
    start = Linf(8).project(start, torch.stack(owner.images))
    y = (2 * start - 1).requires_grad_(True)
    vae = model.pipe.vae
    back = vae.decode(vae.encode(y).latent_dist.mode()).sample
    (slope,) = torch.autograd.grad(sum(torch.nn.functional.mse_loss(a, b) for a, b in zip(back, y, strict=True)), y)
    want = plain.gradients[0] - beta * 2 * slope  # dy/dx = 2
    torch.testing.assert_close(mixed.gradients[0], want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))
    assert (mixed.gradients[0] - plain.gradients[0]).abs().max() > 1e-3 * float(want.abs().max())


@pytest.mark.parametrize("kind", ["udp", "photoguard"])
def test_without_weight_it_is_the_inner_protection(model, pictures, kind):
    owner = make_owner(pictures[:2])
    plain = INNER[kind]().protect(owner, Linf(8), model, Run())
    same = Consistent(inner=INNER[kind](), beta=0).protect(owner, Linf(8), model, Run())
    assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))


@pytest.mark.slow
def test_the_pictures_are_more_consistent_the_more_it_weighs(model, pictures):
    owner = make_owner(pictures)
    found = []
    for beta in (0.0, 1.0, 1e4):
        made = Consistent(inner=AdvDM(steps=10), beta=beta).protect(owner, Linf(8), model, Run())
        with torch.no_grad():
            found.append(float(inconsistency(torch.stack(made), model).mean()))
    assert found[0] > found[1] > found[2]
    with torch.no_grad():
        assert found[2] < float(inconsistency(torch.stack(pictures), model).mean())


def test_inconsistency_in_closed_form(pictures):
    """A round trip that is off by 0.1 of a [0,1] pixel everywhere: 0.2 squared, for each picture, of its own size."""

    class Off:
        def round_trip(self, x):
            return x + 0.1 * torch.arange(1, len(x) + 1).view(-1, 1, 1, 1)

    torch.testing.assert_close(inconsistency(torch.stack(pictures[:2]), Off()), torch.tensor([0.04, 0.16]))


def test_pgd_subtracts_the_penalty_of_each_picture():
    """Linear in both: the direction is that of the difference; without a penalty, of the loss."""
    clean = [torch.full((3, 2, 2), 0.5) for _ in range(3)]
    run = Run(penalty=lambda x: 2.0 * x.flatten(1).sum(1))

    def loss(x, index):
        return x.flatten(1).sum(1) * torch.tensor([1.0, 3.0, 5.0])[index]

    made = pgd(clean, clean, loss, Linf(8), run, steps=[1.0], most=2)
    assert [round(float((x - 0.5).mean() * 255), 3) for x in made] == [-1, 1, 1]
    made = pgd(clean, clean, loss, Linf(8), Run(), steps=[1.0], most=2)
    assert [round(float((x - 0.5).mean() * 255), 3) for x in made] == [1, 1, 1]

    def coupled(x, index):  # one loss for all pictures: each penalty still counts once
        return loss(x, index).sum().view(1)

    made = pgd(clean, clean, coupled, Linf(8), run, steps=[1.0], most=3)
    assert [round(float((x - 0.5).mean() * 255), 3) for x in made] == [-1, 1, 1]


def test_work_is_counted_with_the_inner_one_s(model, pictures):
    run = Run()
    Consistent(inner=INNER["eudp"](), beta=1.0).protect(make_owner(pictures[:3]), Linf(8), model, run)
    assert run.count == {"unet_image": 2 * 2 * 3, "vae_image": 2 * 3}
    assert run.penalty is None


# -- what may be inside ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_glaze_heeds_it_too(model, pictures):
    """The owner of IMPRESS: the first step of Glaze's Adam follows the sum of both gradients."""
    settings = {
        "iterations": 1, "lr": 0.01, "alpha": 0.0, "distance_budget": 1.0, "start_noise": 0.05, "perceptual": "lite1",
        "style_prompt": "on sand", "strength": 0.5, "guidance": 1.0, "img2img_steps": 2,
    }  # fmt: skip
    owner, glaze = make_owner(pictures[:1]), Glaze(**settings)
    start = 2 * Linf(128).project(owner.images[0][None] + 0.025 * _uniform(glaze, owner), owner.images[0][None]) - 1
    goal = glaze.restyled(owner.images[0][None], owner.names, model, Run())
    y = start.clone().requires_grad_(True)
    own = (model.encode((y + 1) / 2) - model.encode(goal)).square().mean()
    (slope,) = torch.autograd.grad(own + 3.0 * (y - (2 * model.round_trip((y + 1) / 2) - 1)).square().mean(), y)
    (made,) = Consistent(inner=glaze, beta=3.0).protect(owner, Linf(128), model, Run())
    (plain,) = glaze.protect(owner, Linf(128), model, Run())
    sure = slope[0].abs() > 1e-3 * slope.abs().max()  # Adam's first step is lr times the sign
    want = ((start - 0.01 * slope.sign() + 1) / 2).clamp(0, 1)[0]
    torch.testing.assert_close(made[sure], want[sure], atol=1e-5, rtol=0)
    assert not torch.equal(made, plain)


def _uniform(glaze: Glaze, owner) -> torch.Tensor:
    shape = owner.images[0].shape
    return torch.rand(shape, generator=Run().rng("glaze", owner.names[0]))[None] * 2 - 1


# These optimise no perturbation of the pictures by themselves, or wrap what does.
MASKED = {"diffusionguard", "diffusionguard_released", "promptflare", "promptflare_released"}
DEAF = {"none", "noise", "noise_rms", "folder", "diffvax", "diffvax_released", "consistent", "eot", "ensemble", *MASKED}


@pytest.mark.parametrize("option", options("protect"))
def test_only_what_heeds_the_consistency_may_be_inside(node, option):
    conf = node("protect", option)
    if option == "folder":
        conf.path = "somewhere"
    inner = instantiate(conf, _convert_="all")
    if option not in DEAF:
        made = Consistent(inner=inner, beta=1.0)
        assert made.needs == inner.needs | {"latent"}
        assert made.starts_from_weights == inner.starts_from_weights
    else:
        with pytest.raises(ValueError, match=f"consistent: {type(inner).__name__} does not heed .*; allowed are"):
            Consistent(inner=inner, beta=1.0)


def test_one_that_says_it_heeds_and_does_not_is_told(model, pictures):
    with pytest.raises(ValueError, match="consistent: Deaf says that it heeds the consistency and does not"):
        Consistent(inner=Deaf(steps=1), beta=1.0).protect(make_owner(pictures[:1]), Linf(8), model, Run())


@pytest.mark.parametrize("beta", [-1.0, float("nan"), "much", True, None])
def test_a_wrong_weight_is_told_in_one_line(beta):
    with pytest.raises(ValueError, match="consistent: beta must be >= 0, given") as error:
        Consistent(inner=AdvDM(steps=1), beta=beta)
    assert "\n" not in str(error.value)


# -- the command and the key -------------------------------------------------------------------------------------------


def key(*overrides: str) -> dict[str, Any]:
    """The key of protect=consistent with overrides."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["protect=consistent", *overrides])
    return make_part(cfg.protect, "consistent", Protection).key


def test_the_inner_protection_is_chosen_and_set_on_the_command_line(cell):
    made = cell("protect=consistent", "protect@inner=udp", "inner.rounds=3", "protect.beta=2.5")
    thing = made.protect.component
    assert type(thing.inner) is UDP
    assert (thing.inner.rounds, thing.beta, made.names["protect"]) == (3, 2.5, "consistent_udp_2.5")
    assert type(cell("protect=consistent").protect.component.inner) is EUDP
    with pytest.raises(ConfigError, match=r"consistent: Noise does not heed"):
        cell("protect=consistent", "protect@inner=noise")
    with pytest.raises(ConfigError, match="^consistent: Interpolation to parent node detected"):
        cell("protect=consistent", "protect@inner=consistent")


@pytest.mark.slow
def test_the_key_tells_inner_protections_and_their_settings_apart(monkeypatch):
    keys = [
        key(),
        key("protect.beta=1.0"),
        key("inner.rounds=4"),
        key("inner.lr=0.1"),
        key("protect@inner=udp"),
        key("protect@inner=advdm"),
        key("protect@inner=photoguard"),
        key("protect@inner=photoguard", "inner.steps=7"),
    ]
    from udpbench.benchmark.stage import hash_of

    assert len({hash_of(k) for k in keys}) == len(keys)
    assert key() == keys[0]
    monkeypatch.setattr(EUDP, "version", 99)
    assert key() != keys[0]


def test_a_target_that_moved_is_the_same_target_and_another_is_another(pictures, tmp_path):
    def keyed(folder: str) -> dict[str, Any]:
        return key("protect@inner=photoguard", f"inner.target={tmp_path / folder / 'a.png'}")

    for folder, x in (("one", pictures[0]), ("two", pictures[0]), ("three", pictures[1])):
        (tmp_path / folder).mkdir()
        images.write_png(tmp_path / folder / "a.png", x)
    assert keyed("one") == keyed("two") != keyed("three")
    missing = Consistent(inner=PhotoGuard(steps=1, target=str(tmp_path / "d.png")), beta=1.0)
    with pytest.raises(ValueError, match=r"photoguard: no picture .*d\.png"):
        missing.check()
    Consistent(inner=AdvDM(steps=1), beta=1.0).check()


def test_noise_is_refused_without_any_work():
    with pytest.raises(ValueError, match="consistent: Noise does not heed .* e.g. udp, eudp") as error:
        Consistent(inner=Noise(), beta=1.0)
    assert "\n" not in str(error.value)


def test_version_and_digests_of_the_protection_inside_are_in_the_key(pictures, tmp_path, monkeypatch):
    images.write_png(tmp_path / "a.png", pictures[0])
    words = ("protect@inner=photoguard", f"inner.target={tmp_path / 'a.png'}")
    before = json.loads(json.dumps(key(*words)))
    assert set(before["inside"]) == {"inner"}
    monkeypatch.setattr(PhotoGuard, "version", PhotoGuard.version + 1)
    after = key(*words)
    assert before["settings"] == after["settings"]
    assert before["inside"]["inner"]["version"] + 1 == after["inside"]["inner"]["version"]
    images.write_png(tmp_path / "a.png", pictures[1])
    assert key(*words)["inside"]["inner"]["identity"] != after["inside"]["inner"]["identity"]


def test_a_released_preset_inside_makes_the_whole_a_released_one(cell):
    made = cell("protect=consistent", "protect@inner=advdm_released", "budget.eps=16")
    assert made.protect.preset == "released"
    assert cell("protect=consistent", "protect@inner=advdm").protect.preset == "matched"
