"""Unconditional DDPM: sampling against diffusers, training from scratch, and data of which only a share is protected."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shared import write_cifar10
from tiny import save_tiny_pixel

from udpbench.benchmark.stages import mixed_stage
from udpbench.benchmark.store import Store
from udpbench.core import images
from udpbench.core.errors import ConfigError
from udpbench.interfaces import Log, Run
from udpbench.models.pixel import FreshPixel, PixelDiffusion
from udpbench.models.sample import sample_pixels
from udpbench.task.ddpm import Ddpm, load_pictures
from udpbench.world import renderer


@pytest.fixture(scope="module")
def pixels(tmp_path_factory) -> PixelDiffusion:
    return PixelDiffusion(str(save_tiny_pixel(tmp_path_factory.mktemp("pixel") / "ddpm")), "pixels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("train")
    truth = renderer.draw(6, torch.Generator().manual_seed(0))
    for i, x in enumerate(renderer.render(truth, 16)):
        images.write_png(out / f"{i}.png", x)
    return out


def ddpm(**settings) -> Ddpm:
    return Ddpm(**{"steps": 4, "lr": 1e-3, "batch": 3, "pictures": 3, "sample_steps": 3, **settings})


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_sampling_is_that_of_diffusers(pixels, solver):
    """One generator per picture, handed to diffusers' own pipeline."""
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline

    config = pixels.pipe.scheduler.config
    pipe = DDPMPipeline(pixels.pipe.unet, pixels.pipe.scheduler)
    if solver == "ddim":
        pipe = DDIMPipeline(pixels.pipe.unet, DDIMScheduler.from_config(config))
    pipe.set_progress_bar_config(disable=True)
    rngs = [Run().rng("sample", k) for k in (5, 6)]
    want = torch.from_numpy(pipe(2, rngs, num_inference_steps=4, output_type="np").images).permute(0, 3, 1, 2)
    got = torch.cat(list(sample_pixels(pixels, [5, 6], Run(batch=1), steps=4, solver=solver)))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_killed_and_resumed_is_uninterrupted(pixels, folder, tmp_path, monkeypatch):
    task = ddpm(save_every=2, ema=0.9, curve=[0.5, 1.0])
    real, calls = PixelDiffusion.loss, []

    def killing(self, *args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *args)

    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    task.train(folder, tmp_path / "whole", pixels, Run())
    monkeypatch.setattr(PixelDiffusion, "loss", killing)
    with pytest.raises(KeyboardInterrupt):
        task.train(folder, tmp_path / "cut", pixels, Run())
    monkeypatch.setattr(PixelDiffusion, "loss", real)
    task.train(folder, tmp_path / "cut", pixels, Run())
    for step in ("step_2", "step_4"):
        one, two = (
            load_file(tmp_path / n / step / "unet" / "diffusion_pytorch_model.safetensors") for n in ("whole", "cut")
        )
        assert all(torch.equal(one[k], two[k]) for k in one)


def test_from_scratch_starts_from_the_seed_and_fine_tuning_from_the_victim(pixels, folder, tmp_path):
    """No step moves the weights: what is saved is where the training started."""
    found = {}
    for name, settings, seed in (("one", {}, 0), ("same", {}, 0), ("other", {}, 1), ("copy", {"init": "copy"}, 0)):
        (tmp_path / name).mkdir()
        ddpm(steps=1, lr=0.0, weight_decay=0.0, **settings).train(folder, tmp_path / name, pixels, Run(seed=seed))
        found[name] = load_file(tmp_path / name / "step_1" / "unet" / "diffusion_pytorch_model.safetensors")
    weight = "conv_in.weight"
    assert torch.equal(found["one"][weight], found["same"][weight])
    assert not torch.equal(found["one"][weight], found["other"][weight])
    assert torch.equal(found["copy"][weight], pixels.pipe.unet.state_dict()[weight])
    again = PixelDiffusion(str(tmp_path / "one" / "step_1"), "again")  # what was trained is a model to go on from
    assert set(again.identity()) == {"unet", "scheduler", "dtype"}
    assert torch.equal(again.pipe.unet.state_dict()[weight], found["one"][weight])
    assert torch.equal(again.alpha_bar, pixels.alpha_bar)


@pytest.mark.slow
def test_half_of_the_pictures_are_mirrored(pixels, folder, monkeypatch, tmp_path):
    data = load_pictures(folder, 16, Run()).float() / 255
    plain, mirrored = ({tuple(x.flatten().tolist()) for x in d} for d in (data, data.flip(-1)))
    seen: list[torch.Tensor] = []
    real = PixelDiffusion.encode
    monkeypatch.setattr(PixelDiffusion, "encode", lambda self, x: seen.append(x) or real(self, x))
    for flip in (True, False):
        seen.clear()
        ddpm(steps=20, batch=8, flip=flip).train(folder, tmp_path / str(flip), pixels, Run())
        rows = [tuple(x.flatten().tolist()) for x in torch.cat(seen)]
        assert all(row in plain or row in mirrored for row in rows)
        share = sum(row in mirrored for row in rows) / len(rows)
        assert (0.35 < share < 0.65) if flip else share == 0


def test_fresh_weights_are_the_shape_and_the_seed():
    def made(**settings) -> FreshPixel:
        return FreshPixel(**{"name": "x", "size": 16, "widths": [8, 16], "groups": 4, "layers": 1, **settings})

    one, same, other = made(), made(), made(seed=1)
    assert one.identity() == same.identity() != other.identity()
    weights = [m.pipe.unet.conv_in.weight for m in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert one.size == 16
    assert list(one.pipe.unet.config.down_block_types) == ["DownBlock2D", "AttnDownBlock2D"]
    for wrong in ({"widths": [8, 9]}, {"size": 15}, {"layers": 0}, {"attention": [2]}):
        with pytest.raises(ValueError, match="model x: "):
            made(**wrong)


def test_attention_has_one_head():
    unet = FreshPixel("x", size=16, widths=[8, 16], groups=4, layers=1).pipe.unet
    assert {m.heads for m in unet.modules() if type(m).__name__ == "Attention"} == {1}


def test_what_the_untrained_model_makes_depends_on_where_training_starts():
    assert ddpm(init="random").sampling_key() != ddpm(init="copy").sampling_key()


def test_the_cifar_network_has_the_parameters_of_the_paper():
    """35.7 M (Ho et al. 2020, appendix B)."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from shared import CONF

    with initialize_config_dir(str(CONF), version_base="1.3"):
        conf = compose("config", overrides=["model=ddpm_cifar"]).model
    count = sum(p.numel() for p in instantiate(conf, _convert_="all").pipe.unet.parameters())
    assert count == pytest.approx(35.7e6, rel=0.01)


def test_a_victim_must_be_of_pixels(graph, tiny, tmp_path):
    pixel = save_tiny_pixel(tmp_path / "pixel")
    made = graph("task=ddpm", "data=toyworld", "model@victim=pixel", f"victim.path={pixel}").arms
    assert {"pretrained", "upper_bound", "clean", "protected"} <= made.keys()
    with pytest.raises(ConfigError, match="ddpm: needs a model of pixels, which victim local lacks"):
        graph("task=ddpm", "data=toyworld")


@pytest.mark.parametrize("fraction", [0.5, 0.8])
def test_a_fraction_of_the_pictures_is_protected(graph, tmp_path, fraction):
    made = graph("protect=noise", f"protected_fraction={fraction}", "data.train=10")
    store = Store(tmp_path, torch.device("cpu"), Log(), 8)
    protected = made.protected
    mixed = mixed_stage(made.cell, protected, made.data)
    store.do(mixed)
    clean = images.read_folder(store.path(protected.parents["data"]) / "train")
    changed, found = (images.read_folder(store.path(stage)) for stage in (protected, mixed))
    which = {k for k in clean if torch.equal(found[k], changed[k])}
    assert len(which) == round(10 * fraction)
    assert all(torch.equal(found[k], clean[k]) for k in clean.keys() - which)
    assert not any(torch.equal(clean[k], changed[k]) for k in clean)
    other = graph("protect=noise_rms", "protect@like=noise", f"protected_fraction={fraction}", "data.train=10")
    again = mixed_stage(other.cell, other.noise, other.data)
    store.do(again)
    others, noise = images.read_folder(store.path(again)), images.read_folder(store.path(again.parents["images"]))
    assert {k for k in clean if torch.equal(others[k], noise[k])} == which, "another method protects other pictures"


def test_a_fraction_of_one_is_no_stage_and_clean_arms_are_shared(graph):
    whole, some = graph("protect=noise"), graph("protect=noise", "protected_fraction=0.5")
    one, two = whole.arms, some.arms
    assert one["clean"].final.key == two["clean"].final.key
    assert one["protected"].final.key != two["protected"].final.key
    assert "protected_fraction" not in whole.cell.names
    assert some.cell.names["protected_fraction"] == 0.5
    for wrong in ("0", "1.5"):
        with pytest.raises(ConfigError, match="protected_fraction: must be a number above 0"):
            graph(f"protected_fraction={wrong}")


def test_an_attack_is_made_on_all_that_reached_the_thief(graph):
    """Half of it protected: he cannot tell which half."""
    some = graph("protect=noise", "attack=jpeg", "protected_fraction=0.5")
    made = some.arms
    mixed = mixed_stage(some.cell, some.protected, some.data)
    assert made["purified"].pictures.parents["images"].key == mixed.key
    for arm in ("purified", "clean_attacked"):
        assert made[arm].final.parents["model"].parents["images"].key == made[arm].pictures.key
    whole = graph("protect=noise", "attack=jpeg").arms
    assert made["clean_attacked"].final.key == whole["clean_attacked"].final.key
    assert made["purified"].final.key != whole["purified"].final.key


@pytest.mark.parametrize("wrong", [{"init": "zeros"}, {"solver": "euler"}, {"steps": 0}])
def test_wrong_settings_are_told_in_one_line(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ddpm(**wrong)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_study_at_cifar10_s_size_goes_on_slice_by_slice(tmp_path):
    """A slice that is too short ends with status 75 and keeps what is there; a long enough one finishes the table and
    does nothing twice."""
    small = {
        "data.root": write_cifar10(tmp_path / "cifar", per_class=(6, 10)),
        "data.train": 60,
        "data.reference": 50,
        "data.heldout": 50,
        "model.widths": "[8,8]",
        "model.groups": 4,
        "model.layers": 1,
        "task.steps": 4,
        "task.batch": 4,
        "task.warmup": 0,
        "task.dtype": "fp32",
        "task.pictures": 50,
        "task.sample_steps": 2,
        "protect": "eudp",
        "protect.rounds": 1,
        "protect.model_steps": 1,
        "protect.image_steps": 1,
        "protect.batch": 4,
        "protect.dtype": "fp32",
        "protected_fraction": "1.0,0.5",
        "seed": 0,
        "runtime.out": tmp_path / "out",
        "runtime.records": tmp_path / "records",
    }
    script = Path(__file__).parent.parent / "experiments" / "cifar10" / "slice.sh"
    said = [str(script), *(f"{k}={v}" for k, v in small.items())]
    environment = {**os.environ, "PYTHON": sys.executable}
    done: dict[Path, bytes] = {}
    for seconds in (8, 16, 32, 64):  # the shortest in which something gets finished
        short = subprocess.run(said, env={**environment, "SLICE": str(seconds)}, capture_output=True, text=True)
        assert short.returncode in (75, 76), short.stderr
        if short.returncode == 75 and (
            done := {path: path.read_bytes() for path in (tmp_path / "out").rglob("_stage.json")}
        ):
            assert "the same command goes on" in short.stdout
            break
    long = subprocess.run(said, env={**environment, "SLICE": "300"}, capture_output=True, text=True)
    assert long.returncode == 0, long.stdout + long.stderr
    assert len(list((tmp_path / "records").glob("*.json"))) == 2
    assert done
    assert {path: path.read_bytes() for path in done} == done, "which say how long each stage took"


@pytest.mark.parametrize(("made", "status"), [("_stage.json", 75), ("udp.ckpt", 75), ("locks", 76)])
def test_a_slice_that_leaves_nothing_to_go_on_from_says_so(tmp_path, made, status):
    """The child writes one file and waits to be asked to end, as a cell with a checkpoint is: by SIGTERM."""
    store = tmp_path / "a folder" / "store"
    store.mkdir(parents=True)
    (store / "checkpoint.pt").touch()  # of an earlier slice
    os.utime(store / "checkpoint.pt", (0, 0))
    child = tmp_path / "child"
    child.write_text(
        f"#!/bin/sh\ntouch '{store / made}'\ntrap 'echo asked; exit 143' TERM\nwhile :; do sleep 0.1; done\n"
    )
    child.chmod(0o755)
    script = Path(__file__).parent.parent / "experiments" / "cifar10" / "slice.sh"
    ended = subprocess.run(
        [script, f"runtime.out={store.parent}"],
        env={**os.environ, "PYTHON": str(child), "SLICE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == status, ended.stderr
    assert "asked" in ended.stdout
    assert ("give more than SLICE=1" in ended.stderr) == (status == 76)


def test_a_child_that_does_not_stop_ends_its_slice_all_the_same(tmp_path):
    child = tmp_path / "child"
    child.write_text("#!/bin/sh\nkill -9 $$\n")
    child.chmod(0o755)
    script = Path(__file__).parent.parent / "experiments" / "cifar10" / "slice.sh"
    for slice_s, status in (("0", 75), ("100", 137)):  # killed when the slice was over, and before
        ended = subprocess.run(
            [script, f"runtime.out={tmp_path}"],
            env={**os.environ, "PYTHON": str(child), "SLICE": slice_s},
            capture_output=True,
        )
        assert ended.returncode == status
