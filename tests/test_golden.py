"""Numbers that must not change unless a ``version`` does: losses, size and probes of every protection and attack.

``UDPBENCH_REFRESH_GOLDEN=1 pytest tests/test_golden.py`` writes tests/golden.json anew. Weights are drawn by parameter name, so that
other versions of the libraries start from the same ones. Sums in another order flip the sign of a few vanishing gradients: therefore
tolerances, by method where the default is too narrow.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_owner, options
from hydra.utils import instantiate
from omegaconf import DictConfig

from udpbench.budget import Linf
from udpbench.models.latent import LatentDiffusion
from udpbench.protect.noise import Noise
from udpbench.types import Log, Run

FILE = Path(__file__).parent / "golden.json"
REFRESH = bool(os.environ.get("UDPBENCH_REFRESH_GOLDEN"))
ELSEWHERE = "folder"  # the option of both groups that computes nothing
SHORT = {"rounds": 2, "model_steps": 3, "image_steps": 4, "iterations": 5, "draws": 2, "perceptual": "lite1"}
CASES = [f"{group}/{option}" for group in ("protect", "attack") for option in options(group) if option != ELSEWHERE]
LOSS, CHANGE = {"default": 1e-3}, {"default": 0.02}  # relative, by case
PROBE, AGREE = 0.25, 0.9  # levels; share of the probes that must be within


class Losses(Log):
    def __init__(self) -> None:
        self.values: list[float] = []

    def scalar(self, name: str, value: torch.Tensor | float, step: int) -> None:
        self.values.append(float(value))


@pytest.fixture(scope="module")
def steady(tiny) -> LatentDiffusion:
    """The tiny pipeline with weights that depend on their names only."""
    model = LatentDiffusion(str(tiny), "steady")
    for part in ("vae", "unet", "text_encoder"):
        for name, p in getattr(model.pipe, part).named_parameters():
            seed = int.from_bytes(hashlib.sha256(f"{part}.{name}".encode()).digest()[:7], "little")
            draw = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
            p.data.copy_(
                draw / max(1, p[0].numel()) ** 0.5
                if p.ndim > 1
                else 1.0 + 0.1 * draw
                if "norm" in name and "weight" in name
                else 0.1 * draw
            )
    return model


def shortened(conf: DictConfig) -> dict[str, Any]:
    """What of SHORT a component has, and the component it wraps."""
    inner = {"inner": shortened(conf["inner"])} if "inner" in conf else {}
    return {k: v for k, v in SHORT.items() if k in conf} | inner


def measured(case: str, conf: DictConfig, model: LatentDiffusion, pictures: list[torch.Tensor]) -> dict[str, Any]:
    thing = instantiate(conf, **shortened(conf), _convert_="all")
    log = Losses()
    owner, run = make_owner(pictures[:2]), Run(seed=0, log=log)
    mine = model if thing.needs else None
    if case.startswith("protect"):
        owner.like = Noise("uniform")(owner, Linf(8), [], Run(seed=99))
        made = thing(owner, Linf(8), [mine], run)
    else:
        made = thing.purify(owner.images, owner.names, owner.prompts, mine, run)
    change = (torch.stack(made) - torch.stack(owner.images)) * 255
    return {
        "version": thing.version,
        "losses": [log.values[0], log.values[-1]] if log.values else [],
        "mean_change": float(change.abs().mean()),
        "probes": [round(float(v), 2) for v in change[0, :, 1::4, 2::4].flatten()],
    }


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_the_version(case, node, steady, pictures, golden):
    got = measured(case, node(*case.split("/")), steady, pictures)
    if REFRESH:
        known = json.loads(FILE.read_text()) if FILE.exists() else {}
        known = {k: v for k, v in known.items() if k in CASES} | {case: got}
        rows = ",\n".join(f"{json.dumps(k)}: {json.dumps(known[k])}" for k in sorted(known))
        FILE.write_text(f"{{\n{rows}\n}}\n")
        return
    refresh = "UDPBENCH_REFRESH_GOLDEN=1 pytest tests/test_golden.py"
    assert case in golden, f"{case} is new: {refresh}"
    want = golden[case]
    assert got["version"] == want["version"], f"{case}: version {got['version']} has no numbers yet: {refresh}"
    differs = f"{case} computes other numbers than version {want['version']} did; if that is meant, raise its `version`, then {refresh}"
    assert got["losses"] == pytest.approx(want["losses"], rel=LOSS.get(case, LOSS["default"])), differs
    assert got["mean_change"] == pytest.approx(want["mean_change"], rel=CHANGE.get(case, CHANGE["default"])), differs
    near = [abs(a - b) <= PROBE for a, b in zip(got["probes"], want["probes"], strict=True)]
    assert sum(near) >= AGREE * len(near), differs


@pytest.mark.skipif(REFRESH, reason="being written")
def test_every_number_belongs_to_a_method(golden):
    assert set(golden) == set(CASES), "methods come and go: refresh tests/golden.json"


@pytest.mark.skipif(REFRESH, reason="being written")
@pytest.mark.parametrize("case", [c for c in CASES if not c.endswith("/none")])
def test_golden_numbers_tell_methods_apart(case, golden):
    """The probes are sharp enough: no other method's numbers would pass."""
    for other, numbers in golden.items():
        if other != case:
            near = [abs(a - b) <= PROBE for a, b in zip(golden[case]["probes"], numbers["probes"], strict=True)]
            assert sum(near) < AGREE * len(near), other
