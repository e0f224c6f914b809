"""Every task as the command line offers it, with the model, data and metrics that it brings, cut to a few steps and pictures."""

from __future__ import annotations

import math

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image
from shared import CONF, options

from udpbench.benchmark.build import build
from udpbench.benchmark.check import checked_graph
from udpbench.benchmark.run import run
from udpbench.benchmark.store import Store
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
    "metacloak": 5,  # snapshots
    "photoguard_diffusion": 4,  # steps of img2img
}
WORK = ("rounds", "image_steps", "iterations", "steps", "samples")
MATCHED = [
    (family, path.stem)
    for family, folder in (("micro", CONF / "protect"), ("sd", CONF / "family" / "sd" / "protect"))
    for path in sorted(folder.glob("*.yaml"))
    if "matched: 100 image gradients" in path.read_text(encoding="utf-8").splitlines()[0]
]


@pytest.mark.parametrize(("family", "option"), MATCHED)
def test_a_matched_preset_takes_a_hundred_image_gradients(family, option):
    """As its first line says, by its settings; what the methods count themselves is in every record."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = compose("config", overrides=[f"protect={option}", f"family={family}"]).protect
    searched = found.get("search_rounds", 0) * (found.get("candidates", 0) + 1)
    of_ascent = math.prod(found.get(name, 1) for name in WORK) * IN_A_STEP.get(option, 1)
    assert of_ascent + searched == 100
