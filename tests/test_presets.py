"""Every task as the command line offers it, with the model, data and metrics that it brings, cut to a few steps and pictures."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image
from shared import CONF, every, options

from udpbench.benchmark.build import build
from udpbench.benchmark.check import checked_graph
from udpbench.benchmark.run import run
from udpbench.benchmark.store import Store
from udpbench.commands.list import options as listed
from udpbench.interfaces import Log
from udpbench.results.gather import draw_sheet, record_of

FEW = 8  # pictures a side, of which kernel distances are said to have enough
SHORT = {
    "task": {"steps": 2, "pictures": FEW, "sample_steps": 2, "warmup": 1, "samples": 1, "strength": 1.0},
    "data": {"train": 2, "reference": FEW, "validation": FEW, "heldout": FEW},
}
RUNS_HERE = [t for t in options("task") if "Verified with: never" not in (CONF / "task" / f"{t}.yaml").read_text()]


def shortened(task: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        said = [f"task={task}", "protect=noise", "attack=jpeg", "track=none", "arms=[purified]"]
        cfg = compose("config", overrides=said, return_hydra_config=True)
    for group, sizes in SHORT.items():
        cfg[group].update({k: v for k, v in sizes.items() if k in cfg[group]})
    if "kernel_distance" in cfg.metrics.bundle:
        cfg.metrics.bundle.kernel_distance.minimum = FEW
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize("task", RUNS_HERE)
def test_a_task_runs_with_its_own_model_data_and_metrics(task, tmp_path):
    cfg = shortened(task)
    graph = checked_graph(build(cfg, cfg.hydra.runtime.choices))
    store = Store(tmp_path, torch.device("cpu"), Log(), 8)
    record = record_of(graph, store, {}, run(graph, store))
    assert list(record["arms"]) == ["purified"]
    for part in record["arms"].values():
        assert set(graph.cell.primary) <= part["metrics"].keys()
        assert all(math.isfinite(score["value"]) for score in part["metrics"].values())
    draw_sheet(graph, store, tmp_path / "sheet.png")
    rows = 4 + (task == "inpaint")  # clean, purified, their difference, the mask, what came of the purified ones
    side = 3 * 32 if task == "ddpm" else 2 * 64  # small pictures are enlarged by whole numbers
    assert Image.open(tmp_path / "sheet.png").height == rows * (side + 4) + 4


# UNet or encoder evaluations with gradients of a picture in one step, where they are not its samples alone.
IN_A_STEP = {
    "advpaint": 2,  # regions, each with steps of its own
    "dia": 10,  # steps of the inversion
    "dia_r": 20,  # and back again
    "ensemble_aspl": 2,  # models
    "ensemble_fsmg": 2,
    "photoguard_diffusion": 4,  # steps of img2img
}
WORK = ("rounds", "image_steps", "iterations", "steps", "samples", "snapshots", "trials")
SAID = re.compile(r"([\d,]+) (?:UNet|autoencoder) (?:gradients|passes) a picture(?: and up to ([\d,]+) in the search)?")
COSTS = {option: facts.get("Cost", "") for option, (_, facts) in listed("protect").items()}
MATCHED = [
    path.stem
    for path in sorted((CONF / "family" / "sd" / "protect").glob("*.yaml"))
    if "matched: 100 image gradients" in path.read_text(encoding="utf-8").splitlines()[0]
]


def number(text: str | None) -> int:
    """Of digits with commas; 0 for none."""
    return int((text or "0").replace(",", ""))


def gradients(option: str, found: DictConfig) -> int:
    """Of a picture, by the settings of a protection."""
    searched = found.get("search_rounds", 0) * (found.get("candidates", 0) + 1)
    return math.prod(found.get(name, 1) for name in WORK) * IN_A_STEP.get(option.split("_released")[0], 1) + searched


def trained(found: DictConfig) -> int:
    """Steps of one surrogate, by the settings of a protection."""
    clean, tuned, rounds = found.get("clean_steps", 0), found.get("model_steps", 0), found.get("rounds", 0)
    if found._target_.endswith(("UDP", "EUDP")):  # which train before every ascent
        return rounds * tuned
    if "snapshots" in found:
        return clean + found.snapshots * found.trials * (rounds - 1) * tuned
    return (1 if not tuned else rounds) * clean + max(0, rounds - 1) * tuned


@pytest.mark.parametrize("option", [option for option, cost in COSTS.items() if SAID.match(cost)])
def test_a_protection_costs_what_it_says(option):
    """By its settings; what the methods count themselves is in every record."""
    found, (ascent, search) = every("micro", "protect")[option], SAID.match(COSTS[option]).groups()
    assert gradients(option, found) == number(ascent) + number(search)
    assert ascent == "100" or found.get("preset") == "released"
    steps = re.search(r"([\d,]+) (?:steps )?of (?:a surrogate|each of two surrogates) a (?:set|picture)", COSTS[option])
    assert trained(found) == number(steps and steps[1])


@pytest.mark.parametrize("option", MATCHED)
def test_a_matched_preset_takes_a_hundred_image_gradients(option):
    """With Stable Diffusion, too, as the first line of its settings there says."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = compose("config", overrides=[f"protect={option}", "family=sd"]).protect
    assert gradients(option, found) == 100
