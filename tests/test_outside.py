"""A user's own protection, Rewound of tests/outside: what the interface promises holds for it, with pictures of two sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from outside.rewound import Rewound
from shared import make_owner

from udpbench.core.budget import RMS, Linf, measure
from udpbench.core.images import checked_pictures
from udpbench.interfaces import NEEDS, Owner, Run

SHORT = {"rounds": 2, "image_steps": 4, "model_steps": 2, "lr": 1e-2, "batch": 2, "class_images": 2}


@pytest.fixture
def owner(pictures) -> Owner:
    return owner_of(pictures)


def owner_of(pictures: list[torch.Tensor]) -> Owner:
    """Three pictures of two sizes, two further clean ones of the sizes, two of the class."""
    wide = torch.cat([pictures[1], pictures[2]], 2)[:, :, :27]
    owner = make_owner([pictures[0], wide, pictures[3]])
    owner.extra_clean, owner.class_images = [pictures[2], wide.flip(2)], [pictures[1], pictures[2]]
    return owner


def protected(owner: Owner, model, budget=None, run=None, **settings) -> list[torch.Tensor]:
    made = Rewound(**SHORT | settings).protect(owner, budget or Linf(8), model, run or Run())
    return checked_pictures("protect rewound", made, dict(zip(owner.names, owner.images, strict=True)))


@pytest.fixture(scope="module")
def plain(pictures, model) -> list[torch.Tensor]:
    """What it makes of the owner's pictures."""
    return protected(owner_of(pictures), model)


@pytest.mark.parametrize("budget", [Linf(8), RMS(4)], ids=lambda b: b.name)
@pytest.mark.parametrize("text", [False, True], ids=["unet", "text encoder"])
def test_pictures_of_two_sizes_are_changed_within_the_budget_and_the_model_is_not(owner, model, budget, text):
    before = [p.clone() for p in (*model.pipe.unet.parameters(), *model.pipe.text_encoder.parameters())]
    run = Run()
    made = protected(owner, model, budget, run, train_text_encoder=text)
    for clean, x in zip(owner.images, made, strict=True):
        measured = measure(clean, x)
        assert 0.25 * budget.eps < measured["rms"]
        assert measured[budget.kind] <= budget.eps * (1 + 1e-9)
    after = (*model.pipe.unet.parameters(), *model.pipe.text_encoder.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert run.count == {"unet_train": 2 * 2 * (2 + 2 + 2), "unet_image": 2 * 4 * 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    "other",
    [
        {"model_steps": 0},
        {"train_text_encoder": True},
        {"prior_weight": 9.0},
        {"samples": 2},
    ],
)
def test_every_part_changes_the_pictures(owner, model, plain, other):
    changed = protected(owner, model, **other)
    assert any(not torch.equal(a, b) for a, b in zip(plain, changed, strict=True))


def test_samples_belong_to_the_picture(owner, model):
    alone = make_owner(owner.images[1:2], owner.names[1:2])
    alone.extra_clean, alone.class_images, alone.prompts = owner.extra_clean, owner.class_images, owner.prompts[:1]
    owner.prompts = owner.prompts[:1] * 3
    together = protected(owner, model, model_steps=0)
    torch.testing.assert_close(protected(alone, model, model_steps=0)[0], together[1], atol=1e-5, rtol=0)


def test_without_class_pictures_there_is_no_prior(owner, model, plain):
    owner.class_images = []
    assert any(not torch.equal(a, b) for a, b in zip(plain, protected(owner, model, class_images=0), strict=True))


def test_its_yaml_builds_it():
    built = instantiate(OmegaConf.load(Path(__file__).parent / "outside" / "protect" / "rewound.yaml"))
    assert isinstance(built, Rewound)
    assert built.class_images == 200
    assert "class_images" in built.needs
    assert built.needs <= NEEDS.keys()
    assert built.wants_extra_clean
