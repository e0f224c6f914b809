"""Networks are compiled where a model's setting says so, and the setting is part of what a model is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from udpbench.core import compiled
from udpbench.interfaces import Run
from udpbench.models.latent import LatentDiffusion


@pytest.fixture
def asked(monkeypatch) -> list[tuple[nn.Module, str]]:
    """What torch is asked to compile, in its place: compiling takes a minute."""
    found: list[tuple[nn.Module, str]] = []

    def remember(self: nn.Module, mode: str) -> None:
        found.append((self, mode))
        self._compiled_call_impl = self._call_impl

    monkeypatch.setattr(nn.Module, "compile", remember)
    return found


def test_networks_are_compiled_once_and_those_in_training_too(tiny, asked):
    model = LatentDiffusion(str(tiny), "tiny", compile="default").on(Run(0)).on(Run(0))
    pipe = model.pipe
    assert asked == [(part, "default") for part in (pipe.unet, pipe.vae.encoder, pipe.vae.decoder)]
    trained = model.trainable(Run(0).rng("unet")).model.pipe.unet
    assert [part for part, _ in asked[3:]] == [trained]
    assert list(trained.state_dict()) == list(pipe.unet.state_dict())  # as it is saved


def test_nothing_is_compiled_unless_it_is_said(tiny, asked):
    model = LatentDiffusion(str(tiny), "tiny").on(Run(0))
    model.trainable(Run(0).rng("unet"))
    assert not asked


def test_it_is_part_of_what_a_model_is(tiny):
    plain, said = LatentDiffusion(str(tiny), "tiny"), LatentDiffusion(str(tiny), "tiny", compile="default")
    assert said.identity() == plain.identity() | {"compile": "default"}
    assert "compile" not in plain.identity()  # keys of what is finished stay


def test_what_cannot_be_is_told_in_one_line(tiny, monkeypatch):
    with pytest.raises(ValueError, match="unknown compile 'fast'; allowed are none, default$"):
        LatentDiffusion(str(tiny), "tiny", compile="fast")
    with pytest.raises(
        ValueError, match="model tiny: compile=reduce-overhead is not supported: .*; say compile=default$"
    ):
        LatentDiffusion(str(tiny), "tiny", compile="reduce-overhead")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="model tiny: compile=default needs a C"):
        LatentDiffusion(str(tiny), "tiny", compile="default")
    LatentDiffusion(str(tiny), "tiny")
