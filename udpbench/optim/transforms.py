"""What may happen to a picture on its way to a training, at random and differentiable: CHW in [0,1] in and out, of one
size."""

from __future__ import annotations

import torch
from torch import Tensor

from udpbench.core.codecs import recompress
from udpbench.core.memory import queued
from udpbench.core.pixels import resize, smooth


def between(low: float, high: float, rng: torch.Generator) -> float:
    """A number drawn uniformly."""
    return low + (high - low) * float(torch.rand((), generator=rng))


def jpeg(x: Tensor, rng: torch.Generator, low: int, high: int) -> Tensor:
    """JPEG by Pillow's encoder of a quality from ``low`` to ``high``; its gradient is that of the identity
    (straight-through)."""
    quality = int(torch.randint(low, high + 1, (), generator=rng))
    return x + (recompress(x.detach(), "jpeg", quality).to(x.device) - x).detach()


def blur(x: Tensor, rng: torch.Generator, low: float, high: float, *, radius: int | None = None) -> Tensor:
    """Gaussian blur of a standard deviation from ``low`` to ``high`` pixels; ``radius`` as of ``smooth``."""
    return smooth(x[None], between(low, high, rng), radius)[0]


def resized(x: Tensor, rng: torch.Generator, least: float) -> Tensor:
    """Resized to a fraction of both sides from ``least`` to 1, and back."""
    height, width = x.shape[-2:]
    scale = between(least, 1, rng)
    small = resize(x[None], (max(1, round(height * scale)), max(1, round(width * scale))))
    return resize(small, (height, width))[0]


def crop(x: Tensor, rng: torch.Generator, least: float) -> Tensor:
    """A part of the picture, of a fraction of both sides from ``least`` to 1, resized to the picture's size."""
    height, width = x.shape[-2:]
    scale = between(least, 1, rng)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    top = int(torch.randint(height - rows + 1, (), generator=rng))
    left = int(torch.randint(width - columns + 1, (), generator=rng))
    return resize(x[None, :, top : top + rows, left : left + columns], (height, width))[0]


def flip(x: Tensor, rng: torch.Generator) -> Tensor:
    """Mirrored, or not, equally likely."""
    return x.flip(-1) if float(torch.rand((), generator=rng)) < 0.5 else x


def noisy(x: Tensor, rng: torch.Generator, std: float) -> Tensor:
    """Normal noise of standard deviation ``std`` (of 255) added; clipped to [0,1]."""
    return (x + std / 255 * queued(torch.randn(x.shape, generator=rng), x.device)).clamp(0, 1)
