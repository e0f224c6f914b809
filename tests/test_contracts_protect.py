"""What every protection must do, on the tiny random pipeline with few steps. The YAMLs in conf/protect are listed."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from contracts import DRAWS_NOTHING, FEWEST, ONE_NETWORK, SAME_IF_SHORT, SHORT, build, layers, nothing_left
from shared import make_owner, options, quick

from udpbench.benchmark.build import make_part
from udpbench.core import images
from udpbench.core.budget import RMS, Linf, measure
from udpbench.interfaces import Protection, Run
from udpbench.models.latent import LatentDiffusion
from udpbench.protect.noise import Noise

# -- protections -------------------------------------------------------------------------------------------------------

PROTECT = options("protect")


@pytest.fixture(scope="session")
def protect(node, elsewhere, model, pictures):
    """(option, budget, seed, which pictures) -> the pictures it makes; each computed once."""
    made: dict[Any, list[torch.Tensor]] = {}

    def do(option: str, budget=None, seed: int = 0, which=(0, 1, 2, 3), short=SHORT, **settings) -> list[torch.Tensor]:
        budget = budget or Linf(8)
        key = (option, budget.name, seed, which, short is SHORT, tuple(settings.items()))
        if key not in made:
            conf = node("protect", option)
            for part in layers(conf):
                for name in settings.keys() & part.keys():
                    part[name] = settings[name]
            thing = build(conf, elsewhere, short, keep=settings)
            owner = make_owner([pictures[i] for i in which], [f"{i:04d}.png" for i in which])
            if thing.matches_strength:
                owner.like = Noise(kind="uniform").protect(owner, budget, None, Run(seed=99))
            made[key] = thing.protect(owner, budget, model if thing.needs else None, Run(seed=seed))
        return made[key]

    return do


@pytest.mark.parametrize("option", quick("protect"))
def test_protection_gives_pictures_of_the_same_shape_in_range(protect, pictures, option):
    made = protect(option)
    assert [x.shape for x in made] == [x.shape for x in pictures]
    for x in made:
        assert x.dtype == torch.float32
        assert x.isfinite().all()
        assert x.min() >= 0
        assert x.max() <= 1
        assert not x.requires_grad


@pytest.mark.parametrize("option", quick("protect", of_presets=False))
@pytest.mark.parametrize("budget", [Linf(8), RMS(4)], ids=lambda b: b.name)
def test_protection_keeps_and_uses_its_budget_on_the_saved_picture(
    protect, node, elsewhere, pictures, tmp_path, option, budget
):
    thing = build(node("protect", option), elsewhere)
    for i, (clean, x) in enumerate(zip(pictures, protect(option, budget), strict=True)):
        images.write_png(tmp_path / f"{i}.png", x)
        measured = measure(clean, images.read(tmp_path / f"{i}.png"))
        if thing.keeps_budget:
            assert measured[budget.kind] <= budget.eps * (1 + 1e-9)
        if option != "none":
            assert measured["rms"] >= 0.25 * budget.eps


@pytest.mark.slow
@pytest.mark.parametrize("option", PROTECT)
def test_protection_differs_from_clean_and_from_every_other(protect, pictures, option):
    mine = images.to_uint8(torch.stack(protect(option)))
    assert torch.equal(mine, images.to_uint8(torch.stack(pictures))) == (option == "none")
    for other in PROTECT:
        if other != option and {option, other} not in SAME_IF_SHORT:
            assert (mine != images.to_uint8(torch.stack(protect(other)))).float().mean() > 0.05, other


@pytest.mark.parametrize("option", quick("protect", of_presets=False))
def test_protection_is_that_of_its_seed(node, elsewhere, model, pictures, protect, option):
    thing = build(node("protect", option), elsewhere, FEWEST)
    owner = make_owner(pictures)
    if thing.matches_strength:
        owner.like = Noise(kind="uniform").protect(owner, Linf(8), None, Run(seed=99))
    torch.manual_seed(1 + torch.initial_seed() % 1000)  # the global generator must not matter
    with nothing_left(model):
        again = torch.stack(thing.protect(owner, Linf(8), model if thing.needs else None, Run(seed=0)))
    assert torch.equal(again, torch.stack(protect(option, short=FEWEST)))
    assert torch.equal(again, torch.stack(protect(option, seed=1, short=FEWEST))) == (option in DRAWS_NOTHING)
    assert torch.equal(torch.stack(owner.images), torch.stack(pictures)), "the owner's pictures were changed in place"


@pytest.mark.parametrize("option", quick("protect", of_presets=False))
def test_draws_belong_to_the_picture(protect, node, elsewhere, monkeypatch, option):
    """Alone, a picture gets the samples it gets in a batch; and, unless pictures are coupled by design, the same output."""
    drawn: list[list[tuple]] = []
    real = LatentDiffusion.loss

    def loss(self, z, cond, t, noise):
        drawn[-1].extend((int(step), *x.flatten()[:8].tolist()) for step, x in zip(t, noise, strict=True))
        return real(self, z, cond, t, noise)

    monkeypatch.setattr(LatentDiffusion, "loss", loss)
    drawn.append([])
    untrained = {"model_steps": 0, "clean_steps": 0}
    together = protect(option, which=(1, 2), short=FEWEST, **untrained)
    for k, i in enumerate((1, 2)):
        drawn.append([])
        (alone,) = protect(option, which=(i,), short=FEWEST, **untrained)
        assert set(drawn[-1]) <= set(drawn[0])
        assert len(set(drawn[-1])) == len(set(drawn[0])) // 2  # one sample may serve several passes
        if not build(node("protect", option), elsewhere).couples_images:
            torch.testing.assert_close(alone, together[k], atol=1e-5, rtol=0)


@pytest.mark.parametrize("option", quick("protect", of_presets=False))
def test_pictures_do_not_share_draws(node, elsewhere, model, pictures, option):
    """The same picture and prompt under two names is changed in two ways, if anything is drawn."""
    thing = build(node("protect", option), elsewhere, FEWEST)
    owner = make_owner([pictures[0]] * 2)
    owner.prompts = [owner.prompts[0]] * 2
    if thing.matches_strength:
        owner.like = Noise(kind="uniform").protect(make_owner([pictures[0]]), Linf(8), None, Run()) * 2
    one, two = thing.protect(owner, Linf(8), model if thing.needs else None, Run())
    if option not in DRAWS_NOTHING | ONE_NETWORK:
        assert not torch.equal(one, two)
    elif option != "folder":
        assert torch.equal(one, two)


@pytest.mark.parametrize("option", ["disdiff", "anti_diffusion", "advpaint", "promptflare"])
def test_a_unet_without_attention_is_told_before_it_is_loaded(option, node, tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "plain")
    method = make_part(node("protect", option, "micro"), option, Protection).component
    method.check_model(LatentDiffusion(str(folder), "plain"))
    unet = json.loads((folder / "unet" / "config.json").read_text())
    plain = {"down_block_types": ["DownBlock2D"] * 2, "mid_block_type": None, "up_block_types": ["UpBlock2D"] * 2}
    (folder / "unet" / "config.json").write_text(json.dumps(unet | plain))
    with pytest.raises(ValueError, match=f"{option}: reads what the UNet attends to, and that of model plain has no"):
        method.check_model(LatentDiffusion(str(folder), "plain"))
