"""Wrong input: one line for each error, all of them at once, exit status 2, before anything is done."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from shared import composed, on, small
from tiny import TINY

from udpbench.benchmark.build import READ, build
from udpbench.benchmark.cell import Cell
from udpbench.benchmark.check import checked_graph
from udpbench.commands import executing
from udpbench.commands import run as command
from udpbench.core.device import prepare_device
from udpbench.core.errors import ConfigError
from udpbench.core.images import write_masks, write_png
from udpbench.models.shaped import random_pipeline
from udpbench.results.record import read_files, read_records

pytestmark = pytest.mark.slow  # every test composes a configuration or starts a process


@pytest.fixture(scope="module")
def base(tiny) -> DictConfig:
    """A composition, which takes a while, to be copied by tests that only change values."""
    return composed(tiny)


@pytest.fixture
def changed(base):
    """Values by key -> the cell of ``base`` with those."""

    def make(values: dict[str, Any]) -> Cell:
        cfg = copy.deepcopy(base)
        OmegaConf.set_readonly(cfg, False)
        for key, value in values.items():
            OmegaConf.update(cfg, key, value)
        return checked_graph(build(cfg, base.hydra.runtime.choices)).cell

    return make


@pytest.fixture
def wrong(tiny, tmp_path, monkeypatch, capsys):
    """Overrides -> the lines that the command says before it ends with status 2."""

    def run(*overrides: str) -> list[str]:
        base = [*small(tiny), f"runtime.out={tmp_path / 'out'}"]
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(sys, "argv", ["udpbench", *base, *overrides])
        with pytest.raises(SystemExit) as end:
            command.run()
        assert end.value.code == 2
        assert not (tmp_path / "out" / "store").exists()
        assert not (tmp_path / "out" / "records").exists()
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        return err.splitlines()

    return run


COMMANDS = {
    "protect=foo": "error: no protect 'foo'; python -m udpbench list protect shows all ",
    "protect=eudb": "error: no protect 'eudb'; did you mean eudp? python -m udpbench list protect shows all ",
    "protect.iterations=1": "error: no setting 'protect.iterations'; allowed are rounds, model_steps, image_steps, ",
    "protect.image_step=1": "error: no setting 'protect.image_step'; did you mean image_steps",
    "protect.rounds.most=1": "error: no setting 'protect.rounds.most'; there are none here",
    "task.betas=[0,0]": "error: task.betas: its YAML does not name it; +task.betas=VALUE does",
    "data.subjct=1": "error: no setting 'data.subjct'; did you mean subject? allowed are subject, size, ",
    "runtime.treads=1": "error: no setting 'runtime.treads'; did you mean threads or records? allowed are device, ",
    "metrics.bundle.kernel_distance.features.blur=1": "features.blur'; allowed are size, blur_sigma",
    "protct=udp": "error: no setting or group 'protct'; did you mean protect? python -m udpbench --help shows all",
    "protect=": "error: no protect ''; python -m udpbench list protect shows all ",
    "+protect.steps=1": "error: eudp: steps is no setting; did you mean ",
    "+metrics.bundle.kernel_distance.features.blur=1": "error: kernel_distance: features.blur is no setting; allowed are size, ",
    "+track.foo=1": "error: track: foo is no setting; ",
    "+runtime.treads=1": "error: no setting 'runtime.treads'; did you mean threads or records? allowed are device, ",
    "+metrics.extras.vif=1": "error: no setting 'metrics.extras'; did you mean extra? allowed are bundle, extra, primary",
    "+sede=1": "error: no setting 'sede'; did you mean seed? allowed are ",
    "no_equals_sign": "error: ",
    "budget.eps=0": "error: budget linf: eps (of 255) must be 1 to 128, given 0",
    "task.solver=euler": "error: dreambooth: unknown solver 'euler'; allowed are dpmpp, ddim",
    "+metric@metrics.extra.fd=fd_efflite0": "error: metric fd: needs 1000 pictures a side, there are 6",
    "protect=noise_rms": "error: protect=noise_rms: say whose strength it shall match, e.g. protect@like=eudp",
    "protect=folder": "error: folder: give protect.path=...",
    "runtime.device=tpu": "error: runtime.device: 'tpu' cannot be used",
    "protect._target_=no.such.Thing": "error: eudp: no module 'no' for no.such.Thing; put its folder on PYTHONPATH",
    "track._target_=no.such.Thing": "error: track: no module 'no' for no.such.Thing; put its folder on PYTHONPATH",
    "track._target_=''": "error: track: Empty path",
    "metrics.bundle.kernel_distance.features._target_=no.such.Thing": "error: kernel_distance: no module 'no' for no.such.Thing; put its folder on PYTHONPATH",
    "runtime.batch=0": "error: runtime.batch: must be a whole number >= 1, given 0",
    "runtime.low_memory=some": "error: runtime.low_memory: must be true or false, given 'some'",
    "runtime.workers=none": "error: runtime.workers: must be a whole number from 1 to 256, given 'none'",
    "runtime.grad_batch=0": "error: runtime.grad_batch: must be a whole number >= 1, given 0",
    "runtime.threads=two": f"error: runtime.threads: must be a whole number from 1 to {os.cpu_count()}, given 'two'",
    "runtime.store=/dev/null": "error: runtime.store: /dev/null is no folder; give another",
    "runtime.records=/dev/null/records": "error: runtime.records: /dev/null is no folder; give another",
    "data.size=100000": "error: data toyworld: pictures of 100000 x 100000 px have more pixels than runtime.max_pixels, 200,000,000; give a smaller data.size",
    "runtime.device=meta": "error: runtime.device: 'meta' cannot be used (no device to compute on: meta)",
    "metrics.primary=[kd_typo]": "error: metrics.primary: unknown kd_typo; allowed are ",
    "metrics.primary=kd_efflite0": "error: metrics.primary: must be a list, given 'kd_efflite0'",
    "metrics=pairs": "error: metrics: none can be computed for this cell (size: compares a changed picture with its",
    "metrics=edits": "error: metrics: none can be computed for this cell (edit_ssim: task dreambooth makes no edits",
    "+metric@perturbation.bundle.judge=judge": "error: metric judge: does not compare a changed picture with its original",
    "~attack": "error: attack: must have one option, no list of them and not none at all",
    "eps=8": "error: no setting or group 'eps'; did you mean budget.eps?",
    "budget=4": "error: a group must be set to one of its options, not to a number; python -m udpbench --help lists them; a number is",
    "protect=null": "error: a group must be set to one of its options, not to null; python -m udpbench --help lists them",
    "protect=EUDP": "error: no protect 'EUDP'; did you mean eudp or udp?",
    "hydra.searchpath=[file:///no/such]": "error: hydra.searchpath: there is no folder /no/such",
    "--protect": "error: unknown option --protect; settings are written GROUP=OPTION, such as protect=eudp",
    "track=mlflow": "error: no track 'mlflow'; allowed are jsonl, none, ",
}


@pytest.mark.parametrize("override", COMMANDS)
def test_a_wrong_command_gives_its_line_and_status_2(wrong, override):
    (line,) = wrong(override)
    assert line.startswith("error: ")
    assert COMMANDS[override] in line


VALUES = [
    ("budget.eps", 300, "budget linf: eps (of 255) must be 1 to 128, given 300"),
    ("budget.eps", "eight", "given 'eight'"),
    ("task.lr", "fast", "dreambooth: lr must be a number, given 'fast'"),
    ("task.steps", 1.5, "dreambooth: steps must be a whole number, given 1.5"),
    ("task.steps", True, "dreambooth: steps must be a whole number, given True"),
    ("task.curve", 1.0, "dreambooth: curve must be a list, given 1.0"),
    ("task.steps", 0, "dreambooth: steps, batch, pictures and sample_steps must be >= 1, given 0"),
    (
        "model.path",
        "/no/such/folder",
        "model local: no folder '/no/such/folder'; give a Stable-Diffusion-shaped folder, or",
    ),
    ("model.dtype", "fp16", "model local: unknown dtype 'fp16'; allowed are fp32, bf16"),
    ("owner_prompt", "thief", "owner_prompt: unknown thief; allowed are class, data, empty"),
    ("arms", ["clean", "dirty"], "arms: unknown dirty; allowed are pretrained, clean"),
    ("arms", 3, "arms: must be a list, given 3; allowed in it are pretrained"),
    ("arms", "clean", "arms: must be a list, given 'clean'"),
    ("protected_fraction", "half", "protected_fraction: must be a number above 0 and at most 1, given 'half'"),
    ("protected_fraction", 0, "protected_fraction: must be a number above 0 and at most 1, given 0"),
    ("seed", -1, "seed: must be a whole number >= 0, given -1"),
    ("seed", "one", "seed: must be a whole number >= 0, given 'one'"),
    (
        "metrics.bundle.kernel_distance.features.blur_sigma",
        "much",
        "kernel_distance: features.blur_sigma must be a number, given 'much'",
    ),
    ("protect.rounds", "many", "eudp: rounds must be a whole number, given 'many'"),
    ("protect.step_size", 0, "eudp: step_size must be > 0, given 0"),
    ("protected_fraction", 0.01, "protected_fraction: 0.01 of 6 training pictures is none"),
    ("protected_fraction", True, "protected_fraction: must be a number above 0 and at most 1, given True"),
    ("arms", ["purified"], "arms: none of ['purified'] means anything for protect=eudp attack=none task=dreambooth"),
    ("arms", [], "arms: none of [] means anything"),
    (
        "protect.times",
        "cosine",
        "unknown time distribution 'cosine'; allowed are uniform, sqrt_alpha_bar, alpha_bar, snr",
    ),
    ("data.subject", -1, "subject: -1 is not a subject"),
    ("task.sample_steps", 1001, "dreambooth, model local: sample_steps must be <= 1000, given 1001"),
]


@pytest.mark.parametrize(("key", "value", "told"), VALUES)
def test_a_wrong_value_gives_its_line(changed, key, value, told):
    with pytest.raises(ConfigError) as error:
        changed({key: value})
    (line,) = str(error.value).splitlines()
    assert told in line


@pytest.mark.parametrize("wrapper", ["consistent", "eot", "ensemble"])
def test_noise_can_be_as_strong_as_a_protection_that_is_made_of_another(cell, wrapper):
    made = cell("protect=noise_rms", f"protect@like={wrapper}")
    assert type(made.like.component.inner).__name__ == "EUDP"
    made = cell("protect=noise_rms", f"protect@like={wrapper}", "protect@inner=aspl")
    assert type(made.like.component.inner).__name__ == "ASPL"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["attack=impress_glaze"], "lpips_vgg: weights are missing; put https://"),
        (["attack=impress_glaze", "attack.weights=/no/file"], "lpips_vgg: there is no file /no/file; the weights are https://"),
        (["+metric@metrics.extra.kid=kid", "task.pictures=64"], "error: metric kid: inception: weights are missing; put https://"),
        (["~task.steps"], "error: dreambooth: give steps=..."),
        (["attack=[jpeg,nothing]"], "error: no attack 'nothing'; python -m udpbench list attack shows all"),
        (["attack=[jpeg,webp]"], "error: attack: must have one option, no list of them and not none at all; -m attack=A,B is a grid"),
        (["attack=chain", "attack.members=[jpeg]"], "attack.members=[jpeg]: Cannot merge DictConfig with ListConfig"),
        (["protect=folder", f"protect.path={__file__}"], f"error: images: {__file__} is no folder; give the one it is in"),
        (["protect=folder", "protect.path=/no/such/folder"], "error: images: there is no folder /no/such/folder"),
        (["data=folder", "data.path=/no/such/folder", "data.prompt='a {token} dog'", "~data.size"], "there is no folder /no/such/folder"),
        (["data=photos", "data.size=16", "+metric@metrics.extra.judge=judge"], "error: metric judge: data photos has no truth"),
        (["data=photos", "data.size=16", "+metric@metrics.extra.kd=kd_efflite0"], "error: metric kd: data photos has references that overlap"),
        (["task=inpaint", "~task.pictures", "data=photos", "data.size=16"], "error: inpaint: the data has no masks; give task.mask=centre"),
        (["protect=promptflare", "data=photos", "data.size=16"], "error: promptflare: the data has no masks; give protect.mask=centre"),
        (["task=img2img", "~task.pictures", "protected_fraction=0.5"], "error: protected_fraction: task img2img edits pictures and trains on none, so clean ones cannot be mixed in"),
        (["attack=impress", "model@purifier=ddpm32"], "error: impress: needs an autoencoder, which purifier ddpm32 lacks; choose model@purifier="),
        (["task=textual_inversion", "data.token=xyz"], "error: textual_inversion: learns the word 'sks' for the subject, but the data calls its subject 'xyz'; give task.word=xyz"),
        (["task=textual_inversion", "data=toyworld_many"], "error: textual_inversion: learns the word 'sks' for the subject, but the data has none"),
        (["task=ddpm", "model@surrogate=ddpm32", "model@victim=ddpm32", "protect=udp"], "error: udp: starts from the weights of surrogate ddpm32, which has learned nothing; let it start from random ones, or"),
        (["task=ddpm", "model@surrogate=ddpm32", "model@victim=ddpm32", "task.init=copy", "protect=none"], "error: ddpm: starts from the weights of victim ddpm32, which has learned nothing; let it start from random ones, or"),
        (["protect=noise_rms", "protect@like=glaze_released"], "error: lpips_vgg: weights are missing"),
        (["protect=eot", "protect@inner=glaze_released"], ", or say inner.weights=FILE"),
        (["task=ddpm", "model@surrogate=ddpm32", "model@victim=ddpm32", "protect=noise_rms", "protect@like=advdm"], "error: advdm: needs"),
        (["attack=best_of", "attack.score=denoising", "task=ddpm", "protect=none", "model@surrogate=ddpm32", "model@victim=ddpm32", "model@purifier=ddpm32"], ": starts from the weights of purifier ddpm32, which has learned nothing"),
        (["protect=noise_rms", "protect@like=noise_rms"], "error: protect@like=noise_rms: has no strength of its own"),
        (["+metric@metrics.extra.kd=kd_efflite0", "metrics.extra.kd.features.blur_sigma=0", "task.pictures=64"], "error: metrics: kernel_distance and kd both give the score kd_efflite0; leave one out"),
        (["+metric@perturbation.bundle.lpips=lpips_alex"], "error: metric lpips: lpips_alex: weights are missing; put https://"),
    ],
)  # fmt: skip
def test_what_is_missing_is_told_before_any_work(wrong, overrides, told, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (line,) = wrong(*overrides)
    assert line.startswith("error: ")
    assert told in line


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["task=img2img", "~task.pictures", "data.prompt=null"], "error: data folder: {folder}/b.png has no caption; give prompt, such as"),
        (["task=img2img", "~task.pictures", "data.prompt='a dog'"], "error: data folder: give class_prompt, or put {{token}} where"),
        (["task=textual_inversion", "data.prompt='a {{token}} dog'", "task.word=sks"], "error: textual_inversion: the prompt 'a dog' lacks the word 'sks' (task.word)"),
        (["task=inpaint", "~task.pictures", "task.mask={masks}"], "error: inpaint: b.png has no mask; put b.png into {masks}"),
    ],
)  # fmt: skip
def test_what_a_folder_lacks_is_told_before_any_work(wrong, overrides, told, tmp_path, pictures):
    folder, masks = tmp_path / "mine", tmp_path / "masks"
    folder.mkdir()
    for name, x in zip("ab", pictures, strict=False):
        write_png(folder / f"{name}.png", x)
    write_masks(masks, ["a.png"], pictures[0][None, :1])
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a dog"}\n')
    rest = ["data=folder", f"data.path={folder}", "data.prompt='a {token} dog'", "~data.size"]
    (line,) = wrong(*rest, *(words.format(masks=masks) for words in overrides))
    assert line.startswith(told.format(folder=folder, masks=masks))


def test_a_unet_that_takes_masks_inpaints_and_is_asked_for_nothing_else(wrong, cell, tmp_path):
    folder = tmp_path / "nine"
    random_pipeline(TINY | {"unet": TINY["unet"] | {"in_channels": 9}}).save_pretrained(folder)
    words = ["~task.pictures", "model@victim=local", f"victim.path={folder}"]
    assert cell("task=inpaint", *words).victim.component.capabilities == {"inpaint", "latent", "text"}
    (line,) = wrong("task=img2img", *words)
    assert line.startswith(
        "error: img2img: needs a UNet that takes nothing beside its noisy input, which victim local lacks"
    )


@pytest.mark.slow
def test_sending_without_a_key_is_told_before_any_work(wrong, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    line = wrong("track=wandb", "track.mode=online")[-1]
    assert line.startswith("error: track wandb: no API key for mode online; run `wandb login`, or take track.mode=off")


def test_the_settings_that_somebody_reads_are_those_of_the_configuration(base):
    """Composed, nothing is refused; what another setting refers to is read."""
    for at, allowed in READ.items():
        assert {str(key) for key in (base[at] if at else base)} <= set(allowed)
    cfg = copy.deepcopy(base)
    OmegaConf.set_struct(cfg, False)
    cfg.n, cfg.runtime.batch = 7, "${n}"
    build(cfg, base.hydra.runtime.choices)


def test_all_errors_are_told_at_once(wrong):
    lines = wrong(
        "runtime.batch=0",
        "budget.eps=300",
        "owner_prompt=thief",
        "task.solver=euler",
        "model.path=/no/such/folder",
        "seed=-1",
        "protect.times=cosine",
    )
    assert len(lines) == 7
    for part in (
        "runtime.batch",
        "budget linf",
        "owner_prompt",
        "solver",
        "/no/such/folder",
        "seed",
        "time distribution",
    ):
        assert sum(part in line for line in lines) == 1, part
    assert all(line.startswith("error: ") for line in lines)


@pytest.mark.slow
def test_the_real_command_says_the_same(tiny, tmp_path):
    command = [
        sys.executable,
        "-m",
        "udpbench",
        *on(tiny),
        "budget.eps=300",
        f"runtime.out={tmp_path}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: budget linf: eps (of 255) must be 1 to 128, given 300\n"
    assert done.stdout == ""


# -- what is right -----------------------------------------------------------------------------------------------------


def test_one_model_for_all_roles_is_one_object(cell, tiny):
    made = cell()
    assert made.surrogate is made.victim is made.purifier
    assert "pipe" not in vars(made.victim.component), "building loads nothing"
    other = cell("model@victim=local", f"victim.path={tiny}", "victim.name=another")
    assert other.surrogate is other.purifier
    assert other.victim is not other.surrogate
    assert other.victim.component.name == "another"


def test_names_say_what_was_chosen(cell):
    names = cell("protect=udp", "attack=jpeg", "budget=rms", "budget.eps=5", "data.subject=3", "seed=7").names
    assert names == {
        "data": "toyworld", "subject": "3", "budget": "rms_5", "protect": "udp", "attack": names["attack"], "task": "dreambooth",
        "surrogate": "local", "victim": "local", "purifier": "local", "owner_prompt": "class", "seed": 7,
    }  # fmt: skip
    assert names["attack"].startswith("jpeg")


def test_a_bundle_s_metric_that_cannot_be_computed_is_absent_with_its_reason(cell):
    made = cell()
    assert made.absent["kernel_distance"] == "needs 50 pictures a side, there are 6"
    assert made.absent["frechet_distance"] == "needs 1000 pictures a side, there are 6"
    assert "judge" in made.metrics
    assert not set(made.absent) & set(made.metrics)


@pytest.mark.parametrize(
    ("values", "there_are"),
    [
        ({"data.reference": 20}, "20"),
        ({"data.heldout": 30}, "30 (data.heldout)"),
        ({"data.heldout": 30, "arms": ["clean"]}, None),
        ({"data.validation": 40}, None),
        ({"data.validation": 40, "task.curve": [0.5, 1.0]}, "40 (data.validation)"),
    ],
)
def test_the_smallest_set_that_would_be_compared_decides(changed, values, there_are):
    made = changed({"task.pictures": 60, **values})
    assert made.absent.get("kernel_distance") == (there_are and f"needs 50 pictures a side, there are {there_are}")


def test_validation_pictures_count_only_for_scores_that_the_thief_chooses_by(changed):
    few = {
        "task.pictures": 250,
        "data.reference": 250,
        "data.heldout": 250,
        "data.validation": 40,
        "task.curve": [1.0, 2.0],
    }
    absent = changed(few).absent
    assert absent["kernel_distance"] == "needs 50 pictures a side, there are 40 (data.validation)"
    assert "precision_recall" not in absent


def test_photographs_have_no_set_scores(cell):
    made = cell("data=photos", "data.size=16", "task.pictures=64", "data.reference=64")
    assert {k for k in made.absent if "overlap" in made.absent[k]} == {"kernel_distance"} | {
        k for k in made.absent if k.startswith(("frechet", "precision", "density"))
    }
    assert list(made.metrics) == ["similarity"]


def test_pictures_of_one_s_own(cell, tmp_path, pictures):
    from udpbench.core import images

    for i, x in enumerate(pictures):
        images.write_png(tmp_path / f"{i}.png", x)
    made = cell("data=folder", f"data.path={tmp_path}", "data.prompt='a {token} dog'", "~data.size")
    assert made.data.component.sizes == {"train": 4, "reference": 0}
    assert made.absent["kernel_distance"] == "data folder has no reference pictures (data.reference)"
    assert made.unranked.startswith("data folder has no reference pictures (data.reference); ")
    assert cell().unranked is None


def test_errors_of_build_are_one_line_each(changed):
    with pytest.raises(ConfigError) as error:
        changed({"budget.eps": 300, "task.solver": "euler"})
    assert len(str(error.value).splitlines()) == 2


def test_a_finished_record_survives_a_failure_to_show_it(tiny, tmp_path, monkeypatch, capsys):
    def closed(*_, **__):
        raise BrokenPipeError("the reader has gone")

    words = [*small(tiny), "protect=none", "arms=[pretrained]", "runtime.device=cpu", f"runtime.out={tmp_path}"]
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["udpbench", *words])
    monkeypatch.setattr(executing, "_show", closed)
    with pytest.raises(SystemExit) as end:
        command.run()
    assert end.value.code == 1
    (record,) = read_records(tmp_path / "records")
    assert record["status"] == "ok"
    assert "the reader has gone" in (said := capsys.readouterr().err)
    assert "the record is complete" in said

    # What fails later, the work having been removed, is told beside it, whatever else lies there; and so it is though the
    # tracker fails, too.
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "records" / "broken.json").write_text("{")
    monkeypatch.setattr("udpbench.optim.tuning.Tuning.generate", closed)
    monkeypatch.setattr("udpbench.tracking.track.Nothing.finish", closed)
    monkeypatch.setattr(sys, "argv", ["udpbench", *words])
    with pytest.raises(SystemExit) as end:
        command.run()
    assert end.value.code == 1
    assert "error: BrokenPipeError: the reader has gone" in capsys.readouterr().err
    (tmp_path / "records" / "broken.json").unlink()
    records = {path.stem.endswith("-failed"): r["status"] for path, r in read_files(tmp_path / "records").items()}
    assert records == {True: "failed", False: "ok"}


def test_devices_that_are_there():
    assert prepare_device("cpu").type == "cpu"
    assert prepare_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
