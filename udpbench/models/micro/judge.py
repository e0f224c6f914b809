"""The judges: small classifiers that know the toy world, trained on renderings only (never on a diffusion model's
output)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udpbench.world import renderer, styles

WEIGHTS = Path(__file__).parent / "weights"  # one folder for each embedded model and judge
HEADS = {
    "shape": len(renderer.SHAPES),
    "color": len(renderer.COLORS),
    "second": len(renderer.COLORS),
    "texture": len(renderer.TEXTURES),
    "emblem": len(renderer.EMBLEMS),
    "scene": len(renderer.SCENES),
}
# Of the judge of styles; the class after the last style is "none", the plain rendering.
STYLE_HEADS = {"style": len(styles.STYLES) + 1, "shape": len(renderer.SHAPES), "scene": len(renderer.SCENES)}
STYLE_WIDTH = 16


class Judge(nn.Module):
    """64 px pictures to a class per attribute and a logit for "this is a picture of the world" (low: garbage,
    unsure).

    ``heads``: classes by attribute.
    """

    def __init__(self, heads: Mapping[str, int] = HEADS, width: int = 32) -> None:
        super().__init__()
        self.heads = dict(heads)
        widths = (width, 2 * width, 4 * width, 4 * width)
        self.stem = nn.Conv2d(3, widths[0], 5, stride=2, padding=2)
        stages: list[nn.Module] = []
        for a, b in zip(widths, widths[1:], strict=False):
            stages += [_Block(a), nn.Conv2d(a, b, 3, stride=2, padding=1)]
        self.stages = nn.Sequential(*stages, _Block(widths[-1]))
        self.out = nn.Linear(4 * 4 * widths[-1], sum(self.heads.values()) + 1)
        # Of the last logit; set once on garbage, see calibrate in train.py.
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


def style_judge() -> Judge:
    """The judge of styles, not trained: style (or none), shape and scene; 0.24 M parameters."""
    return Judge(STYLE_HEADS, STYLE_WIDTH)


def with_weights(judge: Judge, file: Path, device: torch.device) -> Judge:
    """``judge`` with the weights in ``file`` (safetensors), frozen, on ``device``."""
    from safetensors.torch import load_file

    judge.load_state_dict({k: v.float() for k, v in load_file(file).items()})
    return judge.eval().requires_grad_(False).to(device)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


def load_judge(device: torch.device) -> Judge:
    """The embedded judge, frozen."""
    return with_weights(Judge(), WEIGHTS / "judge" / "judge.safetensors", device)


def load_style_judge(device: torch.device) -> Judge:
    """The embedded judge of styles, frozen."""
    return with_weights(style_judge(), WEIGHTS / "style_judge" / "style_judge.safetensors", device)
