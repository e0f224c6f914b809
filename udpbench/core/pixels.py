"""Pictures as tensors, on any device: resized, cropped, warped and smoothed; nothing is read, written or rounded."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from udpbench.core.component import check_numbers


def resize(x: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Antialiased bicubic resize of NCHW to (height, width), or a square; clamped to [0,1], differentiable."""
    height, width = (size, size) if isinstance(size, int) else size
    if x.ndim != 4:
        raise ValueError(f"images: resize takes N x C x height x width, given {tuple(x.shape)}")
    check_numbers("images: a size", least=1, height=height, width=width)
    if tuple(x.shape[-2:]) != (height, width):
        x = F.interpolate(x, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return x.clamp(0, 1)


def centre_square(x: Tensor) -> Tensor:
    """The largest centred square of CHW or NCHW."""
    height, width = x.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return x[..., top : top + side, left : left + side]


def fit_square(x: Tensor, size: int) -> Tensor:
    """The largest centred square of CHW, resized to C x size x size."""
    return resize(centre_square(x)[None], size)[0]


def reduced(x: Tensor, size: int) -> Tensor:
    """CHW with its shorter side reduced to ``size`` and the longer one in proportion; a smaller picture as it is."""
    height, width = reduced_size(x.shape[-2], x.shape[-1], size)
    return resize(x[None], (height, width))[0] if (height, width) != x.shape[-2:] else x


def reduced_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) of what ``reduced`` makes of a picture."""
    scale = min(1.0, size / min(height, width))
    return round(scale * height), round(scale * width)


def cropped(x: Tensor, keep: float) -> Tensor:
    """The central ``keep`` of both sides of CHW or NCHW, at least a pixel."""
    height, width = x.shape[-2:]
    down, across = (max(1, round(side * keep)) for side in (height, width))
    top, left = (height - down) // 2, (width - across) // 2
    return x[..., top : top + down, left : left + across]


def warped(x: Tensor, matrix: Tensor) -> Tensor:
    """CHW [0,1] seen through a projective map: at each place (across, down, 1), sides from -1 to 1, there is what was
    at ``matrix`` (3, 3) times it. Bicubic; outside, the picture is mirrored."""
    height, width = x.shape[-2:]
    grid = F.affine_grid(torch.eye(2, 3)[None], [1, 3, height, width], align_corners=False)
    places = torch.cat([grid[0], torch.ones(height, width, 1)], -1) @ matrix.float().T
    from_where = (places[..., :2] / places[..., 2:])[None].to(x)
    made = F.grid_sample(x[None], from_where, mode="bicubic", padding_mode="reflection", align_corners=False)
    return made[0].clamp(0, 1)


def luma(x: Tensor) -> Tensor:
    """Brightness of CHW or NCHW, one channel: ITU-R BT.601, as Pillow and JPEG have it."""
    red, green, blue = x.split(1, -3)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def is_grey(x: Tensor) -> Tensor:
    """Whether each of N pictures (NCHW) has no colour at all, (N, 1, 1, 1)."""
    return (x[:, 1:] == x[:, :1]).flatten(1).all(1).view(-1, 1, 1, 1)


def padded(x: Tensor, multiple: int) -> Tensor:
    """NCHW whose sides are multiples of ``multiple``: padded right and below with their last values."""
    right, below = (-side % multiple for side in (x.shape[-1], x.shape[-2]))
    return F.pad(x, (0, right, 0, below), mode="replicate") if right or below else x


def smooth(x: Tensor, sigma: float, radius: int | None = None) -> Tensor:
    """Gaussian smoothing of NCHW, sigma in pixels; edge pixels are repeated. 0 gives ``x`` back.

    ``radius``: of the kernel, in pixels; None: 3 sigma, rounded up.
    """
    if not sigma:
        return x
    radius = math.ceil(3 * sigma) if radius is None else radius
    weight = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype) / sigma).square())
    return convolved(x, weight / weight.sum())


def convolved(x: Tensor, weight: Tensor) -> Tensor:
    """NCHW convolved with ``weight`` (odd length) across and down; edge pixels are repeated."""
    channels = x.shape[1]
    kernel = weight.view(1, 1, 1, -1).repeat(channels, 1, 1, 1)
    x = F.pad(x, (len(weight) // 2,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(x, kernel, groups=channels), kernel.transpose(2, 3), groups=channels)
