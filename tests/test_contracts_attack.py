"""What every attack must do, on the tiny random pipeline with few steps. The YAMLs in conf/attack are listed."""

from __future__ import annotations

import pytest
import torch
from contracts import build, nothing_left, purifier
from shared import quick

from udpbench.interfaces import Run

# -- attacks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", quick("attack"))
def test_attack_gives_pictures_of_the_same_shape_in_range(node, elsewhere, model, pixels, upscaler, pictures, option):
    thing = build(node("attack", option), elsewhere)
    given = [*pictures[:2], torch.cat([pictures[2], pictures[2]], 2)[:, :14, :29]]
    if option == "folder":
        given = pictures[:3]
    labels = [f"{i:04d}.png" for i in range(3)]
    torch.manual_seed(1)  # the global generator must not matter
    with nothing_left(model, pixels, upscaler):
        made = thing.purify(given, labels, [""] * 3, purifier(thing, model, pixels, upscaler), Run())
    torch.manual_seed(2)
    again = thing.purify(given, labels, [""] * 3, purifier(thing, model, pixels, upscaler), Run())
    assert [x.shape for x in made] == [x.shape for x in given]
    for x, clean, same in zip(made, given, again, strict=True):
        assert x.dtype == torch.float32
        assert x.isfinite().all()
        assert x.min() >= 0
        assert x.max() <= 1
        assert not x.requires_grad
        assert torch.equal(x, same)
        if option != "quantize_palette":  # so small pictures have no more colours than its palette
            assert torch.equal(x, clean) == ("purify" not in thing.hooks)


@pytest.mark.parametrize("option", quick("attack"))
def test_attack_treats_each_picture_on_its_own(node, elsewhere, model, pixels, upscaler, pictures, option):
    thing = build(node("attack", option), elsewhere)
    labels = [f"{i:04d}.png" for i in range(4)]
    mine = purifier(thing, model, pixels, upscaler)
    whole = thing.purify(pictures, labels, [""] * 4, mine, Run())
    (alone,) = thing.purify(pictures[2:3], labels[2:3], [""], mine, Run(batch=1, grad_batch=1))
    torch.testing.assert_close(alone, whole[2], atol=1e-4, rtol=0)
