"""Released presets: what the published codes and papers fix, written down a second time and apart from conf/."""

from __future__ import annotations

import re
from typing import Any

import pytest
from shared import CONF, every, options

IN_UNIT = 127.5  # levels of 8 bits in 1 of [-1,1], where most codes count; 255 where they count in [0,1]

# What Anti-DreamBooth's scripts say, and what is built on them.
ANTI_DB = {"step_size": 0.005 * IN_UNIT, "samples": 1, "lr": 5e-7, "prior_weight": 1.0, "class_images": 200,
           "clean": "extra", "lora_rank": 0, "train_text_encoder": True, "dtype": "bf16", "target": None}  # fmt: skip
ROUNDS = {"rounds": 50, "clean_steps": 3, "image_steps": 6, "model_steps": 3}
ASPL = ANTI_DB | ROUNDS
SEARCH = {"search_rounds": 50, "candidates": 5, "window": 20, "keep": 100, "feature_weight": 0.0}
ACE = {"rounds": 5, "image_steps": 50, "model_steps": 5, "step_size": 0.005 * IN_UNIT, "samples": 1, "lr": 1e-4,
       "lora_rank": 4, "first_time": 600, "last_time": 999, "sample_latents": True, "dtype": "bf16"}  # fmt: skip
PAP = {"text_steps": 20, "step_size": 1 / 255 * IN_UNIT, "samples": 1, "deviation": "square"}

# Of each preset: the budget.eps that its first line names (None: none), and the settings that are not ours to choose.
# Steps are in 1/255 of [0,1], but for those of uemask (of its mask) and of dct_shield (of quantisation).
RELEASED: dict[str, tuple[float | None, dict[str, Any]]] = {
    "ace_released": (4, ACE),
    "ace_plus_released": (4, ACE | {"latent_weight": 100}),
    "advdm_released": (16, {"steps": 100, "step_size": 1.0, "samples": 1, "sample_latents": True, "random_start": True}),
    "advpaint_released": (7.65, {"iterations": 250, "step_size": 0.03 * IN_UNIT, "sample_steps": 50, "same_noise": False,
                                 "enlarged": 1.2}),
    "anti_diffusion_released": (7.65, {"rounds": 6, "image_steps": 10, "step_size": 2e-3 * IN_UNIT,
                                       "round_eps": 0.01 * IN_UNIT, "text_steps": 30, "text_lr": 1e-3,
                                       "model_steps": 20, "lr": 5e-7, "attention_weight": 1.0}),
    "aspl_released": (6.4, ASPL),
    "blurguard_released": (16, {"blur_steps": 50, "image_steps": 100, "blur_lr": 0.06, "tolerance": 0,
                                "step_size": 2 / (3 * 512 * 512) ** 0.5 * IN_UNIT}),
    "caat_released": (6.4, {"image_steps": 250, "step_size": 0.005 * IN_UNIT, "samples": 1, "lr": 1e-5}),
    "dct_shield_released": (None, {"iterations": 1000, "quality": 95, "coefficient_eps": 1, "step_size": 0.1,
                                   "channels": "all"}),
    "dia_released": (6.4, {"aim": "trajectory", "iterations": 20, "step_size": 1 / 255 * IN_UNIT, "sample_steps": 10}),
    "dia_r_released": (6.4, {"aim": "reconstruction", "iterations": 20, "step_size": 1 / 255 * IN_UNIT,
                             "sample_steps": 10}),
    "diffusionguard_released": (8, {"iterations": 800, "step_size": 0.5, "sample_steps": 4, "contour_strength": 1.1,
                                    "contour_smoothness": 0.1, "contour_iterations": 15}),
    "diffvax_released": (128, {"lr": 1e-5, "batch": 5, "alpha": 4, "guidance": 7.5, "sample_steps": 4,
                               "class_images": 818}),
    "disdiff_released": (6.4, ASPL | SEARCH | {"attention_weight": 0.1, "by_time": True, "forgets": False}),
    "ensemble_aspl_released": (6.4, ASPL),
    "ensemble_fsmg_released": (6.4, ANTI_DB | {"rounds": 60, "clean_steps": 1000, "image_steps": 12, "model_steps": 0}),
    "fsmg_released": (6.4, ANTI_DB | {"clean_steps": 1000, "image_steps": 100, "batch": 2}),
    "glaze_released": (128, {"iterations": 500, "lr": 0.01, "alpha": 30 * 0.18215**2, "distance_budget": 0.05,
                             "guidance": 7.5, "img2img_steps": 50, "perceptual": "lpips_vgg"}),
    "hf_adb_released": (0.5 * IN_UNIT, ASPL | {"fraction": 0.03, "outside": 0.01 / 0.5, "bound": "linf"}),
    "metacloak_released": (11, {"clean_steps": 1000, "snapshots": 6, "trials": 4, "rounds": 100, "image_steps": 6,
                                "model_steps": 2, "step_size": 1.1, "clean": "own", "radius": 3}),
    "mist_released": (16, {"mode": "fused", "semantic_weight": 1e4 / (4 * 64 * 64), "steps": 100, "step_size": 1.0,
                           "samples": 1, "random_start": True}),
    "mist_v2_released": (4, {"mode": "lunet", "rounds": 5, "image_steps": 30, "model_steps": 10, "lr": 1e-4,
                             "lora_rank": 4, "prior_weight": 0.1, "class_images": 50, "step_size": 0.005 * IN_UNIT,
                             "latent_weight": 100, "fused_to_target": False, "sample_latents": False}),
    "pap_released": (6.4, PAP | {"rounds": 20 * 6, "image_steps": 1, "text_rate": 1000 / 4, "pictures": 4,
                                 "per_value": True}),
    "pap_released_v1": (6.4, PAP | {"rounds": 5, "image_steps": 10, "text_rate": 0.001 / 4, "per_value": False}),
    "photoguard_released": (7.65, {"steps": 1000, "step_size": 0.02 * IN_UNIT, "target": None, "random_start": True}),
    "photoguard_diffusion_released": (12.75, {"iterations": 200, "step_size": 0.006 * IN_UNIT, "sample_steps": 4,
                                              "samples": 5, "eta": 1.0, "prompt": "empty", "target": None,
                                              "random_start": False}),
    "pid_released": (12.75, {"steps": 1000, "step_size": 1.0, "distance": "add_log"}),
    "promptflare_released": (6, {"iterations": 400, "step_size": 2 / 255 * IN_UNIT, "sample_steps": 4}),
    "sds_released": (16, {"direction": "descend", "target_rate": 0.0, "steps": 100, "step_size": 1.0, "samples": 1,
                          "random_start": False}),
    "simac_released": (8, ASPL | SEARCH),
    "uemask_released": (19.2, {"steps": 250, "step_size": 0.005, "strength": 0.15,
                                "l1_weight": 1e-7 * 3 * 512**2, "random_start": False}),
}  # fmt: skip

# Published without a bound on pixels: a budget that is named is so large that it leaves them alone.
NO_BALL = {"dct_shield_released", "diffvax_released", "glaze_released", "uemask_released"}


def near(said: Any) -> Any:
    """Conversions are rounded in conf/; counts and choices are not."""
    return pytest.approx(said, rel=1e-3) if isinstance(said, float) else said


def comments(option: str) -> list[str]:
    """The first two lines of a preset's file."""
    return (CONF / "protect" / f"{option}.yaml").read_text(encoding="utf-8").splitlines()[:2]


def test_every_released_preset_is_in_the_table():
    assert RELEASED.keys() == {option for option in options("protect") if "released" in option}


@pytest.mark.parametrize("option", RELEASED)
def test_a_released_preset_has_the_released_numbers(option):
    """As the command line composes it: most stand in the files that it builds on."""
    found, (_, settings) = every("micro", "protect")[option], RELEASED[option]
    assert found.preset == "released"
    assert {key: found.get(key, "not set") for key in settings} == {k: near(said) for k, said in settings.items()}


@pytest.mark.parametrize("option", RELEASED)
def test_a_released_preset_names_the_published_budget(option):
    """In its first line, and the matched preset of the method in its second."""
    eps, _ = RELEASED[option]
    named = [float(n) for n in re.findall(r"budget\.eps=(\d+(?:\.\d+)?)", comments(option)[0])]
    assert named == ([] if eps is None else [near(float(eps))])
    published = re.search(r"Published budget: .*?(\d+(?:\.\d+)?)/255", comments(option.split("_released")[0])[1])
    assert (published is None) == (option in NO_BALL)
    assert published is None or float(published[1]) == near(float(eps))


def named_settings() -> list[tuple[str, str]]:
    """(option, setting) of all that the comments of protections' files tell to override, such as ``lr``."""
    told = [
        (path.stem, re.findall(r"\bprotect\.(\w+)=", path.read_text())) for path in (CONF / "protect").glob("*.yaml")
    ]
    return sorted({(option, setting) for option, settings in told for setting in settings})


def test_a_setting_that_a_comment_names_is_one_of_the_option():
    known = {option: set(settings) for option, settings in every("micro", "protect").items()}  # ??? is one, too
    assert len(named_settings()) > 5
    assert not [f"{option}.{setting}" for option, setting in named_settings() if setting not in known[option]]
