"""What the contract tests of components share: components with short settings, and which of them differ in what."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from shared import options

from udpbench.benchmark.process_state import process_left_as_it_was
from udpbench.models.fingerprint import Fingerprint

# Settings by name, wherever a component has them: few steps, small pictures, no file that is not here.
SHORT = {
    "rounds": 1, "model_steps": 1, "clean_steps": 1, "search_rounds": 2, "trials": 1, "snapshots": 2, "text_steps": 2,
    "image_steps": 8, "iterations": 4, "steps": 2, "sample_steps": 2, "batch": 2, "pictures": 3, "prior_images": 2,
    "t": 4, "less": 1, "upscale_steps": 2, "ddim_steps": 4, "depth": 2, "size": 16, "train": 4,
    "reference": 6, "validation": 3, "heldout": 2,
}  # fmt: skip
# What is enough to see that a method runs, and what it draws.
FEWEST = SHORT | {"image_steps": 2, "iterations": 1}
OFFLINE = {
    "perceptual": "lite1",
    "dtype": "fp32",
    "gradient_checkpointing": False,
    "mask": "centre",
    "upscaler": None,
}  # and fast on a CPU
# Of the methods that need more to be seen: small steps without a random start; a random model's loss that hardly pulls.
LONGER = {
    "SDS": {"steps": 8},
    "BlurGuard": {"blur_steps": 10, "image_steps": 60},
    "AntiDiffusion": {"image_steps": 16, "step_size": None, "round_eps": None},
    "DisDiff": {"step_size": 3.0},
    "HFADB": {"fraction": 0.5},
    "PAP": {"step_size": None},
    "UEMask": {"steps": 12, "step_size": None, "l1_weight": 0.0},
}
COMPUTES_NOTHING = {"none", "folder"}
# The methods that are the same under every seed.
DRAWS_NOTHING = {*COMPUTES_NOTHING, "dct_shield", "dct_shield_released"}
SAME_IF_SHORT = [{"pid", "pid_released"}]  # they differ in their number of steps, at a budget of 8 in nothing else
ONE_NETWORK = {"diffvax", "diffvax_released"}  # the methods that map equal pictures to equal ones


@contextmanager
def nothing_left(*models: Any) -> Iterator[None]:
    """Within the block neither the models nor settings of the process are changed, or they are changed back."""
    before = [Fingerprint(model) for model in models]
    with process_left_as_it_was("it", lambda: None):
        yield
    assert [fingerprint.changed() for fingerprint in before] == [""] * len(models)


def build(conf: DictConfig, folder: Path, short: Mapping[str, int] | None = SHORT, keep: Collection[str] = ()) -> Any:
    """The component of a conf, with settings of ``short``; what is missing (???) is supplied; ``keep`` is not shortened."""
    for part in layers(conf):
        longer = LONGER.get(part["_target_"].rpartition(".")[2], {}) if short is SHORT else {}
        for key in part:
            if OmegaConf.is_missing(part, key):
                part[key] = str(folder)
            elif short and key in longer and key not in keep:
                part[key] = longer[key]
            elif short and key in short and key not in keep and isinstance(part[key], int):
                part[key] = short[key]
            elif short and key in OFFLINE:
                part[key] = OFFLINE[key]
            elif part["_target_"].endswith("data.folder.Folder") and key == "class_prompt" and part[key] is None:
                part[key] = "a photo of a ring"
    return instantiate(conf, _convert_="all")


def purifier(thing: Any, *models: Any) -> Any:
    """Which of ``models`` an attack takes, if any."""
    needs = thing.needs - {"class_images"}  # which the harness makes
    return next(model for model in models if needs <= model.capabilities) if needs else None


def layers(conf: DictConfig) -> list[DictConfig]:
    """The conf of a component, and those of the components it is made of."""
    parts = [conf["inner"]] if "inner" in conf else list(conf["members"].values()) if "members" in conf else []
    return [conf, *(layer for part in parts for layer in layers(part))]


GROUPS = ("protect", "attack", "task", "metric", "data", "budget")
EVERY = [(group, option) for group in GROUPS for option in options(group)]
