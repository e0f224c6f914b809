"""What purifications with the embedded models leave of a ramp and of a photograph of an odd size."""

from __future__ import annotations

import pytest
import torch
from contracts import purifier
from hydra.utils import instantiate
from test_filters import RAMP, photo, psnr

from udpbench.core.images import write_png
from udpbench.interfaces import Run
from udpbench.models.latent import LatentDiffusion
from udpbench.models.pixel import PixelDiffusion
from udpbench.models.upscaler import Upscaler

pytestmark = pytest.mark.slow  # seconds each, with the embedded models

SHORT = {
    "diffpure": {"steps": 10}, "diffpure_sde": {"steps": 10}, "gridpure": {"rounds": 2},
    "udap": {"iterations": 3, "depth": 2},
    "bridge": {"steps": 20, "widths": [8, 16], "batch": 4, "crop": 16, "sample_steps": 4},
} | {name: {"iterations": 5} for name in ("impress", "impress_pp", "insight")}  # fmt: skip
# PSNR in dB of ramp and photograph: a scale, range or rounding gone wrong is outside.
WINDOWS = {
    "best_of": ((50, 70), (18, 24)),
    "bridge": ((40, 53), (25, 53)),
    "ddspure": ((33, 39), (24, 30)),
    "diffpure": ((25, 31), (18, 23)),
    "diffpure_sde": ((19, 25), (15, 20)),
    "gridpure": ((36, 43), (26, 32)),
    "impress": ((30, 37), (28, 34)),
    "impress_pp": ((24, 30), (23, 29)),
    "insight": ((21, 27), (22, 28)),
    "noisy_upscale": ((17, 23), (12, 18)),
    "pdm_pure": ((27, 33), (18, 24)),
    "sdedit": ((18, 24), (13, 19)),
    "sdedit_denoise": ((18, 24), (14, 20)),
    "super_resolution": ((21, 28), (13, 19)),
    "udap": ((26, 33), (17, 23)),
    "vae_roundtrip": ((25, 30), (18, 23)),
}


@pytest.fixture(scope="module")
def models():
    micro, x4 = LatentDiffusion("pkg:micro", "micro"), Upscaler("pkg:micro_x4", "micro_x4")
    return micro, PixelDiffusion("pkg:micro_pixel", "micro_pixel"), x4


@pytest.fixture(scope="module")
def leak(tmp_path_factory):
    """Pairs for a bridge: parts of the photograph, and the same under noise of 8/255."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("clean", "protected")}
    for i, rng in enumerate(torch.Generator().manual_seed(k) for k in range(4)):
        clean = photo(64, 64 + 16 * i)
        sign = torch.randint(2, clean.shape, generator=rng) * 2 - 1
        write_png(folders["clean"] / f"{i}.png", clean)
        write_png(folders["protected"] / f"{i}.png", (clean + 8 / 255 * sign).clamp(0, 1))
    return folders


@pytest.mark.parametrize("option", sorted(WINDOWS))
def test_a_ramp_and_an_odd_photograph_survive_with_the_distortion_that_is_expected(node, models, leak, option):
    conf = node("attack", option)
    conf.update(leak if option == "bridge" else {})
    attack = instantiate(conf, **SHORT.get(option, {}), _convert_="all")
    for x, (low, high) in zip((RAMP, photo(45, 61)), WINDOWS[option], strict=True):
        (made,) = attack.purify([x], ["a.png"], ["a photo"], purifier(attack, *models), Run())
        assert made.shape == x.shape
        assert low < psnr(made, x) < high
