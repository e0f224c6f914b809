"""Purifications by signal processing: parity with the libraries they come from, and what they leave of a picture."""

from __future__ import annotations

import io
import math

import cv2
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image
from skimage import data
from skimage.restoration import denoise_tv_chambolle

from udpbench.attack.adverse_cleaner import AdverseCleaner, bilateral, guided
from udpbench.attack.chain import Chain
from udpbench.attack.crop_resize import CropResize
from udpbench.attack.gaussian_noise import GaussianNoise
from udpbench.attack.grayscale import Grayscale
from udpbench.attack.jpeg import Jpeg
from udpbench.attack.median_blur import MedianBlur
from udpbench.attack.quantize import Quantize
from udpbench.attack.resize import Resize
from udpbench.attack.rotate_crop_erase import RotateCropErase
from udpbench.attack.tone_curve import ToneCurve
from udpbench.attack.tvm import Tvm, divergence, gradient, minimised
from udpbench.core import images, pixels
from udpbench.interfaces import Run


def of(attack, x: torch.Tensor, name: str = "a.png", seed: int = 0) -> torch.Tensor:
    return attack.purify([x], [name], [""], None, Run(seed=seed))[0]


def photo(height: int = 64, width: int = 96) -> torch.Tensor:
    """A part of a photograph, 8-bit."""
    return images.as_saved(pixels.resize(images.from_pil(Image.fromarray(data.astronaut()))[None], (height, width))[0])


RAMP = images.as_saved(torch.stack([torch.linspace(a, 1 - a, 80).expand(48, 80) for a in (0.0, 0.1, 0.9)]))
# PSNR in dB that the ramp and the photograph of 64 x 96 px are left with: a scale or range gone wrong is outside.
WINDOWS = {
    "adverse_cleaner": ((40, 50), (36, 44)),
    "blur": ((50, 65), (20, 25)),
    "chain": ((28, 33), (23, 28)),
    "compress_resize": ((34, 60), (20, 26)),
    "crop_resize": ((20, 28), (8, 12)),
    "gaussian_noise": ((25.5, 27), (25.5, 27)),
    "grayscale": ((11, 13), (16, 20)),
    "jpeg": ((40, 50), (25, 30)),
    "median_blur": ((90, 101), (22, 28)),
    "quantize": ((33, 36), (33, 36)),
    "quantize_palette": ((90, 101), (32, 37)),
    "resize": ((50, 65), (20, 26)),
    "rotate_crop_erase": ((24, 32), (9, 14)),
    "screen_camera": ((24, 36), (18, 25)),
    "tone_curve": ((24, 29), (24, 30)),
    "tvm": ((42, 50), (25, 31)),
    "webp": ((38, 50), (28, 34)),
}


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * math.log10(float((a - b).square().mean()) + 1e-10)  # 100 for equal ones


@pytest.mark.parametrize("option", sorted(WINDOWS))
def test_a_ramp_and_a_photograph_survive_with_the_distortion_that_is_expected(node, option):
    attack = instantiate(node("attack", option), _convert_="all")
    for x, (low, high) in zip((RAMP, photo()), WINDOWS[option], strict=True):
        assert low < psnr(of(attack, x), x) < high


@pytest.mark.parametrize("option", sorted(WINDOWS))
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 23)])
def test_filters_take_pictures_of_any_size(node, option, size):
    attack = instantiate(node("attack", option), _convert_="all")
    x = torch.full((3, *size), 0.5)
    made = of(attack, x)
    assert made.shape == x.shape
    assert bool(((made >= 0) & (made <= 1)).all())


# -- parity ------------------------------------------------------------------------------------------------------------


def test_compress_and_resize_are_pillow_s_own(node):
    x = photo(61, 83)
    stream = io.BytesIO()
    images.to_pil(x).save(stream, format="JPEG", quality=75, subsampling="4:2:0")
    half = Image.open(stream).resize((round(83 / 2), round(61 / 2)), Image.Resampling.LANCZOS)
    want = np.array(half.resize((83, 61), Image.Resampling.LANCZOS))
    made = of(instantiate(node("attack", "compress_resize"), _convert_="all"), x)
    assert np.array_equal(np.array(images.to_pil(made)), want)


def test_the_order_is_the_attack():
    x = photo()
    jpeg, half = Jpeg(quality=20), Resize(scale=0.5, kernel="lanczos")
    first, last = Chain(members={"a": jpeg, "b": half}), Chain(members={"a": half, "b": jpeg})
    assert torch.equal(of(first, x), of(half, images.as_saved(of(jpeg, x))))
    assert not torch.equal(of(first, x), of(last, x))


def test_the_filters_of_adverse_cleaner_are_opencv_s():
    x, rng = photo(37, 50) * 255, torch.Generator().manual_seed(0)
    noisy = (x + 8 * torch.randn(x.shape, generator=rng)).clamp(0, 255)
    ours, theirs = bilateral(noisy, 5, 8, 8), cv2.bilateralFilter(hwc(noisy), 5, 8, 8)
    assert np.abs(hwc(ours) - theirs).max() < 0.01  # OpenCV looks weights up in a table
    ours, theirs = guided(noisy, x, 4, 16), cv2.ximgproc.guidedFilter(hwc(x), hwc(noisy), 4, 16)
    assert np.abs(hwc(ours) - theirs).mean() < 0.005  # OpenCV takes the variances in float32
    assert np.abs(hwc(ours) - theirs).max() < 0.1


def hwc(x: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.permute(1, 2, 0).numpy())


def test_a_guide_that_is_the_picture_keeps_edges_and_smooths_noise():
    """Where the guide is flat the guided filter is a mean, where it has an edge the edge stays."""
    step = torch.full((3, 24, 24), 50.0)
    step[:, :, 12:] = 200.0
    noisy = step + torch.randn(step.shape, generator=torch.Generator().manual_seed(0))
    made = guided(noisy, step, 4, 16)
    assert (made - step).std() < 0.3 * (noisy - step).std()


@pytest.mark.parametrize("weight", [0.02, 0.2])
def test_total_variation_without_dropout_is_scikit_image_s(weight):
    x = photo(24, 30)
    want = denoise_tv_chambolle(x.double().numpy(), weight, eps=1e-9, max_num_iter=3000, channel_axis=0)
    made = minimised(x.double(), torch.ones(1, 24, 30, dtype=torch.float64), weight, 2000)
    assert np.abs(made.numpy() - want).max() < 2e-3


def test_dropped_pixels_are_filled_from_around_them():
    x = torch.full((3, 16, 16), 0.4)
    x[:, 8, 8] = 1.0
    kept = torch.ones(1, 16, 16)
    kept[:, 8, 8] = 0
    assert (minimised(x, kept, 1e-3, 3000) - 0.4).abs().max() < 1e-2
    z, p = (
        torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for n in ((3, 5, 7), (2, 3, 5, 7))
    )
    assert float((gradient(z) * p).sum() + (z * divergence(p)).sum()) == pytest.approx(0, abs=1e-9)


# -- closed forms ------------------------------------------------------------------------------------------------------


def test_medians_forget_single_pixels_and_keep_edges():
    x = torch.zeros(3, 12, 12)
    x[:, :, 6:] = 1
    spotted = x.clone()
    spotted[:, 3, 2] = 1
    assert torch.equal(of(MedianBlur(window=3), spotted), x)


def test_quantisation_rounds_to_its_values():
    x = torch.linspace(0, 1, 256).expand(3, 4, 256)
    made = of(Quantize(bits=2), x)
    assert made.unique().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert (made - x).abs().max() <= 1 / 6 + 1e-6
    few = of(Quantize(colours=5), photo())
    assert len(few.flatten(1).T.unique(dim=0)) <= 5


def test_a_tone_curve_goes_through_its_points_and_a_straight_one_changes_nothing():
    x = (torch.tensor([0.0, 64, 192, 255]) / 255).expand(3, 2, 4)
    made = of(ToneCurve(inputs=[0, 64, 192, 255], outputs=[0, 48, 208, 255]), x)
    torch.testing.assert_close(made * 255, torch.tensor([0.0, 48, 208, 255]).expand(3, 2, 4))
    torch.testing.assert_close(of(ToneCurve(inputs=[0, 255], outputs=[0, 255]), photo()), photo())


def test_grey_is_pillow_s_luma():
    x = photo()
    want = torch.from_numpy(np.array(images.to_pil(x).convert("L"))).float()
    made = of(Grayscale(), x)
    assert (made * 255 - want).abs().max() <= 1
    assert bool((made == made[:1]).all())


def test_a_crop_is_the_centre():
    x = torch.zeros(3, 40, 60)
    x[:, 10:30, 15:45] = 1
    torch.testing.assert_close(of(CropResize(keep=0.5), x), torch.ones(3, 40, 60))


def test_distortions_are_those_that_they_say():
    x = photo(60, 60)
    turned = of(RotateCropErase(degrees=90, keep=1, erase=0), x)
    torch.testing.assert_close(turned, x.rot90(1, (1, 2)), atol=1e-4, rtol=0)
    erased = of(RotateCropErase(degrees=0, keep=1, erase=0.25), x)
    assert ((erased == 0.5).all(0).float().mean() - 0.25).abs() < 0.01
    wide = photo(40, 80)  # a rotation of pixels, not of sides: what is round stays so
    down, across = torch.meshgrid(torch.arange(40) - 19.5, torch.arange(80) - 39.5, indexing="ij")
    bump = torch.exp(-(down.square() + across.square()) / 72).expand(3, -1, -1)
    far = (of(RotateCropErase(degrees=37, keep=1, erase=0), bump) - bump).abs()
    assert far[:, 10:-10, 20:-20].max() < 0.01
    assert wide.shape == of(RotateCropErase(degrees=37, keep=0.8, erase=0.1), wide).shape


@pytest.mark.parametrize("option", ["screen_camera", "rotate_crop_erase", "tvm"])
def test_what_is_drawn_belongs_to_the_picture_and_the_seed(node, option):
    attack, x = instantiate(node("attack", option), _convert_="all"), photo()
    one, two = attack.purify([x, x], ["a", "b"], ["", ""], None, Run())
    assert not torch.equal(one, two)
    assert torch.equal(two, of(attack, x, "b"))
    assert not torch.equal(two, of(attack, x, "b", seed=1))


def test_tvm_drops_the_values_of_each_channel_by_themselves(monkeypatch):
    seen = []
    monkeypatch.setattr("udpbench.attack.tvm.minimised", lambda x, kept, *settings: seen.append(kept) or x)
    of(Tvm(weight=1, dropout=0.25, iterations=1), photo())
    (kept,) = seen
    assert 0.2 < 1 - kept.mean() < 0.3
    assert not torch.equal(kept[0], kept[1])


WRONG = {
    "tvm: dropout must be >= 0 and < 1": lambda: Tvm(weight=1, dropout=1, iterations=1),
    "adverse_cleaner: diameter must be odd": lambda: AdverseCleaner(
        bilateral_passes=1, diameter=4, sigma_colour=1, sigma_space=1, guided_passes=1, radius=1, eps=1
    ),
    "median_blur: window must be >= 3 and <= 99": lambda: MedianBlur(window=9999),
    "median_blur: window must be odd": lambda: MedianBlur(window=4),
    "quantize: give bits or colours": lambda: Quantize(bits=1, colours=2),
    "tone_curve: there must be as many": lambda: ToneCurve(inputs=[0, 255], outputs=[255, 0]),
    "resize: unknown kernel 'cubic'": lambda: Resize(scale=0.5, kernel="cubic"),
    "crop_resize: keep must be": lambda: CropResize(keep=1),
    "chain: give at least one member": lambda: Chain(members={}),
}


@pytest.mark.parametrize("said", WRONG)
def test_wrong_settings_are_told_in_one_line(said):
    with pytest.raises(ValueError, match=f"^attack {said}") as error:
        WRONG[said]()
    assert "\n" not in str(error.value)


# -- members -----------------------------------------------------------------------------------------------------------


def test_members_of_a_chain_do_not_share_random_numbers():
    x, noise = torch.full((3, 64, 64), 0.5), GaussianNoise(std=10)
    alone, twice = of(Chain(members={"a": noise}), x), of(Chain(members={"a": noise, "b": noise}), x)
    assert torch.equal(alone, images.as_saved(of(noise, x)))
    assert 255 * float((twice - x).std()) == pytest.approx(10 * 2**0.5, rel=0.03)
