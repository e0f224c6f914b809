"""The judges: small classifiers that know the toy world, trained on renderings only (never on a diffusion model's
output)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udpbench.core.images import iterate, read_metadata
from udpbench.core.pixels import resize
from udpbench.interfaces import Run

WEIGHTS = Path(__file__).parent / "weights"  # one folder for each embedded model and judge


class Judge(nn.Module):
    """64 px pictures to a class per attribute and a logit for "this is a picture of the world" (low: garbage,
    unsure).

    Args:
        heads: attribute -> number of classes.
        width: channels of the first stage.
    """

    def __init__(self, heads: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.heads = dict(heads)
        widths = (width, 2 * width, 4 * width, 4 * width)
        self.stem = nn.Conv2d(3, widths[0], 5, stride=2, padding=2)
        stages: list[nn.Module] = []
        for a, b in zip(widths, widths[1:], strict=False):
            stages += [_Block(a), nn.Conv2d(a, b, 3, stride=2, padding=1)]
        self.stages = nn.Sequential(*stages, _Block(widths[-1]))
        self.out = nn.Linear(4 * 4 * widths[-1], sum(self.heads.values()) + 1)
        # Of the last logit; set once on garbage, see experiments.embedded_models.train_judge.calibrate.
        self.threshold: Tensor
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """NCHW [0,1], 64 px -> logits by attribute, (N, classes) each, and ``real`` (N,)."""
        h = F.silu(self.stages(self.stem(x * 2 - 1)))
        *parts, real = self.out(F.adaptive_avg_pool2d(h, 4).flatten(1)).split([*self.heads.values(), 1], dim=1)
        return {**dict(zip(self.heads, parts, strict=True)), "real": real[:, 0]}

    @torch.inference_mode()
    def classify(self, x: Tensor) -> dict[str, Tensor]:
        """Class indices by attribute, -1 everywhere where the judge is unsure."""
        logits = self(x)
        unsure = logits.pop("real") < self.threshold
        return {name: torch.where(unsure, -1, value.argmax(1)) for name, value in logits.items()}


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


def make_judge(name: str) -> Judge:
    """The embedded judge ``name`` (``judge`` or ``style_judge``) by its config.json, not trained."""
    return Judge(**json.loads((WEIGHTS / name / "config.json").read_text(encoding="utf-8")))


def load_judge(name: str, device: torch.device) -> Judge:
    """The embedded judge ``name`` with its weights, frozen, on ``device``."""
    from safetensors.torch import load_file

    judge = make_judge(name)
    judge.load_state_dict({k: v.float() for k, v in load_file(WEIGHTS / name / f"{name}.safetensors").items()})
    return judge.eval().requires_grad_(False).to(device)


def check_judge(name: str) -> None:
    """ValueError saying what to do if the weights of the embedded judge ``name`` are missing; nothing is loaded."""
    if not (WEIGHTS / name / f"{name}.safetensors").is_file():
        how = f"python -m experiments.embedded_models.train {name} --steps 7500, then export"
        raise ValueError(f"{name}: weights are missing in {WEIGHTS}; train them: {how}")


def judged(name: str, folder: Path, run: Run) -> Iterator[tuple[str, dict[str, int]]]:
    """For each picture of ``folder``: its prompt ("" without one) and the classes that the judge ``name`` finds."""
    prompts, judge = read_metadata(folder), load_judge(name, run.device)
    for names, x in iterate(folder, run.batch):
        found = {k: v.tolist() for k, v in judge.classify(resize(x.to(run.device), 64)).items()}
        for i, file in enumerate(names):
            yield prompts.get(file, {}).get("text", ""), {k: v[i] for k, v in found.items()}
