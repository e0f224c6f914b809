"""Scores against closed forms and reference libraries; their names, directions, minima and errors."""

import contextlib
import hashlib
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from udpbench.attack.blur import Blur
from udpbench.benchmark.stages import finite
from udpbench.core import images, neighbours, pixels, visibility
from udpbench.core.images import as_saved, write_png
from udpbench.core.neighbours import distances
from udpbench.interfaces import PairMetric, Run
from udpbench.metrics.density_coverage import DensityCoverage, density_coverage
from udpbench.metrics.dist_lite1 import PerceptualDistance
from udpbench.metrics.edits import Edits
from udpbench.metrics.frechet_distance import FrechetDistance, frechet_distance
from udpbench.metrics.kernel_distance import KernelDistance, kernel_distance
from udpbench.metrics.lpips import Lpips
from udpbench.metrics.perturbation_size import PerturbationSize
from udpbench.metrics.precision_recall import PrecisionRecall, precision_recall
from udpbench.metrics.psnr import Psnr
from udpbench.metrics.ssim import Ssim
from udpbench.metrics.ssim_uniform import SsimUniform
from udpbench.metrics.train_similarity import TrainSimilarity
from udpbench.metrics.vif import Vif
from udpbench.models.features import EfficientNetLite0, Extractor, Inception, InceptionClean, Vgg16
from udpbench.models.perceptual import TRUNKS, load_distance

CONF = Path(__file__).parent.parent / "conf"
quick = settings(max_examples=25)


@dataclass(frozen=True)
class Pixels(Extractor):
    """The pixels themselves."""

    name: ClassVar[str] = "pixels"

    def check(self) -> None: ...

    def network(self, device):
        return lambda x: x.flatten(1)


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def gaussian(n: int, mean: Tensor, root: Tensor, seed: int = 0) -> Tensor:
    """n points whose sample mean is exactly ``mean`` and sample covariance exactly ``root.T @ root``."""
    x = normal(n, len(root), seed)
    white = torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(n - 1)
    return white @ root + mean


def write(folder: Path, pictures: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        images.write_png(folder / name, picture)
    return folder


def many(folder: Path, n: int, seed: int = 0, side: int = 4) -> Path:
    return write(folder, {f"{i:03}.png": noise(3, side, side, seed=1000 * seed + i) for i in range(n)})


# -- Frechet distance --------------------------------------------------------------------------------------------------


@quick
@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.01, 10), st.floats(-5, 5)), min_size=1, max_size=6))
def test_frechet_distance_of_gaussians_with_common_axes(rows):
    a, b, shift = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    got = gaussian(40, shift, a.diag(), seed=1)
    ref = gaussian(30, torch.zeros_like(shift), b.diag(), seed=2)
    expected = float(((a - b) ** 2 + shift**2).sum())
    assert frechet_distance(got, ref) == pytest.approx(expected, rel=1e-8, abs=1e-8)


def test_frechet_distance_of_any_two_gaussians_by_the_matrix_square_root():
    root1, root2, mean = normal(5, 5, 1), normal(5, 5, 2), normal(1, 5, 3)[0]
    s1, s2 = root1.T @ root1, root2.T @ root2
    values, vectors = torch.linalg.eigh(s1)
    half = vectors @ values.sqrt().diag() @ vectors.T
    cross = torch.linalg.eigvalsh(half @ s2 @ half).clamp(min=0).sqrt().sum()
    expected = float(mean.square().sum() + s1.trace() + s2.trace() - 2 * cross)
    got, ref = gaussian(50, mean, root1), gaussian(60, torch.zeros(5, dtype=torch.float64), root2, seed=9)
    assert frechet_distance(got, ref) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(40, 8), (8, 40)])
def test_frechet_distance_to_itself_is_zero_and_to_a_shifted_copy_the_shift(n, d):
    x = normal(n, d)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(x, x[torch.randperm(n, generator=torch.Generator().manual_seed(0))]) < 1e-10
    assert frechet_distance(x + 3, x) == pytest.approx(9 * d, rel=1e-10)


def test_frechet_distance_of_few_points_in_separate_subspaces():
    """Rank 4 each in 100 dimensions, without common directions: the cross term is nothing."""
    got, ref = torch.zeros(5, 100, dtype=torch.float64), torch.zeros(5, 100, dtype=torch.float64)
    got[:, :50], ref[:, 50:] = normal(5, 50, 1), normal(5, 50, 2)
    traces = got.var(0).sum() + ref.var(0).sum()
    expected = float((got.mean(0) - ref.mean(0)).square().sum() + traces)
    assert frechet_distance(got, ref) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "m", "d"), [(60, 50, 8), (12, 50, 30), (12, 9, 30)])
def test_frechet_distance_is_that_of_torchmetrics(n, m, d):
    from torchmetrics.image.fid import FrechetInceptionDistance

    got, ref = normal(n, d, 1) * 2 + 1, normal(m, d, 2) @ normal(d, d, 3)
    metric = FrechetInceptionDistance(feature=Numbers(d)).set_dtype(torch.float64)
    metric.update(ref, real=True)
    metric.update(got, real=False)
    # Where the covariances are singular, its square roots of rounding errors add up.
    assert frechet_distance(got, ref) == pytest.approx(float(metric.compute()), rel=1e-9 if min(n, m) > d else 1e-4)


def test_frechet_distance_is_that_of_clean_fid():
    from cleanfid.fid import fid_from_feats

    got, ref = normal(60, 8, 1) * 2 + 1, normal(50, 8, 2)
    try:
        expected = fid_from_feats(got.numpy(), ref.numpy())
    except TypeError:
        pytest.skip("clean-fid's own distance needs sqrtm(disp=), which this SciPy has no longer")
    assert frechet_distance(got, ref) == pytest.approx(float(expected), rel=1e-9)


class Numbers(nn.Module):
    """Hands (N, d) through: lets the image metrics of torchmetrics work on features."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.num_features = d

    def forward(self, x: Tensor) -> Tensor:
        return x.double()


# -- kernel distance ---------------------------------------------------------------------------------------------------


def kernel(a: Tensor, b: Tensor) -> float:
    return (float(a @ b) / len(a) + 1) ** 3


def test_kernel_distance_by_its_definition():
    got, ref = normal(5, 3, 1), normal(7, 3, 2) + 1
    within_got = sum(kernel(a, b) for i, a in enumerate(got) for j, b in enumerate(got) if i != j) / (5 * 4)
    within_ref = sum(kernel(a, b) for i, a in enumerate(ref) for j, b in enumerate(ref) if i != j) / (7 * 6)
    between = sum(kernel(a, b) for a in got for b in ref) / (5 * 7)
    assert kernel_distance(got, ref) == pytest.approx(1000 * (within_got + within_ref - 2 * between), rel=1e-10)


def test_kernel_distance_of_equal_distributions_is_zero_on_average():
    values = torch.tensor([kernel_distance(normal(20, 4, 2 * i), normal(20, 4, 2 * i + 1)) for i in range(300)])
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean())) < 3 * error
    assert float(values.min()) < 0
    # A biased estimate keeps the diagonal and would be this much larger: the test can tell.
    assert 20 * error < 2 * 1000 * (1 + 1) ** 3 / 20


@quick
@given(st.permutations(range(9)), st.permutations(range(6)))
def test_no_score_depends_on_the_order_of_pictures(p, q):
    got, ref = normal(9, 3, 1), normal(6, 3, 2) + 0.5
    for score in (frechet_distance, kernel_distance, lambda a, b: sum(density_coverage(a, b, 2))):
        assert score(got[list(p)], ref[list(q)]) == pytest.approx(score(got, ref), rel=1e-9, abs=1e-9)


def test_kernel_distance_is_a_thousand_times_that_of_torchmetrics():
    from torchmetrics.image.kid import KernelInceptionDistance

    got, ref = normal(40, 6, 1), normal(40, 6, 2) * 1.5 + 0.5
    metric = KernelInceptionDistance(feature=Numbers(6), subsets=1, subset_size=40)  # one subset of all
    metric.update(ref, real=True)
    metric.update(got, real=False)
    assert kernel_distance(got, ref) == pytest.approx(1000 * float(metric.compute()[0]), rel=1e-5)


def test_sets_larger_than_one_chunk(monkeypatch):
    got, ref = normal(23, 4, 1), normal(23, 4, 2) + 0.3
    similarity = TrainSimilarity(Pixels()).compute
    scores = (frechet_distance, kernel_distance, precision_recall, density_coverage, similarity)
    whole = [score(got, ref) for score in scores]
    monkeypatch.setattr(neighbours, "PART", 7)
    monkeypatch.setattr(neighbours, "ENTRIES", 5 * len(ref) + 1)
    assert [len(rows) for rows in neighbours.chunks(got, ref)] == [5, 5, 5, 5, 3]
    assert [score(got, ref) for score in scores] == [pytest.approx(value, rel=1e-12) for value in whole]


def test_kernel_distance_gives_memory_back_before_rows_of_another_number(monkeypatch):
    """Of 50,000 pictures blocks of every size took 10 GB otherwise."""
    given, x = [], normal(23, 4, 1)
    monkeypatch.setattr(neighbours, "CHUNK", 5)
    monkeypatch.setattr("udpbench.metrics.kernel_distance.give_freed_memory_back", lambda: given.append(1))
    kernel_distance(x, x[:12] + 0.3)
    assert len(given) == 5 + 3


# -- neighbourhood scores ----------------------------------------------------------------------------------------------


def test_mode_collapse_is_precise_and_recalls_nothing():
    ref = normal(100, 4, 1)
    got = ref[:1] + 0.01 * normal(100, 4, 2)
    precision, recall = precision_recall(got, ref)
    assert precision > 0.95
    assert recall < 0.05
    assert precision_recall(ref, got) == (recall, precision)
    density, coverage = density_coverage(got, ref)
    assert density > 0.5
    assert coverage < 0.2


def test_far_away_is_neither_precise_nor_recalled():
    ref = normal(50, 4, 1)
    assert precision_recall(ref + 100, ref) == (0, 0)
    assert density_coverage(ref + 100, ref) == (0, 0)


def test_the_edge_of_a_ball_is_inside_for_precision_and_outside_for_density():
    ref = torch.arange(6.0)[:, None]  # the third neighbour of 0 is at 3, the fifth at 5
    got = torch.full((6, 1), -3.0)
    assert precision_recall(got, ref) == (1, 0)
    assert precision_recall(got - 1e-6, ref) == (0, 0)
    got = torch.full((6, 1), -5.0)
    assert density_coverage(got, ref) == (0, 0)
    assert density_coverage(got + 1e-6, ref) == (pytest.approx(1 / 5), pytest.approx(1 / 6))


def test_equal_pictures_are_at_distance_zero():
    x = normal(30, 64) + 1000  # far from the origin, where |x|^2 - 2 x.y + |y|^2 would lose every digit
    assert bool((distances(x, x).diagonal() == 0).all())
    assert precision_recall(x[:1].repeat(8, 1), x[:1].repeat(8, 1)) == (1, 1)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_precision_and_recall_are_those_of_torch_fidelity(shift):
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    got, ref = normal(80, 5, 1) + shift, normal(80, 5, 2) * 1.2
    assert precision_recall(got, ref) == pytest.approx(calculate_precision_recall_full(got, ref, 3))


@pytest.mark.parametrize(("n", "m"), [(80, 80), (50, 80)])
def test_density_and_coverage_are_those_of_prdc(n, m):
    prdc = pytest.importorskip("prdc")
    got, ref = normal(n, 5, 1) + 0.5, normal(m, 5, 2)
    with contextlib.redirect_stdout(io.StringIO()):
        expected = prdc.compute_prdc(ref.numpy(), got.numpy(), nearest_k=5)
    assert density_coverage(got, ref) == pytest.approx((expected["density"], expected["coverage"]))


def test_density_and_coverage_of_equal_distributions_are_what_the_paper_proves():
    n = 400
    scores = [density_coverage(normal(n, 3, 2 * i), normal(n, 3, 2 * i + 1)) for i in range(5)]
    density, coverage = (sum(column) / len(scores) for column in zip(*scores, strict=True))
    expected = 1 - math.prod((n - i) / (2 * n - i) for i in range(1, 6))
    assert density == pytest.approx(1, abs=0.08)
    assert coverage == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("score", [frechet_distance, kernel_distance, precision_recall, density_coverage])
def test_features_that_do_not_fit_are_refused(score):
    with pytest.raises(ValueError, match="one d, given"):
        score(normal(9, 3), normal(9, 4))
    with pytest.raises(ValueError, match=r"at least .* given 1 and 9"):
        score(normal(1, 3), normal(9, 3))


def test_unequal_sets_have_no_precision():
    with pytest.raises(ValueError, match=r"equal size .* given 9 and 8"):
        precision_recall(normal(9, 3), normal(8, 3))


# -- metrics of folders ------------------------------------------------------------------------------------------------

SETS = [FrechetDistance, KernelDistance, PrecisionRecall, DensityCoverage]


@pytest.mark.parametrize("metric", SETS)
@pytest.mark.parametrize(("n", "m"), [(9, 12), (12, 9)])
def test_too_few_pictures_name_the_metric_the_number_and_the_minimum(tmp_path, metric, n, m):
    got, ref = many(tmp_path / "got", n), many(tmp_path / "ref", m, seed=1)
    wanted = metric(Pixels(), minimum=10)
    with pytest.raises(ValueError, match=f"{n} generated and {m} reference .* at least 10") as error:
        wanted(got, ref, Run())
    assert all(name in str(error.value) for name in wanted.scores)
    assert "\n" not in str(error.value)


def test_minima_are_the_agreed_ones_and_cannot_fall_below_the_formula():
    assert [metric(Pixels()).minimum for metric in SETS] == [1000, 50, 200, 200]
    for metric in SETS:
        with pytest.raises(ValueError, match="given 1"):
            metric(Pixels(), minimum=1)


def test_folder_scores_are_generated_first_and_cut_the_larger_set_by_name(tmp_path):
    got = write(
        tmp_path / "got", {f"{i}.png": torch.full((3, 4, 4), 0.5) + 0.02 * noise(3, 4, 4, seed=i) for i in range(8)}
    )
    ref = many(tmp_path / "ref", 12, seed=1)
    ours, theirs = (torch.stack(list(images.read_folder(f).values())).flatten(1) for f in (got, ref))
    found = PrecisionRecall(Pixels(), minimum=4)(got, ref, Run(batch=3))
    assert found == dict(zip(("precision_pixels", "recall_pixels"), precision_recall(ours, theirs[:8]), strict=True))
    assert found["precision_pixels"] > found["recall_pixels"]
    found = DensityCoverage(Pixels(), minimum=6)(got, ref, Run())
    assert found == dict(zip(("density_pixels", "coverage_pixels"), density_coverage(ours, theirs[:8]), strict=True))
    assert KernelDistance(Pixels(), 2)(got, ref, Run()) == {"kd_pixels": pytest.approx(kernel_distance(ours, theirs))}
    assert FrechetDistance(Pixels(), 2)(got, ref, Run()) == {"fd_pixels": pytest.approx(frechet_distance(ours, theirs))}


@pytest.mark.parametrize("shape", [(16, 32), (24, 18), (12, 12), (7, 5)])
def test_a_victim_that_draws_the_references_again_is_perfect(tmp_path, shape):
    """Of references that are not square, or of another size, the squares that victims are trained on."""
    ref = write(tmp_path / "ref", {f"{i:02}.png": noise(3, *shape, seed=i) for i in range(10)})
    squares = {name: pixels.fit_square(x, 12) for name, x in images.read_folder(ref).items()}
    got = write(tmp_path / "got", squares)
    assert PrecisionRecall(Pixels(), 4)(got, ref, Run()) == {"precision_pixels": 1, "recall_pixels": 1}
    assert DensityCoverage(Pixels(), 6)(got, ref, Run())["coverage_pixels"] == 1
    assert FrechetDistance(Pixels(), 2)(got, ref, Run())["fd_pixels"] < 1e-3
    assert TrainSimilarity(Pixels())(got, ref, Run())["nearest_train_pixels"] == pytest.approx(1, abs=1e-4)


def test_equal_points_are_at_distance_zero_and_others_where_they_are():
    x = 1000 * noise(50, 40).double()
    found = distances(torch.cat([x, x + 1e-3]), x)
    assert (found[:50].diagonal() == 0).all()
    torch.testing.assert_close(
        found[50:].diagonal(), torch.full((50,), 1e-3 * 40**0.5, dtype=torch.float64), rtol=0, atol=1e-4
    )
    want = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(found[:50], want, rtol=1e-9, atol=0)


def test_precision_and_density_do_not_depend_on_the_chunk(monkeypatch):
    got, ref = normal(50, 6), normal(50, 6, 1)
    whole = precision_recall(got, ref), density_coverage(got, ref)
    monkeypatch.setattr(neighbours, "CHUNK", 7)
    assert (precision_recall(got, ref), density_coverage(got, ref)) == whole


def test_scores_carry_their_network_in_the_name():
    expected = {
        EfficientNetLite0: ["fd_efflite0_224", "kd_efflite0_224", "precision_efflite0_224", "recall_efflite0_224"],
        Vgg16: ["fd_vgg16", "kd_vgg16", "precision_vgg16", "recall_vgg16"],
        Inception: ["fid", "kid_x1000", "precision_inception", "recall_inception"],
        InceptionClean: ["fid_clean", "kid_clean_x1000", "precision_inception_clean", "recall_inception_clean"],
    }
    for extractor, names in expected.items():
        metrics = [metric(extractor()) for metric in SETS[:3]]
        assert [name for metric in metrics for name in metric.scores] == names
        assert {w for metric in metrics for w in metric.scores.values()} == {"up", "down"}


def test_efflite0_tells_the_distorted_set_from_the_other_half(tmp_path):
    from skimage import data

    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1).float() / 255
    tiles = [t for row in photo.split(64, 1) for t in row.split(64, 2)]
    fine = write(tmp_path / "fine", {f"{i:02}.png": t for i, t in enumerate(tiles[::2])})
    other = write(tmp_path / "other", {f"{i:02}.png": t for i, t in enumerate(tiles[1::2])})
    spoilt = {f"{i:02}.png": (t + 0.5 * (noise(3, 64, 64, seed=i) - 0.5)).clamp(0, 1) for i, t in enumerate(tiles[::2])}
    metric = KernelDistance(EfficientNetLite0(size=64, blur_sigma=1.0), minimum=20)
    clean = metric(fine, other, Run())["kd_efflite0_64"]
    assert metric(write(tmp_path / "spoilt", spoilt), other, Run())["kd_efflite0_64"] > 2 * max(clean, 1)


def test_similarity_to_the_training_pictures(tmp_path):
    """Pictures of one bright pixel each are orthogonal: cosines are 0 or 1."""
    basis = [torch.zeros(3, 2, 2) for _ in range(4)]
    for i, picture in enumerate(basis):
        picture.view(-1)[i] = 1
    train = write(tmp_path / "train", {f"{i}.png": basis[i] for i in range(3)})
    got = write(tmp_path / "got", {"0.png": basis[0], "1.png": 0.4 * basis[0], "2.png": basis[3], "3.png": basis[1]})
    metric = TrainSimilarity(Pixels())
    assert metric(got, train, Run()) == {
        "sim_train_pixels": pytest.approx(0.25),
        "nearest_train_pixels": pytest.approx(0.75),
    }
    assert metric(train, train, Run())["nearest_train_pixels"] == pytest.approx(1)
    assert metric.against == "train_clean"
    assert set(metric.scores.values()) == {"down"}


# -- pairs -------------------------------------------------------------------------------------------------------------


def test_constant_change_of_eight_levels(tmp_path):
    clean = write(tmp_path / "clean", {f"{i}.png": noise(3, 16, 16 + i, seed=i) * 0.5 for i in range(3)})
    protected = write(tmp_path / "protected", {k: v + 8 / 255 for k, v in images.read_folder(clean).items()})
    run = Run(batch=2)
    assert Psnr()(protected, clean, run) == {"psnr": pytest.approx(20 * math.log10(255 / 8), rel=1e-5)}
    assert PerturbationSize()(protected, clean, run) == {"linf": 8, "rms": 8, "rms_max": 8}
    assert list(Psnr().per_image(protected, clean, run)) == ["0.png", "1.png", "2.png"]


def test_levels_are_the_worst_linf_and_the_mean_rms(tmp_path):
    clean = write(tmp_path / "clean", {f"{i}.png": torch.full((3, 4, 4), 0.4) for i in range(2)})
    protected = write(
        tmp_path / "protected", {f"{i}.png": torch.full((3, 4, 4), 0.4 + (i + 1) / 255) for i in range(2)}
    )
    assert PerturbationSize()(protected, clean, Run()) == {"linf": 2, "rms": 1.5, "rms_max": 2}
    assert PerturbationSize().per_image(protected, clean, Run())["0.png"] == {"linf": 1, "rms": 1}


def test_ssim_is_the_same_strip_by_strip(monkeypatch):
    from skimage.metrics import structural_similarity

    a = noise(3, 37, 23)
    b = (a + 0.1 * (noise(3, 37, 23, seed=1) - 0.5)).clamp(0, 1)
    window = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "channel_axis": 0,
        "data_range": 1,
    }
    want = structural_similarity(a.double().numpy(), b.double().numpy(), **window)
    for strip in (1, 100, 10**6):
        monkeypatch.setattr(visibility, "STRIP", strip)
        assert visibility.ssim(a, b) == pytest.approx(want, abs=1e-12)
    assert visibility.ssim(a[:, :10], b[:, :10]) is None


@pytest.mark.parametrize(("metric", "least"), [(Ssim(), 11), (Vif(), 41)])
def test_pictures_too_small_for_a_metric_are_named(tmp_path, metric, least):
    folder = write(tmp_path / "a", {"0.png": noise(3, least, least), "1.png": noise(3, least, least - 1)})
    with pytest.raises(
        ValueError, match=rf"needs pictures of at least {least} x {least} px; 1\.png is {least} x {least - 1}"
    ):
        metric(folder, folder, Run())


def test_psnr_and_ssim_are_those_of_scikit_image(tmp_path):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    clean = write(tmp_path / "clean", {"0.png": noise(3, 40, 52), "1.png": noise(3, 40, 52, seed=1)})
    protected = write(tmp_path / "protected", {k: 0.8 * v + 0.05 for k, v in images.read_folder(clean).items()})
    a, b = ([x.permute(1, 2, 0).double().numpy() for x in images.read_folder(f).values()] for f in (clean, protected))
    psnr = np.mean([peak_signal_noise_ratio(x, y, data_range=1) for x, y in zip(a, b, strict=True)])
    window = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "channel_axis": 2,
        "data_range": 1,
    }
    ssim = np.mean([structural_similarity(x, y, **window) for x, y in zip(a, b, strict=True)])
    assert Psnr()(protected, clean, Run())["psnr"] == pytest.approx(psnr, rel=1e-5)
    for batch in (1, 2):
        assert Ssim()(protected, clean, Run(batch=batch))["ssim"] == pytest.approx(ssim, abs=1e-9)


def test_ssim_uniform_is_sewar_s(tmp_path):
    from sewar.full_ref import ssim

    ramp = torch.linspace(0, 1, 52).expand(3, 40, 52)
    clean = write(tmp_path / "clean", {"0.png": ramp, "1.png": 0.5 * ramp})
    changed = {k: v + 0.2 * (noise(3, 40, 52) - 0.5) for k, v in images.read_folder(clean).items()}
    protected = write(tmp_path / "protected", changed)
    pairs = zip(*(images.read_folder(f).values() for f in (clean, protected)), strict=True)
    theirs = [ssim(*(images.to_uint8(x).permute(1, 2, 0).numpy() for x in pair))[0] for pair in pairs]
    ours = SsimUniform()(protected, clean, Run())
    assert ours == {"ssim_uniform": pytest.approx(np.mean(theirs), abs=1e-6)}  # pictures are float32
    assert abs(ours["ssim_uniform"] - Ssim()(protected, clean, Run())["ssim"]) > 0.01
    assert Edits(of=SsimUniform()).scores == {"edit_ssim_uniform": "down"}


def test_unchanged_pictures(tmp_path):
    clean = many(tmp_path / "clean", 2, side=32)
    assert finite(Psnr()(clean, clean, Run())) == {}  # infinite, and so no number
    assert Ssim()(clean, clean, Run()) == {"ssim": pytest.approx(1, abs=1e-6)}
    assert PerceptualDistance()(clean, clean, Run()) == {"dist_lite1": 0}
    assert PerturbationSize()(clean, clean, Run()) == {"linf": 0, "rms": 0, "rms_max": 0}


def test_pairs_that_do_not_match_are_errors(tmp_path):
    clean = many(tmp_path / "clean", 3)
    with pytest.raises(ValueError, match=r"same names; 2 are in one only, e\.g\. 001\.png"):
        Psnr()(many(tmp_path / "fewer", 1), clean, Run())
    with pytest.raises(ValueError, match="one size"):
        Psnr()(many(tmp_path / "large", 3, side=5), clean, Run())
    sizes = write(tmp_path / "sizes", {f"00{i}.png": noise(3, 4, 4 + (i == 1)) for i in range(3)})
    for batch in (1, 32):
        with pytest.raises(ValueError, match="one size"):
            Psnr()(sizes, clean, Run(batch=batch))


def test_the_owner_wants_an_invisible_change():
    metrics: list[PairMetric] = [
        Psnr(),
        Ssim(),
        SsimUniform(),
        PerceptualDistance(),
        PerturbationSize(),
        Lpips(net="vgg"),
    ]
    assert {k: v for m in metrics for k, v in m.scores.items()} == {
        "psnr": "up",
        "ssim": "up",
        "ssim_uniform": "up",
        "dist_lite1": "down",
        "linf": "down",
        "rms": "down",
        "rms_max": "down",
        "lpips_vgg": "down",
    }
    assert {m.against for m in metrics} == {"input"}


# -- LPIPS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A torch hub with a random squeezenet trunk under the name torchvision looks for."""
    import torchvision

    home = tmp_path_factory.mktemp("torch")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = torchvision.models.squeezenet1_1().state_dict()
    (home / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, home / "hub" / "checkpoints" / TRUNKS["squeeze"])
    return home


@pytest.fixture
def trunk(hub, monkeypatch):
    """The same file under a name with its own sha256, as it has to be to be taken for the real one."""
    monkeypatch.setenv("TORCH_HOME", str(hub))
    folder = hub / "hub" / "checkpoints"
    content = (folder / "squeezenet1_1-b8a52dc0.pth").read_bytes()
    path = folder / f"squeezenet1_1-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    path.write_bytes(content)
    monkeypatch.setitem(TRUNKS, "squeeze", path.name)
    return path


def test_lpips_of_equal_pictures_is_zero_from_hub_or_path(tmp_path, trunk):
    clean = many(tmp_path / "clean", 2, side=64)
    other = many(tmp_path / "other", 2, seed=1, side=64)
    assert Lpips(net="squeeze")(clean, clean, Run()) == {"lpips_squeeze": 0}
    found = Lpips(net="squeeze")(other, clean, Run())
    assert found["lpips_squeeze"] > 0
    assert Lpips(net="squeeze", weights=str(trunk))(other, clean, Run(batch=1)) == pytest.approx(found, rel=1e-4)


def test_lpips_is_the_packages_own(trunk):
    import lpips

    x, y = noise(2, 3, 64, 64), noise(2, 3, 64, 64, seed=1)
    expected = lpips.LPIPS(net="squeeze", verbose=False)(2 * x - 1, 2 * y - 1).flatten()  # finds the trunk in the hub
    ours = load_distance("lpips_squeeze", None, torch.device("cpu"))
    assert torch.allclose(ours(x, y), expected, rtol=1e-5)
    assert torch.allclose(ours.to_original(y)(x), expected, rtol=1e-5)
    assert not any(p.requires_grad for p in ours.parameters())
    ours(x.requires_grad_(), y).sum().backward()
    assert float(x.grad.abs().max()) > 0


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_lpips_without_its_trunk_says_what_to_put_where(tmp_path, monkeypatch, net):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / TRUNKS[net]
    for attempt in (Lpips(net=net).check, lambda: load_distance(f"lpips_{net}", None, torch.device("cpu"))):
        with pytest.raises(ValueError, match=f"lpips_{net}: weights are missing") as error:
            attempt()
        assert str(place) in str(error.value)
        assert f"download.pytorch.org/models/{TRUNKS[net]}" in str(error.value)


def test_lpips_refuses_a_trunk_that_is_not_the_real_one(hub):
    path = hub / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"  # random weights under the real name
    with pytest.raises(ValueError, match="b8a52dc0"):
        Lpips(net="squeeze", weights=str(path)).check()
    with pytest.raises(ValueError, match="alex, squeeze, vgg"):
        Lpips(net="resnet")


# -- configuration -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hydra():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield compose


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONF / "metric").glob("*.yaml")))
def test_every_metric_builds_and_says_what_it_is(hydra, name):
    metric = instantiate(hydra(overrides=[f"+metric={name}", "+model=micro"]).metric)
    assert metric.version >= 1
    assert metric.against in ("reference", "train_clean", "input", "truth", "clean_arm")
    assert set(metric.scores.values()) <= {"up", "down"}
    assert metric.minimum >= 1


@pytest.mark.parametrize("bundle", sorted(p.stem for p in (CONF / "metrics").glob("*.yaml")))
def test_every_bundle_builds_with_each_score_once_and_a_primary_one_of_them(hydra, bundle):
    config = hydra(overrides=[f"+metrics={bundle}"]).metrics
    names = [score for part in config.bundle.values() for score in instantiate(part).scores]
    assert len(names) == len(set(names))
    assert set(config.primary) <= set(names)


def test_the_embedded_world_needs_no_weights_but_the_packages(hydra, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for bundle in ("micro", "pairs"):
        for part in hydra(overrides=[f"+metrics={bundle}"]).metrics.bundle.values():
            metric = instantiate(part)
            if hasattr(metric, "check"):
                metric.check()


def test_vif_is_of_the_changed_picture_given_the_original(tmp_path):
    from torchmetrics.functional.image import visual_information_fidelity

    x = as_saved(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)))
    y = as_saved(Blur(sigma=1).pure(x, "", Run()))
    write_png(tmp_path / "clean" / "0.png", x)
    write_png(tmp_path / "changed" / "0.png", y)
    want, other = (float(visual_information_fidelity(255 * a[None], 255 * b[None])) for a, b in ((y, x), (x, y)))
    assert abs(want - other) > 0.05
    assert Vif()(tmp_path / "changed", tmp_path / "clean", Run())["vif"] == pytest.approx(want, rel=1e-4)
