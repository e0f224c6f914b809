"""A model brings settings of its family to every protection, attack, task and metric bundle."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from shared import CONF, composed, family_options, options

from udpbench.benchmark.build import build
from udpbench.benchmark.cell import Cell
from udpbench.benchmark.check import check_alone, checked_graph
from udpbench.commands.preparing import check_members
from udpbench.core.errors import ConfigError

SD = ["model=local", "data=folder"]  # model=local is shaped like Stable Diffusion
RELEASED = [f"{group}/{option}" for group in ("protect", "attack") for option in options(group)
            if "_released" in option or option.startswith("impress_")]  # fmt: skip
# What a model changes nothing of: 100 image gradients in steps of the budget's own size; purifications at published settings.
COUNTED = {
    "protect": ("advdm", "photoguard", "photoguard_diffusion", "mist", "sds", "pid", "dct_shield", "blurguard", "uemask",
                "advpaint", "dia", "dia_r", "diffusionguard"),
    "attack": ("sdedit", "sdedit_denoise", "vae_roundtrip", "best_of"),
}  # fmt: skip

# What was published for Stable Diffusion.
ANTI_DREAMBOOTH = {"lr": 5e-7, "batch": 2, "weight_decay": 0.01, "train_text_encoder": True}  # ICCV 2023, its scripts
FSMG = {
    "lr": 5e-7,
    "batch": 2,
    "clean_steps": 1000,
    "class_images": 200,
    "prior_weight": 1.0,
    "train_text_encoder": True,
}
# ASPL: 50 rounds of 3 steps on clean and 3 on perturbed pictures, one in a step, are 150 of each.
ASPL = {**FSMG, "batch": 1, "rounds": 10, "clean_steps": 15, "model_steps": 15}
ACE = {"rounds": 5, "lr": 1e-4, "batch": 1, "lora_rank": 4, "lora_layers": "ace", "train_text_encoder": False}
PUBLISHED: dict[str, dict[str, Any]] = {
    # Anti-DreamBooth: 1,000 steps of its evaluation, weight 1 on 200 class pictures, guidance 7.5.
    "task/dreambooth": {**ANTI_DREAMBOOTH, "steps": 1000, "prior_weight": 1.0, "prior_images": 200, "guidance": 7.5},
    # ASPL: 50 rounds of 3 steps on the protected pictures; here 150 steps in as many rounds as image steps allow.
    "protect/udp": {**ANTI_DREAMBOOTH, "rounds": 5, "model_steps": 30, "image_steps": 10, "samples": 2},
    "protect/eudp": {**ANTI_DREAMBOOTH, "rounds": 5, "model_steps": 30, "image_steps": 10, "samples": 2},
    "protect/fsmg": FSMG,
    "protect/aspl": ASPL,
    "protect/simac": {**ASPL, "keep": 100, "feature_weight": 0.0},
    "protect/simac_paper": {**ASPL, "keep": 100, "feature_weight": 1.0},
    "protect/disdiff": ASPL,
    "protect/hf_adb": ASPL,
    "protect/ensemble_aspl": ASPL,
    "protect/ensemble_fsmg": FSMG,
    "protect/metacloak": {**FSMG, "batch": 1, "sigma": [0.1, 2.0], "radius": 3},  # torchvision's blur of 7 px
    "protect/eot": {"sigma": 2.0},  # its largest
    "protect/caat": {"lr": 1e-5},
    "protect/pap": {"text_rate": 250.0},
    "protect/anti_diffusion": {"lr": 5e-7},
    # CAT (ICML 2025), IMPRESS++ (IMPRESS's own numbers), INSIGHT's run script, MetaCloak's test with blur.
    "attack/cat": {"rank": 128, "steps": 10000, "lr": 1e-4, "batch": 4},
    "attack/impress_pp": {"iterations": 3000, "lr": 0.01, "distance_budget": 0.1, "perceptual": "lpips_vgg"},
    "attack/insight": {"iterations": 500, "lr": 0.05, "distance_budget": 0.1, "perceptual": "lpips_vgg"},
    "attack/robust_augment": {"blur": 2.0, "radius": 3},
    "attack/udap": {"iterations": 100, "lr": 0.05, "kernel": 9, "blur": 12.0, "enough": 0.004},
    "attack/median_blur": {"window": 7},  # CopyrightMeter's, at 512 px
    # IMPRESS (NeurIPS 2023), its scripts: Glaze with 30 beside latents of variance 1 / 0.18215^2.
    "protect/glaze": {"alpha": pytest.approx(30 * 0.18215**2, abs=1e-3), "distance_budget": 0.05, "lr": 0.01,
                      "perceptual": "lpips_vgg", "style_prompt": "Cubism by Picasso style", "strength": 0.5,
                      "guidance": 7.5, "img2img_steps": 50, "sample_latents": True, "iterations": 100},
    # ACE and Mist v2, their code: a LoRA of rank 4 trained on one picture a step, with 200 or 50 class pictures.
    "protect/ace": {**ACE, "model_steps": 5, "class_images": 200, "prior_weight": 1.0, "first_time": 600},
    "protect/ace_plus": {**ACE, "model_steps": 5, "class_images": 200, "prior_weight": 1.0, "latent_weight": 100},
    "protect/mist_v2": {**ACE, "model_steps": 10, "class_images": 50, "prior_weight": 0.1, "first_time": 0},
    "protect/promptflare": {"prompt": "professional photography, best quality, ultra high res, photo, art, high quality, "
                            "realistic, anime, masterpiece, best quality, artistic, detail, 4k, 8k"},
    "protect/diffvax": {"widths": [32, 64, 128, 256, 512]},
    "attack/impress": {"iterations": 3000, "lr": 0.01, "alpha": 0.1, "distance_budget": 0.1, "start_noise": 0.1,
                       "perceptual": "lpips_vgg"},
    "task/style_finetune": {"steps": 500, "lr": 5e-6, "batch": 32, "ema": 0.9999, "train_text_encoder": False,
                            "prior_weight": 0.0, "sample_steps": 100, "guidance": 7.5},
    "task/inpaint": {"sample_steps": 50, "guidance": 7.5, "eta": 1.0, "samples": 1},
    "task/img2img": {"sample_steps": 50, "guidance": 7.5},
    # diffusers' examples: train_dreambooth_lora, train_text_to_image_lora, textual_inversion (5e-4 x batch of 4).
    "task/dreambooth_lora": {"steps": 500, "lr": 1e-4, "batch": 1, "rank": 4, "prior_weight": 0.0},
    "task/style_lora": {"lr": 1e-4, "rank": 4, "layers": "attention"},
    "task/textual_inversion": {"steps": 3000, "lr": 2e-3, "batch": 4, "vectors": 1, "ema": 0.0, "clip_norm": 0.0},
    "attack/super_resolution": {"upscale_steps": 75, "guidance": 9.0, "noise_level": 20},
    "attack/noisy_upscale": {"upscale_steps": 75, "guidance": 9.0, "noise_level": 320, "std": 25.5},
    "attack/pdm_pure": {"t": 100, "steps": 10, "less": 5, "upscale_steps": 50, "guidance": 4.0, "prompt": "a picture",
                        "upscale_solver": "ddpm"},
    "attack/bridge": {"noise": 1.0},
}  # fmt: skip


def of_the_command_line(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=True)


@pytest.mark.parametrize("name", PUBLISHED)
def test_stable_diffusion_has_the_published_settings(node, name):
    got = node(*name.split("/"), "sd")
    assert {key: got[key] for key in PUBLISHED[name]} == PUBLISHED[name]


def test_every_setting_of_stable_diffusion_is_compared_with_what_was_published():
    assert {name.removeprefix("sd/") for name in family_options() if name.startswith("sd/")} == PUBLISHED.keys()


def test_what_uses_a_model_has_settings_for_stable_diffusion(node):
    """Or those that stand in its YAML are published ones, or counts that no model changes."""
    for group in ("protect", "attack", "task"):
        for option in options(group):
            name, kind = f"{group}/{option}", get_object(node(group, option)._target_)
            if (
                name not in RELEASED
                and option not in COUNTED.get(group, ())
                and "pixel" not in kind.needs
                and kind.needs
            ):
                assert name in PUBLISHED, f"conf/family/sd/{name}.yaml: settings for Stable Diffusion"


@pytest.mark.parametrize("name", family_options())
def test_a_family_changes_settings_that_there_are(node, name):
    family, group, option = name.split("/")
    assert node(group, option, family).keys() == node(group, option).keys()


# What the defaults list of an option may choose beside its own settings.
CHOOSES = {
    "protect": {"protect@inner"},
    "attack": {"model@purifier"},
    "task": {"model", "data", "metrics"},
    "data": {"metrics"},
    "model": {"family"},
    "family": {"metrics"},
}  # fmt: skip


def chosen(file: Path) -> set[str]:
    """The nodes that a YAML's defaults list overrides: group, or group@node where they differ."""
    entries = OmegaConf.to_container(OmegaConf.load(file)).get("defaults", [])
    words = [key for entry in entries if isinstance(entry, dict) for key in entry if key.startswith("override ")]
    nodes = [re.fullmatch(r"override /(\w+)@_global_\.(\w+)", word) for word in words]
    assert None not in nodes, f"{file}: {words}"
    return {group if group == node else f"{group}@{node}" for group, node in (found.groups() for found in nodes)}


def test_settings_of_a_protection_depend_on_it_and_the_family_alone():
    """So do those of an attack, which may choose its purifier, and of a task: no option of another kind chooses them or
    is referred to. That is why each need not be composed beside all the others."""
    for group, allowed in CHOOSES.items():
        files = sorted((CONF / group).rglob("*.yaml"))
        assert set().union(*map(chosen, files)) == allowed, group
        refers = {word for file in files for word in re.findall(r"\$\{([^}]*)\}", file.read_text())}
        assert refers <= {"inner"}, group
    entries = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))["defaults"]
    named = {key: value for entry in entries if isinstance(entry, dict) for key, value in entry.items()}
    for group in ("protect", "attack", "task"):
        assert named[f"optional family@{group}"] == f"${{family}}/{group}/${{{group}}}"


# Protections that choose another one, that are made from another option, and plain ones; with settings for Stable Diffusion
# and without. Each is composed beside one task.
COMPOSED = ("consistent", "eot", "ensemble", "simac_paper", "ensemble_aspl", "eudp", "caat", "ace_plus", "advdm",
            "photoguard_diffusion", "noise", "advdm_released", "metacloak_released", "caat_released")  # fmt: skip
TASKS = [task for task in options("task") if not task.startswith("ddpm")]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_model_brings_them_and_a_word_takes_them_back(node, task):
    """Whatever data, attack and protection stand beside; ``family=micro`` is that word."""
    for protect in COMPOSED[TASKS.index(task) :: len(TASKS)]:
        cfg = of_the_command_line(*SD, f"task={task}", f"protect={protect}", "attack=impress", "protect@like=eudp")
        assert cfg.family == "sd"
        for group, option in (("task", task), ("protect", protect), ("attack", "impress")):
            family = "sd" if f"{group}/{option}" in PUBLISHED else "micro"
            got, want = OmegaConf.to_container(cfg[group]), OmegaConf.to_container(node(group, option, family))
            for whole in (got, want):
                whole.pop("preset", None)  # type: ignore[union-attr]
                whole.pop("inner", None)  # type: ignore[union-attr]
            assert got == want, (group, option)
        assert cfg.like.lr == 5e-7
        assert "judge" not in cfg.metrics.bundle
        assert cfg.runtime.grad_batch == 64  # of 128 px: four of 512
    cfg = of_the_command_line(*SD, f"task={task}", "family=micro")
    assert cfg.task == node("task", task)
    assert cfg.protect == node("protect", "eudp")
    assert cfg.runtime.grad_batch == 16


@pytest.mark.slow
def test_words_of_the_command_line_win():
    cfg = of_the_command_line("model=sd15", "task.batch=7", "protect=consistent", "inner.rounds=9")
    assert (cfg.task.batch, cfg.inner.rounds, cfg.inner.lr) == (7, 9, 5e-7)
    assert of_the_command_line("model=sd15", "protect.lr=3e-6").protect.lr == 3e-6
    assert of_the_command_line("model=sd15", "metrics=micro").metrics.primary == ["kd_efflite0", "subject_acc"]


def test_renderings_are_not_for_stable_diffusion_unless_said(tiny):
    cfg = composed(tiny, "family=sd")
    with pytest.raises(ConfigError, match="data toyworld: shows the embedded world, local is of family sd; give data="):
        checked_graph(build(cfg, cfg.hydra.runtime.choices))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["attack=diffpure"], "attack diffpure_ddpm_100: purifier micro_pixel was trained on the embedded world only; give model@purifier=pixel"),
        (["attack=super_resolution", "model@purifier=micro_x4"], "attack super_resolution: purifier micro_x4 was trained on the embedded world only; "),
        (["protect=ensemble"], "ensemble_eudp: other of further, model micro_b, was trained on the embedded world only; give another, "),
    ],
)  # fmt: skip
def test_embedded_models_are_not_for_pictures_of_stable_diffusion_unless_said(tiny, tmp_path, words, told):
    """Neither in a cell nor for a folder of pictures; ``family=micro`` says it."""
    for i in range(2):
        Image.new("RGB", (16, 16), (i, 90, 200)).save(tmp_path / f"{i}.png")
    folder = ["data=folder", f"data.path={tmp_path}", "data.prompt='a photo of a {token} ring'", *words]
    method = "attack" if words[0].startswith("attack") else "protect"
    cell = built(tiny, *folder, "family=sd")
    for check in (checked_graph, partial(check_alone, method=method)):
        with pytest.raises(ConfigError, match=re.escape(told)):
            check(cell)
    check_alone(built(tiny, *folder), method)


def built(tiny: Path, *words: str) -> Cell:
    cfg = composed(tiny, *words)
    return build(cfg, cfg.hydra.runtime.choices)


@pytest.mark.parametrize("option", ["chain", "best_of"])
def test_members_of_an_attack_do_not_take_the_embedded_worlds_settings_for_stable_diffusion(tiny, option):
    """Hydra brings them to an attack itself; of a member they are to be said."""
    words = [f"attack={option}", "+attack@attack.members.z=median_blur", "family=sd"]
    told = (
        "attack.members.z: median_blur has settings of its own for family sd; "
        "+family@attack.members.z=sd/attack/median_blur brings them, family=micro takes the embedded model's for all"
    )
    with pytest.raises(ConfigError, match=re.escape(told)):
        members_of(tiny, *words)
    assert members_of(tiny, *words, "+family@attack.members.z=sd/attack/median_blur").z.window == 7
    assert members_of(tiny, *words[:2]).z.window == 3


def members_of(tiny: Path, *words: str) -> DictConfig:
    cfg = composed(tiny, *words)
    check_members(cfg, cfg.hydra.runtime.choices)
    return cfg.attack.members
