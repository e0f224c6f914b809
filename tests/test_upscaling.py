"""Purifications with models that enlarge pictures, and the cascade of a model of pixels and one of these."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from tiny import save_tiny, save_tiny_upscaler

from udpbench.attack.diffpure import DiffPure
from udpbench.attack.noisy_upscale import NoisyUpscale
from udpbench.attack.pdm_pure import PdmPure
from udpbench.attack.super_resolution import SuperResolution
from udpbench.benchmark.cell import Part
from udpbench.core.images import as_saved
from udpbench.core.pixels import resize
from udpbench.interfaces import Run
from udpbench.models.latent import LatentDiffusion
from udpbench.models.upscaler import Upscaler

SETTINGS = {"upscale_steps": 3, "guidance": 1.0, "noise_level": 20, "prompt": "{caption}"}
ODD = (13, 22)


class Doubles(Upscaler):
    """Enlarges as a resize does, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__("", "doubles")
        self.seen: list[torch.Tensor] = []
        self.asked: list[str] = []

    words = None
    factor = 2

    def on(self, run):
        return self

    def enlarged(self, x, prompts, negative, rngs, *, steps, guidance, noise_level, solver=None):
        self.seen += list(x)
        self.asked += list(prompts)
        return resize(x, (2 * x.shape[-2], 2 * x.shape[-1]))


def purified(attack, pictures, model, run=None):
    names = [f"{i}.png" for i in range(len(pictures))]
    return attack.purify(pictures, names, [f"picture {i}" for i in range(len(pictures))], model, run or Run())


def test_the_upscaler_is_diffusers_own(upscaler, pictures):
    """The same pictures as its pipeline, whose noise comes from the generators of the pictures."""
    x, text = torch.stack(pictures[:2]), ["a photo of a ring", ""]
    rngs, theirs = ([torch.Generator().manual_seed(k) for k in (1, 2)] for _ in range(2))
    made = upscaler.enlarged(x, text, "", rngs, steps=3, guidance=2.0, noise_level=100)
    want = upscaler.pipe(
        text, image=x, negative_prompt=["", ""], generator=theirs, num_inference_steps=3, guidance_scale=2.0,
        noise_level=100, output_type="pt",
    ).images  # fmt: skip
    assert made.shape == (2, 3, 2 * x.shape[-2], 2 * x.shape[-1])
    torch.testing.assert_close(made, want)


def test_another_sampler_is_that_of_diffusers(upscaler, pictures):
    x, rngs = torch.stack(pictures[:1]), [torch.Generator().manual_seed(k) for k in (1, 1)]
    given = {"steps": 4, "guidance": 2.0, "noise_level": 100}
    made = upscaler.enlarged(x, ["a ring"], "", rngs[:1], **given, solver="ddpm")
    pipe = upscaler.having(scheduler=DDPMScheduler.from_config(upscaler.pipe.scheduler.config)).pipe
    want = pipe(
        "a ring", image=x, negative_prompt="", generator=rngs[1], num_inference_steps=4, guidance_scale=2.0,
        noise_level=100, output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(made, want)
    own = upscaler.enlarged(x, ["a ring"], "", [torch.Generator().manual_seed(1)], **given)
    assert (made - own).abs().max() > 0.01


def test_an_autoencoder_without_a_scale_has_that_of_the_first_upscaler(tmp_path):
    folder = tmp_path / "old"
    save_tiny_upscaler(folder)
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "scaling_factor"}))
    assert Upscaler(str(folder), "old").pipe.vae.config.scaling_factor == 0.08333


def test_the_autoencoder_keeps_its_own_scale_where_the_pipeline_would_write_over_it(upscaler):
    assert upscaler.pipe.vae.config.scaling_factor == 0.5


@pytest.mark.parametrize("size", [(16, 16), ODD])
def test_every_size_is_enlarged_by_the_factor(upscaler, size):
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    made = upscaler.enlarged(x, [""], "", [Run().rng(0)], steps=2, guidance=1.0, noise_level=0)
    assert made.shape[-2:] == (2 * size[0], 2 * size[1])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"noise_level": 351}, "model x2: noise_level must be <= 350, given 351"),
        ({"prompt": "a" + " a" * 99}, "the prompt .* has 102 tokens, the text encoder takes 32; shorten it"),
        ({"negative_prompt": "a" + " a" * 99}, "has 102 tokens"),
    ],
)
def test_what_an_upscaler_does_not_take_is_told_before_it_is_loaded(tmp_path, wrong, told):
    fresh = Upscaler(str(save_tiny_upscaler(tmp_path / "x2")), "x2")
    SuperResolution(**SETTINGS).check_model(fresh)
    with pytest.raises(ValueError, match=told):
        SuperResolution(**SETTINGS | wrong).check_model(fresh)
    with pytest.raises(ValueError, match=told):
        PdmPure(**CASCADE | {"prompt": "a picture"} | wrong, less=5, upscaler=fresh).check()
    assert "pipe" not in vars(fresh)


def test_a_folder_is_looked_at_and_one_of_another_shape_is_told(tmp_path):
    folder = save_tiny_upscaler(tmp_path / "x2")
    assert set(Upscaler(str(folder), "x2").identity()) == {*Upscaler.parts, "dtype"}
    with pytest.raises(ValueError, match="'StableDiffusionUpscalePipeline' is not supported"):
        LatentDiffusion(str(folder), "x2").identity()
    with pytest.raises(ValueError, match="no Stable-Diffusion-upscaler-shaped folder: it lacks low_res_scheduler"):
        Upscaler(str(save_tiny(tmp_path / "sd")), "sd").identity()


def test_super_resolution_is_a_resize_but_for_what_the_model_paints(pictures):
    model, odd = Doubles(), pictures[1][:, : ODD[0], :15]
    made = purified(SuperResolution(**SETTINGS), [pictures[0], odd], model)
    small = [as_saved(resize(pictures[0][None], (8, 8))), as_saved(resize(odd[None], (7, 8)))]
    assert [tuple(x.shape) for x in model.seen] == [(3, 8, 8), (3, 7, 8)]
    for got, x, seen, want in zip(made, [pictures[0], odd], model.seen, small, strict=True):
        assert torch.equal(seen, want[0])
        large = resize(want, tuple(2 * side for side in want.shape[-2:]))
        torch.testing.assert_close(got, resize(large, tuple(x.shape[-2:]))[0])
    assert model.asked == ["picture 0", "picture 1"]


def test_noisy_upscaling_gives_the_model_the_noisy_picture_in_8_bits(pictures):
    model, flat = Doubles(), torch.full((3, 64, 64), 0.5)
    (made,) = purified(NoisyUpscale(**SETTINGS, std=25.5), [flat], model)
    (seen,) = model.seen
    assert seen.shape == flat.shape
    assert float(seen.std()) == pytest.approx(0.1, rel=0.05)
    assert float(seen.mean()) == pytest.approx(0.5, abs=0.005)
    assert torch.equal(seen, as_saved(seen))
    assert made.shape == flat.shape


CASCADE = {"sampler": "ddpm", "t": 100, "steps": 10, "upscale_steps": 2, "guidance": 1.0, "noise_level": 20}


def test_a_cascade_without_more_is_diffpure(pixels, pictures):
    mine = PdmPure(**CASCADE, prompt="a picture", less=0, upscaler=None)
    got, want = (purified(attack, pictures, pixels) for attack in (mine, DiffPure(sampler="ddpm", t=100, steps=10)))
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def test_its_noise_is_that_of_a_step_within_and_the_way_back_is_whole(pixels, pictures, monkeypatch):
    levels, ways = [], []
    monkeypatch.setattr(type(pixels), "noised", lambda model, z, t, noise: levels.append(t.tolist()) or z)
    monkeypatch.setattr(
        "udpbench.attack.diffpure.reverse", lambda model, z, cond, indices, *more: ways.append(indices) or z
    )
    purified(PdmPure(**CASCADE, prompt="a picture", less=5, upscaler=None), pictures[:1], pixels)
    assert ways == [[99, 88, 77, 66, 55, 44, 33, 22, 11, 0]]
    assert levels == [[44]]


def test_the_cascade_ends_with_the_upscaler_at_the_picture_s_own_size(pixels, upscaler, pictures):
    double, large = Doubles(), resize(pictures[0][None], (40, 60))[0]
    both = PdmPure(**CASCADE, prompt="a picture", less=5, upscaler=double)
    (made,) = purified(both, [large], pixels)
    assert [tuple(x.shape) for x in double.seen] == [(3, 16, 24)]
    assert double.asked == ["a picture"]
    assert made.shape == large.shape
    real = PdmPure(**CASCADE, prompt="a picture", less=5, upscaler=upscaler)
    (drawn,) = purified(real, [large], pixels)
    assert drawn.shape == large.shape
    key = Part("pdm_pure", {"upscaler": {"name": "own"}}, real).key
    assert key["inside"]["upscaler"]["identity"] == upscaler.identity()


def test_an_upscaler_that_is_none_and_a_noise_above_the_steps_are_told(tmp_path: Path, pixels):
    with pytest.raises(ValueError, match="attack pdm_pure: upscaler pixels is no model that enlarges pictures"):
        PdmPure(**CASCADE, prompt="", less=5, upscaler=pixels).check()
    with pytest.raises(ValueError, match="attack pdm_pure: less must be"):
        PdmPure(**CASCADE, prompt="", less=10, upscaler=None)


def test_messages_name_the_option():
    less = {"sampler": "ddpm", "t": 100, "less": 5, "upscaler": None}
    for name, make in {
        "super_resolution": lambda: SuperResolution(**SETTINGS | {"upscale_steps": 0}),
        "noisy_upscale": lambda: NoisyUpscale(**SETTINGS | {"upscale_steps": 0}, std=1.0),
        "pdm_pure": lambda: PdmPure(**SETTINGS | {"upscale_steps": 0}, **less),
    }.items():
        with pytest.raises(ValueError, match=f"^attack {name}: upscale_steps must be >= 1, given 0$"):
            make()
