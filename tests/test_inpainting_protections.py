"""Protections against inpainting and editing: what they ascend, written out; masks; the network of DiffVax."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMInverseScheduler, DDIMScheduler, StableDiffusionInpaintPipeline
from shared import Watching, make_owner
from skimage.measure import find_contours
from tiny import TINY
from torch import Tensor

from udpbench.core import images
from udpbench.core.budget import Linf
from udpbench.interfaces import Log, Owner, Run
from udpbench.models.latent import LatentDiffusion
from udpbench.models.shaped import random_pipeline
from udpbench.models.unetpp import UNetPlusPlus
from udpbench.optim.chains import Inpainting
from udpbench.protect.advpaint import AdvPaint
from udpbench.protect.dia import DIA, walked
from udpbench.protect.diffusionguard import DiffusionGuard, _corners, _filled
from udpbench.protect.diffvax import DiffVax, perturbed
from udpbench.protect.promptflare import PromptFlare

GUARD: dict[str, Any] = {"mask": "centre", "iterations": 1, "sample_steps": 4}
VAX: dict[str, Any] = {
    "mask": "centre", "iterations": 2, "lr": 1e-3, "batch": 2, "widths": [8, 16], "alpha": 4.0, "sample_steps": 2,
    "guidance": 2.0,
}  # fmt: skip
METHODS: dict[str, Callable[..., Any]] = {
    "diffusionguard": partial(DiffusionGuard, **GUARD, contour_iterations=0),
    "advpaint": partial(AdvPaint, **GUARD, random_start=True),
    "promptflare": partial(PromptFlare, **GUARD, prompt="a photo"),
    "diffvax": partial(DiffVax, **VAX),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory, model) -> dict[str, LatentDiffusion]:
    """The tiny model, whose UNet takes latents alone, and one whose UNet takes masks, too."""
    path = tmp_path_factory.mktemp("models") / "nine"
    random_pipeline(TINY | {"unet": TINY["unet"] | {"in_channels": 9}}).save_pretrained(path)
    return {"latents": model, "masks": LatentDiffusion(str(path), "nine")}


def centre(x: Tensor) -> Tensor:
    """Where N pictures are painted anew around their middle half, (N, 1, H, W)."""
    mask = torch.ones(len(x), 1, *x.shape[-2:])
    mask[..., 4:12, 4:12] = 0
    return mask


def logged() -> tuple[Run, list[float]]:
    """A run and the curve that it logs."""
    losses: list[float] = []
    log = Log()
    log.scalar = lambda name, value, step: losses.append(float(value))  # type: ignore[method-assign]
    return Run(log=log), losses


# -- what the UNet is given --------------------------------------------------------------------------------------------


def test_a_unet_that_takes_masks_is_given_what_the_pipeline_gives_it(models, pictures, monkeypatch):
    """Latents that are noise, the mask at their size, the latents of the picture, grey where it is painted anew."""
    model, x = models["masks"], torch.stack(pictures[:2])
    told: list[Tensor] = []
    real = model.pipe.unet.forward
    monkeypatch.setattr(model.pipe.unet, "forward", lambda z, *a, **k: told.append(z) or real(z, *a, **k))
    pipe = model.assembled(
        StableDiffusionInpaintPipeline, scheduler=DDIMScheduler.from_config(model.pipe.scheduler.config)
    )
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(type(pipe.vae), "encode", mean_encoding(type(pipe.vae).encode))
    said = {"prompt": ["", ""], "num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "pt"}
    with torch.no_grad():
        pipe(**said, image=x, mask_image=centre(x), latents=noise, height=16, width=16)
        seen = Inpainting(model, x, centre(x))
        seen.first_prediction(model.embed(["", ""]), noise, 4)
    torch.testing.assert_close(told[-1], told[0], atol=1e-5, rtol=1e-4)


def mean_encoding(real: Any) -> Any:
    """``AutoencoderKL.encode`` whose posterior samples its mean."""

    def encode(self: Any, x: Tensor, *args: Any, **words: Any) -> Any:
        found = real(self, x, *args, **words)
        found.latent_dist.sample = lambda generator=None: found.latent_dist.mean
        return found

    return encode


def test_a_unet_of_latents_sees_the_kept_part_noised_and_noise_elsewhere(model, pictures):
    x, noise = torch.stack(pictures[:2]), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = Inpainting(model, x, centre(x))
        given = seen.given(noise, torch.tensor([751, 751]), noise)
        a = model.alpha_bar[751]
        noisy = a.sqrt() * model.encode(x) + (1 - a).sqrt() * noise
    kept = F.interpolate(centre(x), 8)[0, 0] == 0
    assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(given[..., kept], noisy[..., kept])
    assert torch.equal(given[..., ~kept], noise[..., ~kept])


@pytest.mark.parametrize("kind", ["latents", "masks"])
def test_an_edit_is_that_of_diffusers_steps_and_keeps_what_is_kept(models, pictures, kind):
    """With guidance; a model without mask input ends with the kept part's own latents."""
    model, x = models[kind], torch.stack(pictures[:2])
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ddim = DDIMScheduler.from_config(model.pipe.scheduler.config)
    ddim.set_timesteps(3)
    with torch.no_grad():
        cond, empty = model.embed(["a red ball", "a ring"]), model.embed(["", ""])
        seen = Inpainting(model, x, centre(x))
        got = seen.edited(cond, empty, noise, 3, 2.5)
        z, mask = noise, F.interpolate(centre(x), 8)
        for t in ddim.timesteps:
            if kind == "latents":
                z = mask * z + (1 - mask) * ddim.add_noise(seen.latents, noise, t[None])
            given = z if kind == "latents" else torch.cat([z, mask, seen.latents], 1)
            with_prompt, without = (model.pipe.unet(given, t, c.hidden).sample for c in (cond, empty))
            z = ddim.step(without + 2.5 * (with_prompt - without), t, z).prev_sample
        z = mask * z + (1 - mask) * seen.latents if kind == "latents" else z
        torch.testing.assert_close(got, model.decode(z), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["latents", "masks"])
@pytest.mark.parametrize("name", ["diffusionguard", "promptflare", "diffvax"])
def test_only_what_is_kept_is_changed(models, pictures, kind, name):
    made = METHODS[name]().protect(make_owner(pictures[:2]), Linf(8), models[kind], Run())
    changed = (torch.stack(made) - torch.stack(pictures[:2])).abs().amax(1, keepdim=True) > 0
    anew = centre(torch.stack(pictures[:2])) > 0
    assert not (changed & anew).any()
    assert (changed & ~anew).float().sum() > 0.5 * (~anew).sum()


# -- objectives --------------------------------------------------------------------------------------------------------


def first_gradient(method: Any, owner: Owner, model: LatentDiffusion) -> Tensor:
    """Of the first picture."""
    budget = Watching(8)
    method.protect(owner, budget, model, Run())
    return budget.gradients[0][0]


def given_first(model: LatentDiffusion, x: Tensor, kind: str, rng: torch.Generator, anew: Tensor) -> Tensor:
    """What the UNet is given in the first of four steps for one picture (CHW), by diffusers' own parts."""
    noise, vae = torch.randn(1, 4, 8, 8, generator=rng).to(x.dtype), model.pipe.vae
    anew, a = anew.to(x.dtype), model.alpha_bar[751].to(x.dtype)
    mask = F.interpolate(anew, 8)
    shown = x[None] if kind == "latents" else x[None] * (1 - anew) + 0.5 * anew
    z = vae.encode(2 * shown - 1).latent_dist.mean * vae.config.scaling_factor
    if kind == "masks":
        return torch.cat([noise, mask, z], 1)
    return mask * noise + (1 - mask) * (a.sqrt() * z + (1 - a).sqrt() * noise)


def outputs(unet: torch.nn.Module, end: str, *given: Any) -> list[Tensor]:
    """What the layers whose names end so put out in one pass."""
    found: list[Tensor] = []
    layers = [layer for name, layer in unet.named_modules() if name.endswith(end)]
    hooks = [layer.register_forward_hook(lambda _, __, out: found.append(out)) for layer in layers]
    unet(*given)
    for hook in hooks:
        hook.remove()
    return found


@pytest.fixture
def double(models):
    """The models in float64."""
    parts = [getattr(m.pipe, part) for m in models.values() for part in ("vae", "unet", "text_encoder")]
    for part in parts:
        part.double()
    yield models
    for part in parts:
        part.float()


@pytest.mark.parametrize("kind", ["latents", "masks"])
@pytest.mark.parametrize("name", ["diffusionguard", "promptflare"])
def test_gradients_are_finite_differences_of_the_objective_written_out(models, pictures, kind, name, request):
    x = pictures[0]
    gradient = first_gradient(METHODS[name](), make_owner([x]), models[kind])
    model = request.getfixturevalue("double")[kind]
    unet, said = model.pipe.unet, model.embed(["" if name == "diffusionguard" else "a photo"]).hidden

    def given(x: Tensor) -> Tensor:
        return given_first(model, x, kind, Run().rng(name, "0000.png"), centre(x[None]))

    wanted = outputs(unet, "attn2", given(x.double()), 751, said[:, :1])
    m = F.interpolate(centre(x[None]).double(), 4).flatten(1)[..., None]

    def objective(x: Tensor) -> float:
        if name == "diffusionguard":
            return float(unet(given(x), 751, said).sample.norm())
        heard = outputs(unet, "attn2", given(x), 751, said)
        return -float(torch.stack([((a - b) * m).norm() for a, b in zip(heard, wanted, strict=True)]).sum())

    inside = gradient * (1 - centre(x[None])[0])
    assert torch.equal(gradient, inside), "nothing else is seen"
    for i in inside.abs().flatten().topk(3).indices.tolist():
        step = torch.zeros(x.numel(), dtype=torch.float64)
        step[i] = 1e-5
        up, down = (objective(x.double() + sign * step.view(x.shape)) for sign in (1, -1))
        assert (up - down) / 2e-5 == pytest.approx(float(gradient.flatten()[i]), rel=1e-2)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("kind", ["latents", "masks"])
def test_advpaint_ascends_the_change_of_queries_keys_and_values(models, pictures, kind, same):
    """The logged objective of the first step, written out from the modules' own outputs."""
    model, (run, losses) = models[kind], logged()
    METHODS["advpaint"](enlarged=1.0, same_noise=same).protect(make_owner(pictures[:1]), Linf(8), model, run)
    start = torch.rand(pictures[0].shape, generator=Run().rng("start", "0000.png")) * 2 - 1
    moved = Linf(8).project((pictures[0] + start * 8 / 255)[None], pictures[0][None])[0]
    cond = model.embed([make_owner(pictures[:1]).prompts[0]]).hidden

    def attended(x: Tensor, *key: str) -> list[Tensor]:
        """First the box is painted anew: the object, the middle half."""
        anew = 1 - centre(x[None])
        given = given_first(model, x, kind, Run().rng("advpaint", 0, "0000.png", *key), anew)
        ends = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q")
        return [out for end in ends for out in outputs(model.pipe.unet, end, given, 751, cond)]

    with torch.no_grad():
        clean = attended(pictures[0], *([] if same else ["clean"]))
        changes = [(a - b).norm() for a, b in zip(attended(moved), clean, strict=True)]
    assert losses[0] == pytest.approx(float(torch.stack(changes).sum()) / (len(changes) / 4), rel=1e-3)


def test_advpaint_s_box_has_the_margin_of_the_released_mask():
    """Its example: a box of 246 x 338 pixels around the object, 274 x 366 with the margin."""
    of = torch.zeros(1, 512, 512)
    of[:, 165:411, 113:451] = 1
    rows, columns = METHODS["advpaint"]().box(of)[0].nonzero().T
    assert [int(v) for v in (rows.min(), rows.max(), columns.min(), columns.max())] == [151, 424, 99, 464]
    assert torch.equal(METHODS["advpaint"](enlarged=1.0).box(of), of)
    assert METHODS["advpaint"](enlarged=1e3).box(of).all()


def test_a_shrunk_mask_lies_in_the_mask_and_is_drawn_anew():
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    kept = (((y - 24) ** 2 + (x - 30) ** 2) < 15**2).float()[None]
    method, rng = METHODS["diffusionguard"](contour_iterations=15), torch.Generator().manual_seed(0)
    found = [method.shrunk(kept, rng) for _ in range(12)]
    assert all(((mask == 0) | (mask == 1)).all() and (mask <= kept).all() and mask.any() for mask in found)
    areas = [float(mask.sum() / kept.sum()) for mask in found]
    assert len(set(areas)) > 6
    assert min(areas) < 0.5
    assert max(areas) > 0.7
    assert torch.equal(METHODS["diffusionguard"](contour_iterations=15, contour_strength=0.0).shrunk(kept, rng), kept)


def test_the_contour_of_a_mask_has_a_point_where_it_turns():
    """As OpenCV's CHAIN_APPROX_SIMPLE: of the largest piece, without points within straight runs."""
    inside = np.zeros((20, 30), bool)
    inside[4:9, 6:17] = inside[15, 2] = True
    assert {tuple(p) for p in _corners(inside)} == {(4, 6), (4, 16), (8, 6), (8, 16)}
    assert (_filled(_corners(inside), inside.shape) == (inside & (np.arange(20) < 15)[:, None])).all()


def test_the_piece_of_the_largest_area_is_chosen_not_that_of_the_longest_contour():
    """As cv2.contourArea of RETR_EXTERNAL: a disc beside a comb of a smaller area; a ring around its own hole."""
    y, x = np.mgrid[:40, :90]
    disc = (y - 20) ** 2 + (x - 20) ** 2 < 14**2
    comb = (x > 45) & (y > 4) & (y < 36) & ((x % 4 == 0) | (y == 5))
    assert comb.sum() < disc.sum()
    inside = disc | comb
    contours = find_contours(inside.astype(float), 0.999)
    assert len(max(contours, key=len)) > len(find_contours(disc.astype(float), 0.999)[0])
    assert {tuple(p) for p in _corners(inside)} == {tuple(p) for p in _corners(disc)}
    jagged = (y - 20) ** 2 + (x - 20) ** 2 < 12**2
    ring = disc & ~(jagged & ((x + y) % 3 > 0))
    assert {tuple(p) for p in _corners(ring)} == {tuple(p) for p in _corners(disc)}


def test_contours_are_moved_less_often_than_said_and_by_whole_pixels(monkeypatch):
    kept, calls = torch.zeros(1, 32, 32), []
    kept[:, 4:24, 6:26] = 1

    def filtered(offsets, sigma, **settings):
        calls.append(offsets)
        return 0.9 * np.sign(offsets)  # which is no whole pixel

    monkeypatch.setattr("udpbench.protect.diffusionguard.gaussian_filter1d", filtered)
    method = METHODS["diffusionguard"](contour_iterations=3)
    times = []
    for seed in range(20):
        before = len(calls)
        assert torch.equal(method.shrunk(kept, torch.Generator().manual_seed(seed)), kept)
        times.append(len(calls) - before)
    assert set(times) == {1, 2}
    assert all((offsets == offsets.round()).all() for offsets in calls)


def test_contours_are_moved_in_the_radii_of_the_released_code(monkeypatch):
    """There sqrt(3 A / (6 / pi)): areas are counted over three channels."""
    seen: list[float] = []

    def filtered(offsets, sigma, **settings):
        seen.append(sigma)
        return 0 * offsets

    monkeypatch.setattr("udpbench.protect.diffusionguard.gaussian_filter1d", filtered)
    kept = torch.zeros(1, 32, 32)
    kept[:, 4:24, 6:26] = 1  # 400 pixels
    METHODS["diffusionguard"](contour_iterations=1).shrunk(kept, torch.Generator().manual_seed(0))
    assert seen == pytest.approx([0.1 * math.sqrt(3 * 400 * math.pi / 6)])


def test_a_mask_of_single_pixels_and_one_that_touches_every_border_shrink_to_something():
    method, rng = METHODS["diffusionguard"](contour_iterations=5), torch.Generator().manual_seed(0)
    one = torch.zeros(1, 9, 9)
    one[0, 4, 4] = 1
    for kept in (one, torch.ones(1, 9, 9), torch.eye(9)[None]):
        for _ in range(5):
            assert 0 < method.shrunk(kept, rng).sum() <= kept.sum()


def test_a_mask_without_two_parts_and_one_that_is_missing_are_told(model, pictures):
    owner, method = make_owner(pictures[:1]), METHODS["advpaint"](mask="data")
    for value, said in ((0.0, "all"), (1.0, "nothing")):
        owner.masks = [torch.full((1, 16, 16), value)]
        with pytest.raises(ValueError, match=f"advpaint: {said} of 0000.png would be painted anew"):
            method.protect(owner, Linf(8), model, Run())
    owner.masks = None
    with pytest.raises(ValueError, match="advpaint: the data has no masks; give protect.mask=centre"):
        method.protect(owner, Linf(8), model, Run())


def test_masks_of_the_data_and_of_a_folder_are_the_same(model, pictures, tmp_path):
    wide = [pictures[0], torch.cat([pictures[1], pictures[2]], 2)[:, :14]]
    owner, objects = make_owner(wide), [(x[:1] > x[:1].mean()).float() for x in wide]
    for name, mask in zip(owner.names, objects, strict=True):
        images.write_png(tmp_path / name, mask.expand(3, -1, -1))
    owner.masks = objects
    for repaint in ("outside", "inside"):
        of_data, of_folder = (
            METHODS["diffusionguard"](mask=m, repaint=repaint).anew_of(owner) for m in ("data", str(tmp_path))
        )
        for a, b, mask in zip(of_data, of_folder, objects, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, mask if repaint == "inside" else 1 - mask)


# -- DIA ---------------------------------------------------------------------------------------------------------------


def test_an_inversion_is_that_of_diffusers(model, pictures):
    settings = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    inverse = DDIMInverseScheduler.from_config(model.pipe.scheduler.config, **settings)
    inverse.set_timesteps(10)
    cond = model.embed([""])
    with torch.no_grad():
        z = want = model.encode(pictures[0][None])
        for t in inverse.timesteps:
            want = inverse.step(model.pipe.unet(want, t, cond.hidden).sample, t, want).prev_sample
        torch.testing.assert_close(walked(model, z, cond, 10, invert=True), want, atol=1e-4, rtol=1e-3)


def test_an_inversion_is_undone_if_the_predictions_are_the_same(model, monkeypatch):
    z, told = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(type(model), "predict", lambda self, noisy, t, cond: told * t / 1000)
    noise = walked(model, z, model.embed([""]), 7, invert=True)
    assert (noise - z).norm() > 1
    torch.testing.assert_close(walked(model, noise, model.embed([""]), 7), z, atol=1e-4, rtol=1e-4)


def test_a_few_steps_of_dia_cross_the_budget():
    dia = partial(DIA, aim="trajectory", sample_steps=2)
    assert dia(iterations=5).lengths(Linf(8), 5) == pytest.approx([3.2] * 5)
    assert dia(iterations=32).lengths(Linf(8), 32) == [1.0] * 32
    assert dia(iterations=5, step_size=0.5).lengths(Linf(8), 5) == [0.5] * 5


def objective_of_dia(model: LatentDiffusion, aim: str, y: Tensor, x: Tensor | None = None) -> Tensor:
    """Of the picture ``y``, with two steps; what is subtracted is of the picture ``x`` (None: ``y``)."""
    cond, x = model.embed([""]), y if x is None else x
    noise = walked(model, model.encode(y), cond, 2, invert=True)
    if aim == "trajectory":
        return (noise - model.encode(x)).norm()
    return 2 * (model.decode(walked(model, noise, cond, 2)) - x).norm()


@pytest.mark.parametrize("aim", ["trajectory", "reconstruction"])
def test_the_objective_of_dia_rises_on_the_saved_picture(model, pictures, aim):
    x = pictures[0][None]
    made = DIA(aim=aim, iterations=8, sample_steps=2, step_size=1.0).protect(make_owner([x[0]]), Linf(8), model, Run())
    with torch.no_grad():
        moved, clean = (float(objective_of_dia(model, aim, y)) for y in (images.as_saved(made[0])[None], x))
    assert moved > 1.05 * clean


@pytest.mark.parametrize("aim", ["trajectory", "reconstruction"])
def test_what_dia_subtracts_is_of_the_perturbed_picture_and_has_no_gradient(model, pictures, aim):
    """In the second step the perturbed picture is no longer the clean one."""
    watching, x = Watching(8), pictures[0][None]
    settings: dict[str, Any] = {"iterations": 2, "sample_steps": 2, "step_size": 4.0, "random_start": False}
    DIA(aim=aim, **settings).protect(make_owner([x[0]]), watching, model, Run())
    y = Linf(8).project(watching.moved[0], x).requires_grad_(True)

    def slope(subtracted: Tensor) -> Tensor:
        return torch.autograd.grad(objective_of_dia(model, aim, y, subtracted), y)[0]

    want = slope(y.detach())
    size = float(want.abs().max())
    torch.testing.assert_close(watching.gradients[1], want, atol=1e-3 * size, rtol=1e-3)
    for other in (y, x):
        assert float((slope(other) - want).abs().max()) > 0.01 * size


def test_dia_r_as_released_starts_at_the_clean_picture(node):
    starts = {name: node("protect", name).random_start for name in ("dia", "dia_r", "dia_released", "dia_r_released")}
    assert starts == {"dia": True, "dia_r": True, "dia_released": True, "dia_r_released": False}


# -- DiffVax -----------------------------------------------------------------------------------------------------------


def test_the_network_has_the_published_size_and_takes_any_picture():
    assert sum(p.numel() for p in UNetPlusPlus([32, 64, 128, 256, 512]).parameters()) == pytest.approx(9.2e6, rel=0.01)
    net = UNetPlusPlus([8, 16, 24])
    x = torch.rand(2, 3, 13, 22)
    assert net(x).shape == x.shape
    torch.testing.assert_close(net(x)[:1], net(x[:1]), atol=1e-5, rtol=1e-4)


def test_diffvax_s_first_loss_is_the_objective_written_out(model, pictures):
    """One picture; within a budget so large that the projection does nothing but keep colours in range."""
    run, losses = logged()
    method, owner = METHODS["diffvax"](batch=1, iterations=1), make_owner(pictures[:1])
    method.protect(owner, Linf(128), model, run)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=Run().rng("diffvax"))))
        net = UNetPlusPlus([8, 16])
    rng = Run().rng("diffvax", 0)
    torch.randint(1, (), generator=rng), torch.randint(1, (1,), generator=rng)
    noise, x = torch.randn(1, 4, 8, 8, generator=rng), pictures[0][None]
    m = centre(x)
    with torch.no_grad():
        change = (1 - m) * net((2 * x - 1) * (1 - m))
        moved = ((2 * x - 1 + change).clamp(-1, 1) + 1) / 2
        seen = Inpainting(model, Linf(128).project(moved, x), m)
        edit = 2 * seen.edited(model.embed(owner.prompts), model.embed([""]), noise, 2, 2.0) - 1
        want = (edit * m).abs().sum() / 3 / m.sum() + 4 * change.abs().sum() / 3 / (1 - m).sum()
    assert losses[0] == pytest.approx(float(want), rel=1e-3)


def test_diffvax_s_network_sees_nothing_of_what_is_painted_anew(pictures):
    x, m = pictures[0][None], centre(pictures[0][None])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = UNetPlusPlus([8, 16])
    changes = [perturbed(net, y, m) - y for y in (x, torch.where(m > 0, 1 - x, x))]
    torch.testing.assert_close(changes[0], changes[1], atol=1e-6, rtol=0)
    assert (changes[0] * m).abs().max() == 0 < changes[0].abs().max()


def test_diffvax_learns(model, pictures):
    run, losses = logged()
    METHODS["diffvax"](iterations=9, lr=1e-2, guidance=1.0).protect(make_owner(pictures[:1]), Linf(8), model, run)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_diffvax_goes_on_from_its_checkpoint(model, pictures, tmp_path):
    """Of a training of three steps, two of which were done."""
    owner, settings = make_owner(pictures[:2]), {"iterations": 3, "save_every": 2}
    run, losses = logged()
    whole = METHODS["diffvax"](**settings).protect(owner, Linf(8), model, replace(run, scratch=tmp_path))
    again, rest = logged()
    resumed = METHODS["diffvax"](**settings).protect(owner, Linf(8), model, replace(again, scratch=tmp_path))
    assert rest == losses[2:]
    assert again.count == run.count
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_class_pictures_train_diffvax_if_there_shall_be_any(model, pictures):
    """Then what is protected has no part in the training, but for its masks and prompts."""
    method, curves = METHODS["diffvax"](class_images=1), []
    assert "class_images" in method.needs
    assert "class_images" not in METHODS["diffvax"]().needs
    for x in pictures[:2]:
        run, losses = logged()
        owner = make_owner([x], ["0000.png"])
        owner.class_images = [pictures[2]]
        method.protect(owner, Linf(8), model, run)
        curves.append(losses)
    assert curves[0] == curves[1]


def test_more_steps_than_a_schedule_has_after_its_offset_are_refused_before_any_work(model):
    DIA(aim="trajectory", iterations=1, sample_steps=999).check_model(model)
    with pytest.raises(ValueError, match="dia, model tiny: sample_steps must be <= 999, given 1000"):
        DIA(aim="trajectory", iterations=1, sample_steps=1000).check_model(model)


def test_advpaint_refuses_a_start_at_which_nothing_differs():
    with pytest.raises(
        ValueError, match="advpaint: under the same noise the gradient at the clean picture is 0; give "
    ):
        AdvPaint(mask="centre", iterations=1, sample_steps=4, random_start=False)


def test_promptflare_listens_below_the_full_resolution_only(monkeypatch):
    layers = [SimpleNamespace(output=torch.zeros(1, places, 6)) for places in (64, 16)]
    monkeypatch.setattr("udpbench.protect.promptflare.read_attention", lambda unet, kind: nullcontext(layers))
    seen = SimpleNamespace(
        latents=torch.zeros(1, 4, 8, 8),
        anew=torch.ones(1, 1, 16, 16),
        first_prediction=lambda *given: None,
        model=SimpleNamespace(pipe=SimpleNamespace(unet=None)),
    )
    found = PromptFlare(mask="centre", iterations=1, sample_steps=4, prompt="a").heard(seen, None, None)
    assert [tuple(x.shape) for x in found] == [(1, 6, 4, 4)]
