"""Diffusion models of pixels: the same protections, nothing of an autoencoder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from shared import as_saved, make_owner
from tiny import save_tiny_pixel

from udpbench.attack.impress import Impress
from udpbench.benchmark.check import checked_graph
from udpbench.core.budget import Linf
from udpbench.core.errors import ConfigError
from udpbench.interfaces import Run
from udpbench.models.pixel import PixelDiffusion
from udpbench.protect.udp import EUDP, UDP
from udpbench.results.gather import knowledge
from udpbench.task.dreambooth import DreamBooth


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_pixel(tmp_path_factory.mktemp("pixel") / "ddpm")


@pytest.fixture(scope="module")
def ddpm(folder) -> PixelDiffusion:
    return PixelDiffusion(str(folder), "ddpm")


def test_the_loss_is_equation_14_in_the_model_s_own_range(ddpm, pictures):
    x, t = torch.stack(pictures), torch.tensor([0, 300, 600, 999])
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[t].view(-1, 1, 1, 1)
    noisy = (alpha_bar.sqrt() * (2 * x - 1) + (1 - alpha_bar).sqrt() * noise).float()
    with torch.no_grad():
        want = (ddpm.pipe.unet(noisy, t).sample - noise).square().mean((1, 2, 3))
        got = ddpm.loss(ddpm.encode(x), ddpm.embed([""] * 4), t, noise)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(ddpm.decode(ddpm.encode(x)), x)


def test_odd_sizes_are_padded_for_the_network_alone_and_the_loss_is_over_the_picture(ddpm, monkeypatch):
    """Of a UNet that says 0 in the picture and 1000 beside it, the loss is the mean square of the noise."""
    x = torch.rand(1, 3, 15, 17)
    z, noise = ddpm.encode(x), torch.randn(1, 3, 15, 17, generator=torch.Generator().manual_seed(0))
    assert z.shape == x.shape
    torch.testing.assert_close(ddpm.decode(z), x)

    class Beside(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.config = torch.nn.Parameter(torch.zeros(1)), ddpm.pipe.unet.config

        def forward(self, noisy, t):
            assert noisy.shape == (1, 3, 16, 18), "what the network can halve"
            told = torch.full_like(noisy, 1000)
            told[..., :15, :17] = 0
            return SimpleNamespace(sample=told)

    with monkeypatch.context() as patched:
        patched.setattr(ddpm.pipe, "unet", Beside())
        found = ddpm.loss(z, ddpm.embed([""]), torch.tensor([500]), noise)
    torch.testing.assert_close(found, noise.square().mean((1, 2, 3)))
    with torch.no_grad():
        assert ddpm.loss(z, ddpm.embed([""]), torch.tensor([500]), noise).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("init", ["victim_task", "random"])
@pytest.mark.parametrize("kind", [UDP, EUDP])
def test_udp_on_pixels_keeps_the_budget_and_raises_the_loss_more_than_noise(ddpm, pictures, kind, init):
    owner = make_owner(pictures)
    method = kind(rounds=2, model_steps=2, image_steps=8, lr=1e-3, batch=2, samples=2, surrogate_init=init)
    made = [as_saved(x) for x in method.protect(owner, Linf(8), ddpm, Run())]
    change = (torch.stack(made) - torch.stack(pictures)) * 255
    assert change.abs().max() <= 8.001
    assert change.square().mean().sqrt() >= 2
    if init == "victim_task":
        sign = torch.randn(change.shape, generator=torch.Generator().manual_seed(1)).sign()
        noisy = (torch.stack(pictures) + sign * 8 / 255).clamp(0, 1)
        rng = torch.Generator().manual_seed(2)
        t, cond = torch.randint(0, 400, (64,), generator=rng), ddpm.embed([""] * 64)
        noise = torch.randn(64, 3, 16, 16, generator=rng)

        def loss(x: torch.Tensor) -> float:
            with torch.no_grad():
                return float(ddpm.loss(ddpm.encode(x).repeat(16, 1, 1, 1), cond, t, noise).mean())

        assert loss(torch.stack(made)) > loss(noisy)


def test_the_outer_loss_on_clean_pictures_works_on_pixels(ddpm, owner):
    method = UDP(rounds=1, model_steps=1, image_steps=1, lr=1e-3, batch=2, outer="clean")
    made = method.protect(owner, Linf(8), ddpm, Run())
    assert all((x - clean).abs().max() > 0 for x, clean in zip(made, owner.images, strict=True))


def test_what_needs_an_autoencoder_or_words_says_so_before_work_starts(ddpm):
    assert UDP.needs <= ddpm.capabilities
    assert not Impress.needs <= ddpm.capabilities
    assert not DreamBooth.needs <= ddpm.capabilities


def test_identity_is_the_weights_and_a_folder_that_is_none_is_told(folder, tmp_path):
    assert set(PixelDiffusion(str(folder), "a").identity()) == {"unet", "scheduler", "dtype"}
    assert save_tiny_pixel(tmp_path / "other", seed=1)
    assert PixelDiffusion(str(tmp_path / "other"), "a").identity() != PixelDiffusion(str(folder), "a").identity()
    with pytest.raises(ValueError, match="is no DDPM-shaped folder: it lacks model_index.json, unet, scheduler"):
        PixelDiffusion(str(tmp_path), "x").identity()


def test_the_command_takes_a_pixel_surrogate_and_refuses_a_pixel_victim(cell, folder):
    made = cell("model@surrogate=pixel", f"surrogate.path={folder}")
    assert made.surrogate.component.capabilities == {"denoise", "pixel"}
    with pytest.raises(
        ConfigError,
        match="dreambooth: needs an autoencoder and prompts, which victim pixel lacks; choose model@victim=",
    ):
        checked_graph(cell("model@victim=pixel", f"victim.path={folder}"))


def test_what_two_pixel_models_have_in_common_is_all_or_nothing(cell, folder, tmp_path):
    words = ["data=toyworld_many", "metrics=pixels", "task=ddpm", "model@surrogate=pixel", "model@victim=pixel"]
    other = save_tiny_pixel(tmp_path / "other", seed=1)

    def common(victim: Path) -> tuple[bool, bool]:
        made = knowledge(cell(*words, f"surrogate.path={folder}", f"victim.path={victim}"))
        return made["same_vae"], made["same_unet"]

    assert (common(folder), common(other)) == ((True, True), (False, False))


def test_weights_are_the_same_only_if_the_checkpoint_and_the_seed_are(cell):
    words = [
        "protect=noise",
        "data=toyworld_many",
        "metrics=pixels",
        "task=ddpm",
        "model@surrogate=ddpm32",
        "model@victim=ddpm32",
    ]
    for other, same in (("0", True), ("1", False)):
        assert knowledge(cell(*words, "surrogate.seed=0", f"victim.seed={other}"))["same_unet"] is same
