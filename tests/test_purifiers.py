"""Purifications by diffusion models, attacks on the thief's own training, and choices between attacks."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from shared import Losses
from tiny import save_tiny_pixel

from udpbench.attack.best_of import BestOf
from udpbench.attack.blur import Blur
from udpbench.attack.cat import Cat
from udpbench.attack.chain import Chain
from udpbench.attack.ddspure import DdsPure
from udpbench.attack.diffpure import DiffPure
from udpbench.attack.folder import Folder
from udpbench.attack.gaussian_noise import GaussianNoise
from udpbench.attack.gridpure import GridPure, places
from udpbench.attack.impress import Impress
from udpbench.attack.impress_pp import ImpressPP
from udpbench.attack.insight import Insight
from udpbench.attack.jpeg import Jpeg
from udpbench.attack.none import Nothing
from udpbench.attack.robust_augment import RobustAugment
from udpbench.attack.screen_camera import ScreenCamera
from udpbench.attack.sdedit import SdEdit
from udpbench.attack.udap import Udap
from udpbench.attack.vae_roundtrip import VaeRoundtrip
from udpbench.core.codecs import recompress
from udpbench.core.images import as_saved, write_metadata, write_png
from udpbench.core.pixels import resize
from udpbench.interfaces import Log, Run, Thief
from udpbench.models.diffusion import Cond
from udpbench.models.latent import inconsistency
from udpbench.models.pixel import PixelDiffusion
from udpbench.models.reverse import ddim, epsilon, reverse
from udpbench.optim.samples import normal, uniform_times
from udpbench.task.dreambooth import DreamBooth
from udpbench.task.lora import Lora


@pytest.fixture(scope="module")
def pixels(tmp_path_factory) -> PixelDiffusion:
    return PixelDiffusion(str(save_tiny_pixel(tmp_path_factory.mktemp("pixel") / "ddpm")), "pixels")


def purified(attack, pictures, model, run=None):
    names = [f"{i}.png" for i in range(len(pictures))]
    return attack.purify(pictures, names, [""] * len(pictures), model if attack.needs else None, run or Run())


# -- diffusion of pixels -----------------------------------------------------------------------------------------------

MEAN, SPREAD = 0.1, 0.15  # of pictures that are Gaussian in [-1,1]


class Exact(PixelDiffusion):
    """What a perfect model of independent Gaussian pixels sees: eps = sqrt(1 - a) (x_t - sqrt(a) mean) / var(x_t)."""

    def __init__(self, schedule: DDPMScheduler) -> None:
        super().__init__("", "exact")
        self.__dict__["pipe"] = SimpleNamespace(
            scheduler=schedule, unet=SimpleNamespace(config=SimpleNamespace(sample_size=256))
        )

    def predict(self, noisy, t, cond):
        a = self.alpha_bar[t].view(-1, 1, 1, 1)
        return (1 - a).sqrt() * (noisy - a.sqrt() * MEAN) / (a * SPREAD**2 + 1 - a)


@pytest.mark.parametrize("sampler", ["ddpm", "sde", "ode"])
def test_there_and_back_is_the_posterior_of_a_gaussian(sampler):
    """From x_t the reverse process samples p(x_0 | x_t), of known mean and variance; the flow maps quantiles."""
    model, t = Exact(DDPMScheduler()), 150
    x = torch.full((1, 3, 100, 100), 0.7)  # 0.4 in [-1,1], two spreads from the mean
    attack = DiffPure(sampler=sampler, t=t)
    made = 2 * attack.there_and_back(x, [Run().rng("a")], model, Run()) - 1
    a = float(model.alpha_bar[t - 1])
    seen, noise = SPREAD**2 * a + 1 - a, 1 - a
    gain = SPREAD * (a / seen) ** 0.5 if sampler == "ode" else SPREAD**2 * a / seen
    mean = MEAN + gain * (0.4 - MEAN)
    variance = gain**2 * noise / a + (0 if sampler == "ode" else SPREAD**2 * noise / seen)
    assert float(made.mean()) == pytest.approx(mean, abs=0.004)
    assert float(made.std()) == pytest.approx(variance**0.5, rel=0.03)


def test_the_noise_is_that_of_the_forward_process():
    """A model that sees no noise leaves x_t as it is, but for the scale: DDIM to alpha_bar 1."""
    model, x = Exact(DDPMScheduler()), torch.full((1, 3, 64, 64), 0.6)
    model.predict = lambda noisy, t, cond: noisy * 0  # type: ignore[method-assign]
    made = 2 * DiffPure(sampler="ode", t=30).there_and_back(x, [Run().rng("a")], model, Run()) - 1
    a = float(model.alpha_bar[29])
    assert float(made.mean()) == pytest.approx(0.2, abs=0.01)
    assert float(made.std()) == pytest.approx(((1 - a) / a) ** 0.5, rel=0.05)


def test_ancestral_sampling_is_diffusers_own(pixels):
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours, theirs = ([torch.Generator().manual_seed(k) for k in (1, 2)] for _ in range(2))
    schedule = DDPMScheduler.from_config(pixels.pipe.scheduler.config)
    with torch.no_grad():
        made = reverse(
            pixels, x, pixels.embed(["", ""]), range(19, -1, -1), "ddpm",
            lambda: torch.cat([torch.randn(1, 3, 16, 16, generator=g) for g in ours]),
        )  # fmt: skip
        for t in range(19, -1, -1):
            x = schedule.step(pixels.pipe.unet(x, t).sample, t, x, generator=theirs).prev_sample
    torch.testing.assert_close(made, x, atol=1e-4, rtol=0)


def test_a_time_step_that_leaves_nothing_of_the_picture_is_refused(pixels):
    model = pixels.having(scheduler=DDPMScheduler(rescale_betas_zero_snr=True))
    last = len(model.alpha_bar) - 1
    with pytest.raises(ValueError, match="its last time step is noise alone; start from an earlier one"):
        reverse(model, torch.zeros(1, 3, 16, 16), model.embed([""]), range(last, 0, -1), "sde", lambda: torch.zeros(1))


def test_a_velocity_says_the_same_noise(pixels):
    model = pixels.having(scheduler=DDPMScheduler(prediction_type="v_prediction"))
    z, noise, t = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4), 300
    a = model.alpha_bar[t]
    model.predict = lambda noisy, t, cond: a.sqrt() * noise - (1 - a).sqrt() * z  # type: ignore[method-assign]
    torch.testing.assert_close(
        epsilon(model, a.sqrt() * z + (1 - a).sqrt() * noise, t, Cond(torch.zeros(1, 0, 0))), noise
    )


def test_ddim_up_and_down_with_one_noise_is_where_it_began():
    z, eps = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    torch.testing.assert_close(ddim(eps, ddim(eps, z, 0.99, 0.4, "epsilon"), 0.4, 0.99, "epsilon"), z)


@pytest.mark.parametrize(("radius", "t"), [(4, 6), (8, 15), (11, 23), (16, 35)])
def test_a_radius_asks_for_as_much_noise_as_it_is_large(radius, t):
    model = Exact(DDPMScheduler())
    assert DdsPure(sampler="ddpm", radius=radius).level(model) == t + 1  # counted from 1
    d = 2 * radius / 255
    assert model.alpha_bar[t] < 1 / (1 + d * d) <= model.alpha_bar[t - 1]


def test_more_steps_than_the_model_has_are_told_before_it_is_loaded(pixels):
    found = PixelDiffusion(pixels.path, "found")
    DiffPure(sampler="ddpm", t=1000).check_model(found)
    chain = Chain(members={"a": Jpeg(quality=75), "b": GridPure(sampler="ddpm", t=1001, rounds=1, gamma=0.1)})
    with pytest.raises(ValueError, match="attack gridpure_1001x1, model found: t must be <= 1000, given 1001"):
        chain.check_model(found)
    assert "pipe" not in vars(found)


def test_larger_pictures_go_through_the_model_s_size_and_smaller_ones_as_they_are(pixels, pictures, monkeypatch):
    seen = []
    monkeypatch.setattr(
        DiffPure, "there_and_back", lambda self, x, rngs, model, run: seen.append(tuple(x.shape[2:])) or x
    )
    large = resize(pictures[0][None], (40, 60))[0]
    made = purified(DiffPure(sampler="ddpm", t=1), [large, pictures[0][:, :9, :11]], pixels)
    assert seen == [(16, 24), (9, 11)]
    torch.testing.assert_close(made[0], resize(resize(large[None], (16, 24)), (40, 60))[0])  # the control: resize alone
    assert torch.equal(made[1], pictures[0][:, :9, :11])


@pytest.mark.parametrize("whole", [(16, 16), (32, 32), (33, 47), (9, 30), (5, 7)])
def test_windows_cover_the_picture_and_corners_are_a_window_more(whole):
    size = min(whole[0], 16), min(whole[1], 16)
    times = torch.zeros(whole)
    for rows, columns in places(whole, size):
        assert sum(r.stop - r.start for r in rows) == size[0]
        assert sum(c.stop - c.start for c in columns) == size[1]
        for r in rows:
            for c in columns:
                times[r, c] += 1
    assert times.min() >= (1 if whole == size else 2 if min(whole) > 16 else 1)
    corners = [times[i, j] for i in (0, -1) for j in (0, -1)]
    assert corners == [1 if whole == size else 2] * 4


def test_gridpure_keeps_what_gamma_says_and_what_windows_leave(pixels, pictures, monkeypatch):
    monkeypatch.setattr(GridPure, "there_and_back", lambda self, x, rngs, model, run: x * 0)
    x = resize(pictures[0][None], (30, 41))[0]
    (made,) = purified(GridPure(sampler="ddpm", t=5, rounds=2, gamma=0.5), [x], pixels)
    assert torch.equal(made, as_saved(as_saved(x / 2) / 2))
    monkeypatch.setattr(GridPure, "there_and_back", lambda self, x, rngs, model, run: x)
    (same,) = purified(GridPure(sampler="ddpm", t=5, rounds=1, gamma=0), [as_saved(x)], pixels)
    assert torch.equal(same, as_saved(x))


# -- latent models -----------------------------------------------------------------------------------------------------


def test_a_round_trip_is_the_purifier_s_own(model, pictures):
    odd = [pictures[0], pictures[1][:, :13, :15]]
    made = purified(VaeRoundtrip(times=2), odd, model)
    with torch.no_grad():
        for x, y in zip(odd, made, strict=True):
            once = model.round_trip(x[None]).clamp(0, 1)
            torch.testing.assert_close(y, model.round_trip(once).clamp(0, 1)[0])


def test_regeneration_without_noise_is_the_round_trip_and_its_prompt_counts(model, pictures):
    common = {"schedule_steps": 1000, "solver": "ddim", "negative_prompt": ""}
    odd = pictures[1][:, :13, :15]
    (made,) = purified(SdEdit(strength=0.001, guidance=1, prompt="", **common), [odd], model)
    with torch.no_grad():
        mean, std = model.moments(odd[None])
        drawn = model.decode(mean)[0, :, :13, :15].clamp(0, 1)
    assert (made - drawn).abs().mean() < 0.02 + float(std.mean())
    common |= {"strength": 0.5, "schedule_steps": 4, "guidance": 5}
    one, two = (purified(SdEdit(prompt=text, **common), pictures[:1], model)[0] for text in ("", "a photo of a ring"))
    assert not torch.equal(one, two)
    asked = SdEdit(prompt="ring " * 200, **common).model_prompts()
    assert "ring " * 200 in asked, "the harness refuses what is too long before any work"


@pytest.mark.slow
def test_udap_brings_the_reconstruction_back_to_the_picture(model, pictures):
    log, common = Losses(), {"lr": 0.05, "ddim_steps": 20, "depth": 2, "kernel": 9, "blur": 12}
    (made,) = purified(Udap(iterations=25, enough=0, **common), [pictures[0][:, :15, :13]], model, Run(log=log))
    assert made.shape == (3, 15, 13)
    assert log.values[-1] < 0.9 * log.values[0]
    attack = Udap(iterations=25, enough=1e6, **common)
    with torch.no_grad():
        want = model.round_trip(attack.blurred(pictures[:1][0][None])).clamp(0, 1)[0]
    torch.testing.assert_close(purified(attack, pictures[:1], model)[0], want)


IMPRESS = {"iterations": 3, "lr": 0.1, "alpha": 0.1, "distance_budget": 0.1, "start_noise": 0.05, "perceptual": "lite1"}
CAMERA = ScreenCamera(tilt=0.01, blur=0.8, vignette=0.1, colour=0.05, noise=2.5, quality=85)
NONE = {"photo": CAMERA, "encoder": 0.0, "unet": 0.0, "consistency": 1.0, "away": 0.0, "prompt": "a painting"}


def test_insight_without_a_photograph_is_impress(model, pictures):
    want = purified(Impress(**IMPRESS), pictures[:2], model)
    assert all(map(torch.equal, purified(Insight(**IMPRESS, **NONE), pictures[:2], model), want))


@pytest.mark.slow
def test_insight_moves_latents_to_those_of_the_photograph(model, pictures):
    weights = NONE | {"encoder": 1.0, "consistency": 0.0, "unet": 0.01}
    free = IMPRESS | {"alpha": 0.0, "iterations": 30, "lr": 0.05, "start_noise": 0.0, "size_correct": False}
    made = purified(Insight(**free, **weights), pictures[:1], model)
    photo = CAMERA.pure(pictures[0], "0.png", Run())
    with torch.no_grad():
        target, before, after = (model.encode(x[None]) for x in (photo, pictures[0], made[0]))
    assert (after - target).square().mean() < 0.5 * (before - target).square().mean()
    with pytest.raises(ValueError, match="attack insight: photo must be an attack without a model"):
        Insight(**IMPRESS, **NONE | {"photo": VaeRoundtrip(times=1)})


def test_impress_pp_is_noise_then_impress_then_a_negative_prompt(model, pictures):
    attack = ImpressPP(**IMPRESS, noise=10, negative_prompt="noise")
    noisy = purified(GaussianNoise(std=10), pictures[:1], model)
    assert torch.equal(purified(attack, pictures[:1], model)[0], purified(Impress(**IMPRESS), noisy, model)[0])
    assert attack.hooks == {"purify", "sampling"}
    assert attack.sampling() == {"negative_prompt": "noise"}


# -- members -----------------------------------------------------------------------------------------------------------


def test_a_chain_has_the_hooks_and_needs_of_its_members(model, pictures):
    augment = RobustAugment(quality=75, blur=1, noise=8)
    attack = Chain(
        members={"b": augment, "a": VaeRoundtrip(times=1), "c": ImpressPP(**IMPRESS, noise=1, negative_prompt="x")}
    )
    assert attack.hooks == {"purify", "augment", "sampling"}
    assert attack.needs == {"latent"}
    assert attack.label.startswith("vae_roundtrip_1+")
    with pytest.raises(ValueError, match="two members give negative_prompt to the generation"):
        Chain(members={k: ImpressPP(**IMPRESS, noise=1, negative_prompt=k) for k in "ab"})
    first = as_saved(purified(VaeRoundtrip(times=1), pictures[:1], model)[0])
    second = Chain(members={"a": VaeRoundtrip(times=1), "b": Blur(sigma=1)})
    assert torch.equal(purified(second, pictures[:1], model)[0], as_saved(Blur(sigma=1).pure(first, "", Run())))


@pytest.mark.parametrize("score", ["inconsistency", "denoising"])
def test_best_of_takes_of_each_picture_what_scores_lowest(model, pictures, score):
    members = {"a": Jpeg(quality=10), "b": Blur(sigma=2), "c": Jpeg(quality=3)}
    attack = BestOf(members=members, score=score)
    made = purified(attack, pictures, model)
    results = [purified(member, pictures, model) for member in members.values()]
    if score == "inconsistency":
        with torch.no_grad():
            scores = torch.stack([inconsistency(as_saved(torch.stack(result)), model) for result in results])
        for i, k in enumerate(scores.argmin(0).tolist()):
            assert torch.equal(made[i], as_saved(results[k][i]))
    else:
        assert any(torch.equal(made[0], as_saved(result[0])) for result in results)
    assert attack.needs == ({"latent"} if score == "inconsistency" else {"denoise"})
    with pytest.raises(ValueError, match="members must change pictures only; a changes nothing"):
        BestOf(members={"a": Nothing()}, score=score)


def test_best_of_refuses_a_score_that_is_no_number(model, pictures, monkeypatch):
    monkeypatch.setattr("udpbench.attack.best_of.inconsistency", lambda x, model: x.new_full((1,), math.nan))
    with pytest.raises(ValueError, match=r"attack best_of: the inconsistency of 0\.png is nan"):
        purified(BestOf(members={"a": Jpeg(quality=10)}, score="inconsistency"), pictures[:1], model)


# -- training ----------------------------------------------------------------------------------------------------------


def test_augmented_pictures_are_each_one_of_three(pictures):
    attack = RobustAugment(quality=30, blur=2, noise=20)
    batch = torch.stack(pictures[:1] * 30)
    made = attack.augment(batch, Run().rng("train", 0))
    assert torch.equal(made, attack.augment(batch, Run().rng("train", 0)))
    jpeg = recompress(pictures[0], "jpeg", 30)
    same = [torch.equal(x, jpeg) for x in made]
    assert 4 <= sum(same) <= 16
    rest = [float((x - pictures[0]).std()) * 255 for x, is_jpeg in zip(made, same, strict=True) if not is_jpeg]
    assert sum(12 < size < 21 for size in rest) >= 3
    assert attack.hooks == {"augment"}


@pytest.fixture(scope="module")
def cat() -> Cat:
    return Cat(steps=20, lr=1e-2, rank=4, side="both", batch=2, decay="cosine")


@pytest.mark.slow
def test_cat_makes_the_pictures_consistent_and_leaves_the_victim_as_it_was(model, pictures, cat):
    x = torch.stack(pictures)
    adapted = cat.adapt(model, pictures, Run())
    with torch.no_grad():
        before = inconsistency(x, model).mean()
        assert inconsistency(x, adapted).mean() < 0.8 * before
    assert set(adapted.parts_unlike(model)) == {"vae"}
    assert not any("lora" in name for name, _ in model.pipe.vae.named_parameters())
    again = cat.adapt(model, pictures, Run())
    assert again.parts_unlike(adapted) == {}, "the same seed, the same autoencoder"
    frozen = Cat(steps=2, lr=5e-3, rank=4, side="decoder", batch=2).adapt(model, pictures, Run())
    with torch.no_grad():
        assert torch.equal(frozen.encode(x), model.encode(x)), "a decoder adapted alone leaves latents as they are"
    with pytest.raises(ValueError, match="attack cat: unknown side 'all'"):
        Cat(steps=1, lr=1, rank=1, side="all", batch=1)


class Adapting(Log):
    """Keeps the steps of the adaptation; interrupts the one of number ``dies_at``."""

    def __init__(self, dies_at: int = -1) -> None:
        self.dies_at, self.steps = dies_at, []

    def scalar(self, name, value, step):
        if name == "adapt/loss":
            if step == self.dies_at:
                raise KeyboardInterrupt
            self.steps.append(step)


@pytest.mark.slow
def test_an_interrupted_adaptation_goes_on_where_its_training_does(model, pictures, tmp_path):
    cat = Cat(steps=12, lr=1e-2, rank=4, side="both", batch=2, save_every=5)
    task = DreamBooth(steps=1, lr=1e-4, batch=1, pictures=1, sample_steps=2, guidance=1.0)
    for i, x in enumerate(pictures):
        write_png(tmp_path / "in" / f"{i}.png", x)
    write_metadata(tmp_path / "in", {f"{i}.png": {"text": "a photo of a sks ring"} for i in range(len(pictures))})
    (tmp_path / "out").mkdir()

    def train(log: Adapting) -> Run:
        task.train(tmp_path / "in", tmp_path / "out", model, run := Run(log=log), Thief(attack=cat))
        return run

    with pytest.raises(KeyboardInterrupt):
        train(Adapting(dies_at=8))
    run = train(again := Adapting())
    assert again.steps == list(range(5, 12))
    assert run.count["vae_train"] == 12 * 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["step_1"]
    tuned, whole = model.with_tuned(tmp_path / "out" / "step_1"), cat.adapt(model, pictures, Run())
    for ours, theirs in zip(tuned.pipe.vae.parameters(), whole.pipe.vae.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DreamBooth, Lora])
def test_what_cat_adapts_generates(model, pictures, cat, tmp_path, kind):
    common = {"steps": 1, "lr": 1e-4, "batch": 1, "pictures": 1, "sample_steps": 2, "guidance": 1.0}
    task = kind(**common, **({"rank": 2} if kind is Lora else {}))
    for i, x in enumerate(pictures):
        write_png(tmp_path / "in" / f"{i}.png", x)
    write_metadata(tmp_path / "in", {f"{i}.png": {"text": "a photo of a sks ring"} for i in range(len(pictures))})
    task.train(tmp_path / "in", tmp_path / "out", model, Run(), Thief(attack=cat))
    tuned = model.with_tuned(tmp_path / "out" / "step_1")
    adapted = cat.adapt(model, pictures, Run())
    for ours, theirs in zip(tuned.pipe.vae.parameters(), adapted.pipe.vae.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    task.train(tmp_path / "in", tmp_path / "plain", model, Run(), Thief())
    assert not (tmp_path / "plain" / "step_1" / "vae").exists()


def test_insight_takes_photographs_of_the_pictures_it_is_given(tmp_path):
    of = Insight(**IMPRESS, **NONE | {"photo": Folder(path=tmp_path / "photos")})
    assert of.on_clean() is None, "photographs of the clean pictures are not known"
    both = Insight(**IMPRESS, **NONE | {"photo": Folder(path=tmp_path / "photos", clean=tmp_path / "clean")})
    assert both.on_clean().photo.path == tmp_path / "clean"
    assert Insight(**IMPRESS, **NONE).on_clean() == Insight(**IMPRESS, **NONE)
    with pytest.raises(ValueError, match="photo must change pictures only; nothing changes nothing"):
        Insight(**IMPRESS, **NONE | {"photo": Nothing()})


def test_more_steps_back_than_there_are_of_noise_are_refused():
    with pytest.raises(ValueError, match="attack diffpure: steps must be >= 1 and <= 100, given 500"):
        DiffPure(sampler="ddpm", t=100, steps=500)


def test_best_of_by_the_denoising_loss_takes_the_lowest(model, pictures):
    members = {"a": Jpeg(quality=10), "b": Blur(sigma=2), "c": Jpeg(quality=3)}
    made = BestOf(members=members, score="denoising").purify(pictures, list("wxyz"), [""] * 4, model, Run())
    for x, name, got in zip(pictures, "wxyz", made, strict=True):
        rng, losses, results = Run().rng("best_of", name), [], []
        t, noise = uniform_times([rng], 16, 1000), normal([rng], 16, model.encode(x[None]))
        for member in members.values():
            results.append(as_saved(member.pure(x, name, Run())))
            with torch.no_grad():
                z = model.encode(results[-1][None]).expand_as(noise)
                losses.append(float(model.loss(z, model.embed([""] * 16), t, noise).mean()))
        assert torch.equal(got, results[losses.index(min(losses))])


def test_each_of_jpeg_blur_and_noise_augments(pictures):
    rough = lambda x: float(x.diff(dim=-1).abs().mean())  # noqa: E731
    made = RobustAugment(quality=30, blur=2, noise=20).augment(torch.stack(pictures[:1] * 60), Run().rng("train", 0))
    jpeg = recompress(pictures[0], "jpeg", 30)
    kinds = [
        "jpeg" if torch.equal(x, jpeg) else "blur" if rough(x) < rough(pictures[0]) - 1e-6 else "noise" for x in made
    ]
    assert all(8 <= kinds.count(kind) <= 32 for kind in ("jpeg", "blur", "noise"))


def test_insight_s_terms_have_their_weights_and_signs(model, pictures):
    camera = ScreenCamera(tilt=0.01, blur=0.8, vignette=0.1, colour=0.05, noise=2.5, quality=85)
    attack = Insight(
        iterations=1,
        lr=0.1,
        alpha=0.0,
        distance_budget=1.0,
        start_noise=0.0,
        perceptual="lite1",
        size_correct=False,
        photo=camera,
        encoder=2.0,
        unet=0.0,
        consistency=3.0,
        away=0.5,
        prompt="a painting",
    )
    x, y = pictures[0][None], 2 * pictures[1][None] - 1
    with torch.no_grad():
        got = attack.aims(x, ["a"], model, Run())(y, 0)
        z, photo, given = (model.encode(v) for v in (pictures[1][None], camera.pure(pictures[0], "a", Run())[None], x))
        mse = lambda a, b: (a - b).square().mean()  # noqa: E731
        want = 3 * inconsistency(pictures[1][None], model) + 2 * mse(z, photo) - 0.5 * 2 * mse(z, given)
    torch.testing.assert_close(got, want)


def test_ddspure_goes_there_and_back_as_often_as_it_says(pixels, pictures, monkeypatch):
    monkeypatch.setattr(DdsPure, "there_and_back", lambda self, x, rngs, model, run: x / 2)
    (made,) = DdsPure(sampler="ddpm", radius=11, rounds=3).purify(pictures[:1], ["a"], [""], pixels, Run())
    torch.testing.assert_close(made, pictures[0] / 8)


def test_gridpure_keeps_gamma_of_the_picture(pixels, pictures, monkeypatch):
    monkeypatch.setattr(GridPure, "there_and_back", lambda self, x, rngs, model, run: x * 0)
    (made,) = GridPure(sampler="ddpm", t=5, rounds=1, gamma=0.2).purify(pictures[:1], ["a"], [""], pixels, Run())
    assert torch.equal(made, as_saved(0.2 * pictures[0]))
