"""Editing without training: the same noise for every arm, what a mask keeps, and the arms of a cell."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import EulerDiscreteScheduler
from PIL import Image
from shared import composed

from udpbench.benchmark.build import build
from udpbench.benchmark.cell import Part
from udpbench.benchmark.check import checked_graph
from udpbench.benchmark.keys import task_settings
from udpbench.benchmark.run import run
from udpbench.benchmark.stages import finite
from udpbench.benchmark.store import Store
from udpbench.core import images
from udpbench.core.errors import ConfigError
from udpbench.data.folder import Folder as FolderData
from udpbench.interfaces import Log, Run, Thief
from udpbench.metrics.edits import Edits
from udpbench.metrics.psnr import Psnr
from udpbench.metrics.ssim import Ssim
from udpbench.metrics.vif import Vif
from udpbench.models.latent import LatentDiffusion
from udpbench.models.sample import make_solver
from udpbench.results.gather import record_of
from udpbench.task.edit import Img2Img, Inpaint

PROMPTS = ["{class} in the snow", "{class} at night"]


def img2img(**settings) -> Img2Img:
    return Img2Img(**{"prompts": PROMPTS, "sample_steps": 4, "guidance": 2.0, "strength": 0.5, **settings})


def inpaint(**settings) -> Inpaint:
    return Inpaint(**{"prompts": PROMPTS[:1], "sample_steps": 3, "guidance": 2.0, "mask": "centre", **settings})


def edit(task, folder, out, model, run=None, draw="first", masks=None, clean=None):
    out.mkdir()
    thief = Thief(class_prompt="a photo of a ring", masks=masks, clean=clean)
    task.edit(folder, out, model, run or Run(), thief, draw)
    return images.read_folder(out)


def test_an_edit_is_sdedit(model, folder, pictures, tmp_path):
    """Against the equations: latents drawn from the posterior, noised to the start, DDIM with guidance to the end."""
    made = edit(img2img(prompts=PROMPTS[:1], guidance=3.0), folder, tmp_path / "made", model)
    rng = Run().rng("img2img", "first", "1.png", 0, 0)
    scheduler = make_solver("ddim", model.pipe.scheduler.config)
    scheduler.set_timesteps(4)
    left = scheduler.timesteps[2:]  # half of the steps
    with torch.no_grad():
        mean, std = model.moments(pictures[1][None])
        z = mean + std * torch.randn(mean.shape, generator=rng)
        z = scheduler.add_noise(z, torch.randn(z.shape, generator=rng), left[:1])
        yes, no = model.embed(["a photo of a ring in the snow"]).hidden, model.embed([""]).hidden
        for t in left:
            with_text, without = (model.pipe.unet(z, t, h).sample for h in (yes, no))
            z = scheduler.step(without + 3.0 * (with_text - without), t, z).prev_sample
        want = model.decode(z)[0]
    assert (made["1-00-00.png"] - images.as_saved(want)).abs().max() < 1.5 / 255


def test_draws_belong_to_the_edit_not_to_the_batch(model, folder, tmp_path):
    task = img2img(samples=2)
    whole = edit(task, folder, tmp_path / "whole", model)
    alone = edit(task, folder, tmp_path / "alone", model, Run(batch=1))
    other = edit(task, folder, tmp_path / "other", model, draw="second")
    seeded = edit(task, folder, tmp_path / "seeded", model, Run(seed=1))
    assert list(whole) == list(alone)
    assert len(whole) == task.generated_count(4) == 16
    assert all((whole[k] - alone[k]).abs().max() < 1.5 / 255 for k in whole)
    for others in (other, seeded):
        assert all(not torch.equal(whole[k], others[k]) for k in whole)
    assert not torch.equal(whole["0-00-00.png"], whole["0-00-01.png"])


def test_edits_that_are_there_are_kept(model, folder, tmp_path):
    out = tmp_path / "made"
    whole = edit(img2img(), folder, out, model)
    images.write_png(out / "1-00-00.png", torch.zeros(3, 16, 16))
    (out / "2-01-00.png").unlink()
    img2img().edit(folder, out, model, Run(batch=1), Thief(class_prompt="a photo of a ring"), "first")
    again = images.read_folder(out)
    assert not again["1-00-00.png"].any()
    assert (again["2-01-00.png"] - whole["2-01-00.png"]).abs().max() < 1.5 / 255


@pytest.mark.parametrize("repaint", ["inside", "outside"])
@pytest.mark.parametrize("latents", [4, 8])
def test_what_the_mask_keeps_is_the_round_trip(model, pictures, tmp_path, repaint, latents):
    """An object that fills the picture: kept whole (outside) it comes back as the autoencoder has it; else it does not.

    With four latent channels, as Stable Diffusion, and with eight, as the embedded model.
    """
    model = model if latents == 4 else LatentDiffusion("pkg:micro", "micro")
    names, x = [f"{i}.png" for i in range(len(pictures))], F.interpolate(torch.stack(pictures), model.size)
    for name, picture in zip(names, x, strict=True):
        images.write_png(tmp_path / "folder" / name, picture)
    images.write_masks(tmp_path / "masks", names, torch.ones(len(x), 1, model.size, model.size))
    made = edit(
        inpaint(mask="data", repaint=repaint), tmp_path / "folder", tmp_path / "made", model, masks=tmp_path / "masks"
    )
    with torch.no_grad():
        mean, std = model.moments(x)
        rngs = [Run().rng("inpaint", "first", name, 0, 0) for name in names]
        noise = torch.cat([torch.randn(mean[:1].shape, generator=g) for g in rngs])
        kept = model.decode(mean + std * noise).clamp(0, 1)
    far = max(float((made[f"{i}-00-00.png"] - kept[i]).abs().max()) for i in range(4))
    assert (far < 1.5 / 255) == (repaint == "outside"), far
    assert model.pipe.unet.config.in_channels == latents


def test_the_clean_picture_s_kept_part_lies_over_an_inpainting_and_nothing_else(model, folder, pictures, tmp_path):
    """Whatever was added to the picture: outside the hole an edit is the clean one; inside it is what was painted."""
    for name, x in zip(sorted(path.name for path in folder.glob("*.png")), pictures, strict=True):
        images.write_png(tmp_path / "protected" / name, (x + 8 / 255).clamp(0, 1))
    task = inpaint(mask="centre")
    bare = edit(
        inpaint(mask="centre", overlay_clean=False), tmp_path / "protected", tmp_path / "bare", model, clean=folder
    )
    over = edit(task, tmp_path / "protected", tmp_path / "over", model, clean=folder)
    anew = next(iter(task.repainted({"a": pictures[0]}, None).values())).bool().expand(3, -1, -1)
    for name, x in over.items():
        clean = images.read(folder / f"{name.split('-')[0]}.png")
        assert torch.equal(x[~anew], clean[~anew])
        assert torch.equal(x[anew], bare[name][anew])
        assert not torch.equal(bare[name][~anew], clean[~anew])
    alone = edit(img2img(), tmp_path / "protected", tmp_path / "whole", model)
    same = edit(img2img(), tmp_path / "protected", tmp_path / "same", model, clean=folder)
    assert all(torch.equal(alone[k], same[k]) for k in alone)


def test_fresh_noise_in_the_steps_is_the_edit_s_own(model, folder, tmp_path):
    still = edit(img2img(), folder, tmp_path / "still", model)
    noisy = edit(img2img(eta=1.0), folder, tmp_path / "noisy", model)
    alone = edit(img2img(eta=1.0), folder, tmp_path / "alone", model, Run(batch=1))
    assert all((noisy[k] - alone[k]).abs().max() < 1.5 / 255 for k in noisy)
    assert any((noisy[k] - still[k]).abs().max() > 4 / 255 for k in noisy)
    for wrong in ({"eta": 1.5}, {"eta": 0.5, "solver": "dpmpp"}):
        with pytest.raises(ValueError, match="eta must be 0 to 1 with ddim"):
            img2img(**wrong)


def test_a_unet_of_nine_channels_is_told_the_mask_and_what_it_keeps(model, folder, tmp_path, monkeypatch):
    """What it is given is the noisy latents, the mask at their size and the latents of the picture without the hole."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = type(model.pipe.unet).from_config({**model.pipe.unet.config, "in_channels": 9}).eval()
    nine, seen = model.having(unet=unet), []
    nine.to = lambda device: nine  # type: ignore[method-assign]
    real = unet.forward
    monkeypatch.setattr(unet, "forward", lambda x, *rest, **more: seen.append(x) or real(x, *rest, **more))
    whole = edit(inpaint(), folder, tmp_path / "whole", nine)
    assert {x.shape[1] for x in seen} == {9}
    anew = F.interpolate(inpaint().repainted({"a": torch.zeros(3, 16, 16)}, None)["a"][None], 8)
    assert torch.equal(seen[0][0, 4:5], anew[0])
    alone = edit(inpaint(), folder, tmp_path / "alone", nine, Run(batch=1))
    assert all((whole[k] - alone[k]).abs().max() < 1.5 / 255 for k in whole)
    inside = edit(inpaint(repaint="inside"), folder, tmp_path / "inside", nine)
    assert any(not torch.equal(whole[k], inside[k]) for k in whole)


@pytest.mark.parametrize("task", [inpaint(), img2img(prompts=PROMPTS[:1])], ids=lambda task: task.name)
def test_latents_are_not_clipped_where_the_folder_does_not_say(model, folder, tmp_path, task):
    """The same edits whether the folder's scheduler knows of clipping or, as Euler's, does not: DDIM would clip."""
    config = {k: v for k, v in model.pipe.scheduler.config.items() if k not in ("clip_sample", "_use_default_values")}
    silent = model.having(scheduler=EulerDiscreteScheduler.from_config(config))
    silent.to = lambda device: silent  # type: ignore[method-assign]
    assert "clip_sample" not in silent.pipe.scheduler.config
    want = edit(task, folder, tmp_path / "said", model)
    got = edit(task, folder, tmp_path / "silent", silent)
    assert all(torch.equal(got[name], x) for name, x in want.items())


def test_masks_are_the_middle_the_data_s_or_a_folder(pictures, tmp_path):
    x = dict(zip("ab", pictures, strict=False))
    middle = inpaint(repaint="inside").repainted(x, None)["a"]
    assert middle.sum() == 64
    assert torch.equal(inpaint().repainted(x, None)["a"], 1 - middle)
    images.write_masks(tmp_path, ["a.png", "b.png"], torch.stack([middle, 1 - middle]))
    for task, masks in ((inpaint(mask="data"), tmp_path), (inpaint(mask=str(tmp_path)), None)):
        assert torch.equal(task.repainted(x, masks)["a"], 1 - middle)
        assert torch.equal(task.repainted(x, masks)["b"], middle)
    with pytest.raises(ValueError, match="the data has no masks"):
        inpaint(mask="data").repainted(x, None)
    with pytest.raises(ValueError, match=r"there is no file .*c\.png"):
        inpaint(mask=str(tmp_path)).repainted({"c": pictures[0]}, None)


def test_a_mask_has_one_channel_and_the_size_of_its_picture_as_it_is_shown(pictures, tmp_path, monkeypatch):
    photos, masks = tmp_path / "photos", tmp_path / "home" / "masks"
    for folder in (photos, masks):
        folder.mkdir(parents=True)
    turned = Image.new("RGB", (20, 10))
    turned.getexif()[0x0112] = 6  # a camera held upright: shown as 10 x 20
    turned.save(photos / "a.jpg", exif=turned.getexif())
    Image.new("L", (10, 20)).save(masks / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    task = inpaint(mask="~/masks")
    data = FolderData(path=photos, prompt="a photo of a {token} ring")
    task.check_data(data)
    for wrong, said in (
        (Image.new("L", (20, 10)), "20 x 10, mode L"),
        (Image.new("RGBA", (10, 20)), "10 x 20, mode RGBA"),
    ):
        wrong.save(masks / "a.png")
        with pytest.raises(
            ValueError, match=f"a.png is {said}; a mask has one channel and the size of its picture, 10 x 20"
        ):
            task.check_data(data)


def test_a_folder_of_masks_is_in_the_key_by_its_contents(tmp_path):
    keys = []
    for name, value in (("one", 0.0), ("two", 0.0), ("three", 1.0)):
        images.write_masks(tmp_path / name, ["a.png"], torch.full((1, 1, 8, 8), value))
        settings = {"mask": str(tmp_path / name)}
        keys.append(task_settings(Part("inpaint", settings, inpaint(**settings)), "sampling_key"))
    assert keys[0] == keys[1] != keys[2]
    assert str(tmp_path) not in json.dumps(keys)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"prompts": []}, "at least one prompt"),
        ({"samples": 0}, "samples >= 1"),
        ({"strength": 0.0}, "strength must be above 0"),
        ({"strength": 1.5}, "strength must be above 0"),
        ({"strength": 0.1}, "leave a step"),
        ({"solver": "euler"}, "unknown solver"),
    ],
)
def test_wrong_settings_are_told_in_one_line(wrong, said):
    with pytest.raises(ValueError, match=said):
        img2img(**wrong)


@pytest.mark.parametrize("wrong", [{"mask": "nowhere"}, {"repaint": "all"}])
def test_wrong_masks_are_told_in_one_line(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        inpaint(**wrong)


def test_vif_is_one_for_equal_pictures_and_needs_41_pixels(tmp_path):
    x = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    for name, picture in (("a", x), ("b", (x + 0.1 * torch.randn(3, 64, 64)).clamp(0, 1)), ("c", x[:, :32, :32])):
        (tmp_path / name).mkdir()
        images.write_png(tmp_path / name / "0.png", picture)
    assert Vif()(tmp_path / "a", tmp_path / "a", Run())["vif"] == pytest.approx(1, abs=1e-4)
    assert 0 < Vif()(tmp_path / "b", tmp_path / "a", Run())["vif"] < 0.9
    with pytest.raises(ValueError, match="at least 41 x 41"):
        Vif()(tmp_path / "c", tmp_path / "c", Run())


def test_the_owner_s_wish_is_turned_round(folder):
    for of in (Psnr(), Ssim(), Vif()):
        assert Edits(of=of).scores == {f"edit_{name}": "down" for name in of.scores}
    assert Edits(of=Ssim())(folder, folder, Run()) == {"edit_ssim": pytest.approx(1)}
    assert finite(Edits(of=Psnr())(folder, folder, Run())) == {}  # infinite: absent


@pytest.mark.slow
def test_a_cell_of_edits(tiny, tmp_path):
    """Its arms, and that the clean arm is perfect against itself."""
    cfg = composed(
        tiny, "task=img2img", "task.sample_steps=2", "task.samples=1", "task.prompts=['{class} at night']", "protect=noise",
        "data.train=2", "attack=jpeg", "~metrics.bundle.edit_vif", "~metrics.bundle.edit_lpips", "~task.pictures",
    )  # fmt: skip
    graph = checked_graph(build(cfg, cfg.hydra.runtime.choices))
    store = Store(tmp_path, torch.device("cpu"), Log(), 8)
    record = record_of(graph, store, {}, run(graph, store))
    assert list(record["arms"]) == ["clean", "reseeded", "noise", "protected", "purified", "clean_attacked"]
    scores = {arm: {k: v["value"] for k, v in part["metrics"].items()} for arm, part in record["arms"].items()}
    assert scores["clean"]["edit_ssim"] == pytest.approx(1)
    assert "edit_psnr" not in scores["clean"]
    assert record["arms"]["clean"]["absent"] == {"edit_psnr": "the metric has no finite value here"}
    assert record["arms"]["protected"]["absent"] == {}
    for arm in ("reseeded", "protected", "purified", "clean_attacked"):
        assert scores[arm]["edit_ssim"] < 1
        assert math.isfinite(scores[arm]["edit_psnr"])
    assert scores["protected"] == scores["noise"]  # protect=noise is the noise control


@pytest.mark.slow
def test_metrics_of_edits_and_of_sets_do_not_mix(tiny):
    cfg = composed(tiny, "task=img2img", "metrics=micro", "~task.pictures")
    with pytest.raises(ConfigError, match="none can be computed .*kernel_distance: task img2img only makes edits"):
        checked_graph(build(cfg, cfg.hydra.runtime.choices))
    cfg = composed(tiny, "+metric@metrics.extra.edits=edit_ssim")
    with pytest.raises(ConfigError, match="makes no edits"):
        checked_graph(build(cfg, cfg.hydra.runtime.choices), asked_for=("edits",))


@pytest.mark.slow
def test_edits_too_small_for_a_metric_are_told_before_any_work(cell):
    made = cell("task=img2img", "~task.pictures")
    assert made.absent["edit_vif"] == "needs pictures of at least 41 x 41 px, edits are of 16"
    assert "pipe" not in vars(made.victim.component)
