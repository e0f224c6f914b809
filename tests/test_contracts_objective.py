"""Every protection that ascends: what it raises is higher of the saved pictures than of the clean ones, with noise and
time steps drawn anew. The YAMLs in conf/protect are listed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from statistics import fmean
from typing import Any, ClassVar

import pytest
import torch
from contracts import COMPUTES_NOTHING, SHORT, build
from shared import make_owner, options
from torch import Tensor

from udpbench.core import images
from udpbench.core.budget import Linf
from udpbench.interfaces import Run

LONGER = {"diffusionguard": {"iterations": 100}, "metacloak": {"image_steps": 40}}  # to be seen
SAMPLES = 24  # of noise and time steps
BUDGET = Linf(32)  # a random model's loss hardly pulls
STEPS = SHORT | {"image_steps": 20, "iterations": 20, "steps": 20}
# Noise has no objective; what is trained in diffvax is a network, on a loss of whole edits (its own test); wrappers have
# the objective of another one and a term of their own.
NO_ASCENT = {*COMPUTES_NOTHING, "noise", "noise_rms", "diffvax", "consistent", "ensemble", "eot"}
LOWERED = {"glaze"}  # what their own loop is given goes down
OPTIONS = [option for option in options("protect") if option not in NO_ASCENT and "_released" not in option]


class Recorded(Run):
    """A run that keeps the generators which it gives, so that two losses can be given the same samples."""

    given: ClassVar[list[torch.Generator]] = []

    def rng(self, *key: object) -> torch.Generator:
        self.given.append(rng := super().rng(*key))
        return rng


def rewinding() -> Callable[[], None]:
    """What sets all generators back to where they are now."""
    before = [(rng, rng.get_state()) for rng in Recorded.given]

    def back() -> None:
        for rng, state in before:
            rng.set_state(state)

    return back


@pytest.fixture
def recorded(monkeypatch) -> list[Any]:
    """For losses in the order in which ascents are given them; generators are kept from here on."""
    monkeypatch.setattr(Recorded, "given", [])
    return []


@pytest.fixture(scope="module")
def steep(model) -> Any:
    """The tiny random model with a louder UNet, whose loss depends on what it is given."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.pipe.unet.conv_out.weight *= 20
    return copied


def value(losses: list[Any], x: Tensor, i: int) -> float:
    """What was raised last of picture ``i``; a loss of one picture alone knows no other."""
    for loss in reversed(losses):
        try:
            return float(loss(x[None].requires_grad_(True), [i]).detach().sum())
        except KeyError:  # as ``run_of`` says it
            continue
    raise AssertionError(f"no ascent of picture {i}")


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_what_is_raised_is_higher_of_the_saved_pictures_with_other_noise(
    node, elsewhere, steep, pictures, recorded, tmp_path, option
):
    def hook(loss: Any, before: int) -> Any:
        recorded.append(loss)
        return loss

    method = build(node("protect", option), elsewhere, STEPS | LONGER.get(option, {}))
    pictures = pictures[:2]
    owner = make_owner(list(pictures), [f"{i:04d}.png" for i in range(len(pictures))])
    made = method.protect(owner, BUDGET, steep, Recorded(seed=0, loss_hook=hook))
    higher = []
    for i, (clean, x) in enumerate(zip(pictures, made, strict=True)):
        images.write_png(tmp_path / f"{i}.png", x)
        saved = images.read(tmp_path / f"{i}.png")
        for _ in range(SAMPLES):
            back = rewinding()
            of_clean = value(recorded, clean, i)
            back()  # for the saved one; after it the samples are others
            higher.append((value(recorded, saved, i) - of_clean) * (-1 if option in LOWERED else 1))
    assert fmean(higher) > 0


def test_only_options_that_are_there_are_left_out():
    assert set(options("protect")) >= NO_ASCENT
    assert set(OPTIONS) >= {*LOWERED, *LONGER}
