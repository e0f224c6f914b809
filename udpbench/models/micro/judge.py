"""The judge: a small classifier that knows the toy world, trained on renderings only (never on a diffusion model's
output)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udpbench.data import renderer

HEADS = {
    "shape": len(renderer.SHAPES),
    "color": len(renderer.COLORS),
    "second": len(renderer.COLORS),
    "texture": len(renderer.TEXTURES),
    "emblem": len(renderer.EMBLEMS),
    "scene": len(renderer.SCENES),
}


class Judge(nn.Module):
    """64 px pictures to a class per attribute and a logit for "this is a picture of the world" (low: garbage,
    unsure)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 4 * width)
        self.stem = nn.Conv2d(3, widths[0], 5, stride=2, padding=2)
        stages: list[nn.Module] = []
        for a, b in zip(widths, widths[1:], strict=False):
            stages += [_Block(a), nn.Conv2d(a, b, 3, stride=2, padding=1)]
        self.stages = nn.Sequential(*stages, _Block(widths[-1]))
        self.out = nn.Linear(4 * 4 * widths[-1], sum(HEADS.values()) + 1)
        # Of the last logit; set once on garbage, see calibrate in train.py.
        self.threshold: Tensor
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """NCHW [0,1], 64 px -> logits by attribute, (N, classes) each, and ``real`` (N,)."""
        h = F.silu(self.stages(self.stem(x * 2 - 1)))
        *parts, real = self.out(F.adaptive_avg_pool2d(h, 4).flatten(1)).split([*HEADS.values(), 1], dim=1)
        return {**dict(zip(HEADS, parts, strict=True)), "real": real[:, 0]}

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
