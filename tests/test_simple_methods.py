"""Methods without models (noise, codecs, pictures made elsewhere) and what is told about a perturbation."""

import inspect
import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from shared import make_owner

from udpbench.attack.folder import Folder as PurifiedFolder
from udpbench.attack.gaussian_noise import GaussianNoise
from udpbench.attack.jpeg import Jpeg
from udpbench.attack.resize import Resize
from udpbench.core import images, pixels
from udpbench.core.budget import RMS, Linf, measure
from udpbench.core.codecs import recompress
from udpbench.core.visibility import compare, ssim, survival, visibility
from udpbench.interfaces import Owner, Run
from udpbench.protect.folder import Folder as ProtectedFolder
from udpbench.protect.noise import Noise, NoiseRms

CONF = Path(__file__).parent.parent / "conf"


def picture(height: int = 24, width: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth, 8-bit, colourful."""
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return images.as_saved(pixels.resize(coarse, (height, width))[0])


def owner(*pictures: torch.Tensor, like: list[torch.Tensor] | None = None) -> Owner:
    names = [f"{i}.png" for i in range(len(pictures))]
    return Owner(
        images=list(pictures), names=names, prompts=["a photo"] * len(pictures), class_prompt="a photo", like=like
    )


FILES = ["budget/linf", "budget/rms", "data/photos", "data/folder", "attack/jpeg", "attack/folder"]
FILES += ["protect/noise", "protect/noise_rms", "protect/folder"]


@pytest.mark.parametrize("file", FILES)
def test_every_yaml_builds_what_its_class_is_by_default(file):
    conf = OmegaConf.load(CONF / f"{file}.yaml")
    needed = {"path": "somewhere"} if OmegaConf.is_missing(conf, "path") else {}
    needed |= {"eps": 8} if file.startswith("budget") else {}
    built = instantiate(conf, **needed)
    assert vars(built) == vars(type(built)(**needed))
    assert set(conf) - {"_target_"} == set(inspect.signature(type(built)).parameters) - {"self", "args", "kwargs"}


@pytest.mark.parametrize("kind", ["sign", "uniform"])
@pytest.mark.parametrize("budget", [Linf(8), Linf(2.7), RMS(4)])
def test_noise_uses_its_budget_and_keeps_it(kind, budget):
    clean = picture()
    (got,) = Noise(kind=kind).protect(owner(clean), budget, None, Run())
    measured = measure(clean, got)
    assert measured[budget.kind] <= budget.eps * (1 + 1e-9)
    if kind == "sign" and budget.name == "linf_8":
        inside = (clean >= 8 / 255) & (clean <= 247 / 255)
        assert ((got - clean)[inside].abs() * 255 - 8).abs().max() < 1e-3
        assert ((got - clean)[inside] > 0).float().mean().sub(0.5).abs() < 0.05
    if kind == "uniform" and budget.name == "linf_8":
        assert math.isclose(measured["rms"], 8 / math.sqrt(3), rel_tol=0.06)


@pytest.mark.parametrize("method", [Noise(), Noise(kind="uniform"), NoiseRms()])
def test_noise_belongs_to_the_name_and_the_seed(method):
    one, two = picture(seed=1), picture(20, 12, seed=2)
    like = Noise().protect(owner(one, two), Linf(8), None, Run(seed=5))
    a = method.protect(owner(one, two, like=like), Linf(8), None, Run(seed=0))
    swapped = Owner([two, one], ["1.png", "0.png"], ["", ""], like=like[::-1])
    b = method.protect(swapped, Linf(8), None, Run(seed=0))
    assert torch.equal(a[0], b[1])
    assert torch.equal(a[1], b[0])
    other = method.protect(owner(one, two, like=like), Linf(8), None, Run(seed=1))
    assert not torch.equal(a[0], other[0])
    same_picture_other_name = method.protect(owner(one, one, like=[like[0]] * 2), Linf(8), None, Run(seed=0))
    assert not torch.equal(*same_picture_other_name)


@settings(max_examples=30)
@given(st.floats(1, 20), st.sampled_from(["normal", "sign", "low", "uniform"]), st.floats(0, 1), st.floats(0, 1))
def test_noise_rms_has_the_measured_rms_and_no_larger_peak(levels, kind, low, high):
    rng = torch.Generator().manual_seed(3)
    clean = images.as_saved(min(low, high) + abs(high - low) * picture(32, 32))  # also nearly black and white ones
    draw = {
        "normal": torch.randn(clean.shape, generator=rng),
        "sign": torch.randn(clean.shape, generator=rng).sign(),
        "low": pixels.resize(torch.rand(1, 3, 4, 4, generator=rng), 32)[0] * 2 - 1,
        "uniform": torch.rand(clean.shape, generator=rng) * 2 - 1,
    }[kind]
    inward = torch.where(clean < 0.5, draw.abs(), -draw.abs()) if levels > 10 else draw
    like = images.as_saved(clean + inward * levels / 255)
    want = measure(clean, like)
    (got,) = NoiseRms().protect(owner(clean, like=[like]), Linf(1), None, Run())
    measured = measure(clean, got)
    assert math.isclose(measured["rms"], want["rms"], rel_tol=0.02)
    assert measured["rms"] <= want["rms"]
    assert measured["linf"] <= want["linf"]


def test_noise_rms_of_an_unchanged_picture_is_none_and_without_a_protection_an_error():
    clean = picture()
    assert torch.equal(NoiseRms().protect(owner(clean, like=[clean]), Linf(8), None, Run())[0], clean)
    with pytest.raises(ValueError, match="protect noise_rms: it needs the saved pictures"):
        NoiseRms().protect(owner(clean), Linf(8), None, Run())


def test_unknown_noise_is_refused():
    with pytest.raises(ValueError, match="unknown kind 'gauss'; allowed are sign, uniform"):
        Noise(kind="gauss")


@pytest.mark.parametrize("method", [PurifiedFolder, ProtectedFolder])
def test_folders_pair_by_name_and_refuse_what_does_not_fit(tmp_path, method):
    def result(names, *pictures):
        if method is PurifiedFolder:
            return method(path=tmp_path).purify(list(pictures), names, [""] * len(names), None, Run())
        return method(path=tmp_path).protect(Owner(list(pictures), names, [""] * len(names)), Linf(8), None, Run())

    one, two = picture(seed=1), picture(10, 12, seed=2)
    images.write_png(tmp_path / "b.png", one)
    images.to_pil(two).save(tmp_path / "a.bmp")
    images.write_png(tmp_path / "unrelated.png", one)
    got = result(["b.png", "a.png"], torch.zeros_like(one), torch.zeros_like(two))
    assert torch.equal(got[0], one)
    assert torch.equal(got[1], two)
    with pytest.raises(ValueError, match=r"a\.bmp is 10 x 12 .*must be 24 x 32 as a\.png is"):
        result(["a.png"], one)
    with pytest.raises(ValueError, match=r"exactly one picture for c\.png .*it has 0"):
        result(["c.png"], one)
    before = method(path=tmp_path).identity()
    images.write_png(tmp_path / "a.png", two)
    with pytest.raises(ValueError, match=r"exactly one picture for a\.png .*it has 2"):
        result(["a.png"], two)
    assert method(path=tmp_path).identity() != before
    with pytest.raises(ValueError, match="there is no folder"):
        method(path=tmp_path / "none").identity()


@settings(max_examples=25)
@given(st.integers(1, 100), st.sampled_from(["jpeg", "webp"]), st.integers(1, 40), st.integers(1, 40))
def test_codecs_keep_size_and_range_at_any_quality(quality, format, height, width):
    x = picture(height, width)
    (got,) = Jpeg(quality=quality, format=format).purify([x], ["a.png"], [""], None, Run())
    assert got.shape == x.shape
    assert torch.equal(got, images.as_saved(got))


def test_worse_quality_and_chroma_are_further_away():
    x = images.as_saved((picture() + 0.1 * torch.randn(24, 32, generator=torch.Generator().manual_seed(0))).clamp(0, 1))
    error = [measure(x, recompress(x, "jpeg", q))["rms"] for q in (10, 50, 95)]
    assert error[0] > error[1] > error[2] > 0
    chroma = images.as_saved(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)))
    kept, halved = (
        measure(chroma, Jpeg(quality=95, subsampling=s).purify([chroma], ["a"], [""], None, Run())[0])["rms"]
        for s in ("4:4:4", "4:2:0")
    )
    assert kept < halved / 2
    assert measure(x, recompress(x, "webp", 10))["rms"] > measure(x, recompress(x, "webp", 95))["rms"]


def test_jpeg_is_what_a_website_would_serve(tmp_path):
    x = picture()
    images.to_pil(x).save(tmp_path / "a.jpg", quality=75, subsampling="4:2:0")
    assert torch.equal(Jpeg().purify([x], ["a.png"], [""], None, Run())[0], images.read(tmp_path / "a.jpg"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"quality": 0},
        {"quality": 101},
        {"quality": 7.5},
        {"quality": True},
        {"format": "png"},
        {"subsampling": "4:1:1"},
        {"format": "webp", "subsampling": "4:4:4"},
    ],
)
def test_codecs_refuse_wrong_settings(wrong):
    with pytest.raises(ValueError, match=r"attack jpeg: .*given|attack jpeg: unknown"):
        Jpeg(**wrong)


def test_visibility_closed_forms():
    clean = picture().clamp(0.2, 0.8)
    clean = images.as_saved(clean)
    shown = visibility(clean, clean + 5 / 255)
    assert (shown["linf"], shown["rms"]) == (5, 5)
    assert math.isclose(shown["psnr"], 20 * math.log10(255 / 5))
    assert visibility(clean, clean) == {"linf": 0, "rms": 0, "psnr": None, "ssim": 1}
    assert visibility(clean[:, :8], clean[:, :8])["ssim"] is None
    flat = torch.full((3, 16, 16), 0.4)  # on flat pictures only the luminance term of SSIM is left
    assert math.isclose(ssim(flat, flat + 0.2), (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4), rel_tol=1e-5)


def test_ssim_matches_the_reference_library():
    from skimage.metrics import structural_similarity

    a = picture(40, 50)
    b = (a + 0.1 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    _, field = structural_similarity(
        a.double().numpy(), b.double().numpy(), data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    assert math.isclose(ssim(a, b), field[:, 5:-5, 5:-5].mean(), rel_tol=1e-6)


@given(st.floats(0.01, 0.99), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=25)
def test_resize_keeps_size_range_and_flat_pictures(share, height, width):
    x = torch.full((3, height, width), 0.25)
    (got,) = Resize(scale=share).purify([x], ["a.png"], [""], None, Run())
    torch.testing.assert_close(got, x, atol=1e-5, rtol=0)


def test_resize_takes_what_a_smaller_picture_cannot_hold():
    """A checkerboard of single pixels is gone, a slope stays."""
    checks = (torch.arange(16)[:, None] + torch.arange(16)[None]).remainder(2).float().expand(3, -1, -1)
    slope = torch.linspace(0.2, 0.8, 16).expand(3, 16, -1)
    got = Resize(scale=0.5).purify([checks, slope], ["a", "b"], ["", ""], None, Run())
    assert float((got[0] - 0.5).abs()[:, 2:-2, 2:-2].max()) < 0.05
    assert float((got[1] - slope).abs().mean()) < 0.01


def test_gaussian_noise_has_the_levels_it_says_and_belongs_to_the_picture():
    x = torch.full((3, 64, 64), 0.5)
    together = GaussianNoise(std=10).purify([x, x], ["a", "b"], ["", ""], None, Run(3))
    alone = GaussianNoise(std=10).purify([x], ["b"], [""], None, Run(3))
    assert measure(x, together[0])["rms"] == pytest.approx(10, rel=0.03)
    assert torch.equal(alone[0], together[1])
    assert not torch.equal(*together)


@pytest.mark.parametrize("wrong", [lambda: Resize(scale=0), lambda: Resize(scale=1), lambda: GaussianNoise(std=0), lambda: GaussianNoise(std=256)])  # fmt: skip
def test_wrong_strengths_of_the_baselines_are_told(wrong):
    with pytest.raises(ValueError, match=r"^attack (resize|gaussian_noise): .*given"):
        wrong()


CODECS = ["jpeg", "webp"]
checker = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1).expand(3, -1, -1) / 255


@pytest.mark.parametrize("codec", CODECS)
def test_a_shift_of_brightness_survives_and_a_fine_checker_dies(codec):
    clean = torch.full((3, 32, 32), 100 / 255)
    assert 0.7 < survival(clean, clean + 8 / 255, codec, 50) < 1.35
    assert compare(clean, clean + 8 / 255, codec, 50)[0] > 0.99
    assert survival(clean, clean + checker, codec, 10) < 0.02
    assert survival(clean, clean + 20 * checker, codec, 95) > 0.8


def test_a_perturbation_that_the_codec_enlarges_survives_by_more_than_all_of_it():
    clean = torch.full((3, 64, 64), 100 / 255)  # 100 stays, 108 becomes 110: so coarse is the mean of a block
    assert survival(clean, clean + 8 / 255, "jpeg", 10) == pytest.approx((10 / 8) ** 2)


@pytest.mark.parametrize("codec", CODECS)
def test_survival_of_nothing_is_not_a_number_and_that_of_everything_is_one(codec):
    clean = picture()
    assert survival(clean, clean, codec, 75) is None
    assert compare(clean, clean, codec, 75) == (None, None)
    assert compare(clean * 0 + 0.4, clean * 0 + 0.4 + checker[:, :24], codec, 1) == (0, 0)


def test_survival_is_the_energy_along_the_perturbation(monkeypatch):
    clean, protected = torch.zeros(3, 2, 2), torch.zeros(3, 2, 2)
    protected[0, 0, 0], protected[0, 0, 1] = 30 / 255, 40 / 255
    turned = torch.zeros(3, 2, 2)
    turned[0, 0, 0], turned[1, 0, 0] = (
        30 / 255,
        10 / 255,
    )  # d = (30, 40, 0), d' = (30, 0, 10): <d, d'> = 900, |d|^2 = 2500
    monkeypatch.setattr("udpbench.core.visibility.recompress", lambda x, codec, quality: turned if x.max() > 0 else x)
    assert math.isclose(survival(clean, protected, "jpeg", 50), (900 / 2500) ** 2, rel_tol=1e-6)
    cosine, energy = compare(clean, protected, "jpeg", 50)
    assert math.isclose(cosine, 900 / (50 * math.sqrt(1000)), rel_tol=1e-6)
    assert math.isclose(energy, 1000 / 2500, rel_tol=1e-6)
    assert math.isclose(survival(protected, clean, "jpeg", 50), (900 / 2500) ** 2, rel_tol=1e-6)
    monkeypatch.setattr("udpbench.core.visibility.recompress", lambda x, codec, quality: -x)
    assert math.isclose(survival(clean, protected, "jpeg", 50), -1, rel_tol=1e-6)


def test_noise_on_a_grey_picture_is_as_strong_as_on_another():
    grey = torch.full((3, 16, 16), 100 / 255)
    (made,) = Noise().protect(make_owner([grey]), Linf(8), None, Run())
    assert measure(grey, made) == {"linf": 8, "rms": 8}
