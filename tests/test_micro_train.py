"""The commands that train the embedded models, cut down to a few steps: what they write is a model like the others."""

from __future__ import annotations

import sys

import pytest
import torch

from experiments.embedded_models import build, measure, train
from experiments.embedded_models.train_upscaler import enlargements
from udpbench.interfaces import Run
from udpbench.models.latent import LatentDiffusion
from udpbench.models.sample import sample
from udpbench.models.upscaler import Upscaler
from udpbench.world import renderer

WEIGHTS = build.WEIGHTS


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The command line, with few pictures, and weights in a folder of the test's own."""
    monkeypatch.setattr(train, "PICTURES", 64)
    monkeypatch.setattr(train, "NORMALISED_BY", 128)
    monkeypatch.setattr(train, "BATCH", 4)
    monkeypatch.setattr(measure, "WORLD", 4)
    monkeypatch.setattr(measure, "SUBJECT", 1)
    monkeypatch.setattr(build, "WEIGHTS", tmp_path / "weights")

    def command(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["train", *words, "--work", str(tmp_path / "work"), "--threads", "1"])
        train.main()  # one thread as everywhere here: a change would let later sums in this process round otherwise

    return command


@pytest.mark.slow
def test_a_model_of_its_own_is_trained_written_and_drawn_with(small, tmp_path):
    small("vae", "--model", "micro_c", "--steps", "2")
    small("unet", "--model", "micro_c", "--steps", "2")
    small("export", "--model", "micro_c")
    model = LatentDiffusion(str(tmp_path / "weights" / "micro_c"), "micro_c")
    z = model.encode(renderer.render(renderer.draw(64, torch.Generator().manual_seed(0))))
    assert z.shape[1] == build.autoencoder("micro_c").config.latent_channels
    assert float(z.mean((0, 2, 3)).abs().max()) < 0.3  # normalised
    assert 0.8 < float(z.std()) < 1.2
    (made,) = sample(model, ["a photo of a red ball"], [0], Run(0), steps=2, guidance=2.0)
    assert made.shape[1:] == (3, 64, 64)
    assert (tmp_path / "weights" / "logs" / "micro_c" / "unet.log").exists() is (
        tmp_path / "work" / "unet.log"
    ).exists()


@pytest.mark.slow
def test_a_model_that_borrows_has_the_other_s_autoencoder_and_words(small, tmp_path):
    small("unet", "--model", "micro_b", "--steps", "1")
    small("export", "--model", "micro_b")
    first = LatentDiffusion(str(WEIGHTS / "micro"), "micro").identity()
    other = LatentDiffusion(str(tmp_path / "weights" / "micro_b"), "micro_b").identity()
    assert {k for k in first if first[k] == other[k]} >= {"vae", "text_encoder"}
    assert first["unet"] != other["unet"]


@pytest.mark.slow
def test_an_upscaler_is_trained_written_and_enlarges(small, tmp_path):
    small("upscaler", "--model", "micro_x4", "--steps", "1")
    small("export", "--model", "micro_x4")
    lender, model = LatentDiffusion("pkg:micro", "micro"), Upscaler(str(tmp_path / "weights" / "micro_x4"), "x4")
    assert {k for k, v in model.identity().items() if v == lender.identity().get(k)} >= {"vae", "text_encoder"}
    x = torch.rand(1, 3, 5, 7)
    made = model.enlarged(x, ["a photo of a ball"], "", [Run().rng(0)], steps=2, guidance=2.0, noise_level=350)
    assert made.shape == (1, 3, 20, 28)


@pytest.mark.parametrize("step", range(8))
def test_what_it_learns_to_enlarge_has_captions_and_a_size(step):
    x, said = enlargements(step, torch.Generator().manual_seed(0))
    assert x.shape == (16, 3, 64, 64)
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    assert [bool(text) for text in said] == ([False] * 16 if step == 7 else [True, False] * 8)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["vae"], "--steps"),
        (["vae", "--model", "micro_b", "--steps", "1"], "uses micro's"),
        (["pixel", "--steps", "1"], "pixel is no training of micro"),
        (["upscaler", "--model", "micro_pixel", "--steps", "1"], "upscaler is no training of micro_pixel"),
        (["dance"], "invalid"),
    ],
)
def test_wrong_commands_are_told(small, capsys, words, told):
    with pytest.raises(SystemExit) as stopped:
        small(*words)
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


def test_designs_borrow_from_models_that_have_their_own():
    for design in build.DESIGNS.values():
        assert not design.borrows or not build.DESIGNS[design.borrows].borrows


@pytest.mark.parametrize(("model", "channels", "width"), [("micro", 8, 128), ("micro_b", 8, 128), ("micro_c", 6, 64)])
def test_parts_fit_each_other(model, channels, width):
    parts = (build.unet(model).config, build.autoencoder(model).config, build.text_encoder(model).config)
    assert (parts[0].in_channels, parts[1].latent_channels) == (channels, channels)
    assert (parts[0].cross_attention_dim, parts[2].hidden_size) == (width, width)
