"""Adverse Cleaner: many bilateral filters, then a guided filter (L. Zhang 2023, lllyasviel/AdverseCleaner)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from udpbench.attack.each import EachPicture
from udpbench.core.component import check_numbers
from udpbench.interfaces import Run


@dataclass(kw_only=True)
class AdverseCleaner(EachPicture):
    """``bilateral_passes`` of a bilateral filter, then ``guided_passes`` of a guided filter whose guide is the picture
    as it came; both as OpenCV computes them, on values of 0 to 255.

    Its author notes that the guide still has the noise, so the second filter may bring it back.

    Args:
        bilateral_passes, diameter, sigma_colour, sigma_space: of the bilateral filter (Tomasi & Manduchi 1998).
        guided_passes, radius, eps: of the guided filter (He et al., TPAMI 2013).
    """

    bilateral_passes: int
    diameter: int
    sigma_colour: float
    sigma_space: float
    guided_passes: int
    radius: int
    eps: float

    def __post_init__(self) -> None:
        who = "attack adverse_cleaner"
        check_numbers(who, least=0, bilateral_passes=self.bilateral_passes, guided_passes=self.guided_passes)
        check_numbers(who, least=1, radius=self.radius)
        check_numbers(who, above=0, sigma_colour=self.sigma_colour, sigma_space=self.sigma_space, eps=self.eps)
        if self.diameter < 3 or self.diameter % 2 == 0:
            raise ValueError(f"{who}: diameter must be odd and at least 3, given {self.diameter}")

    def pure(self, x: Tensor, name: str, run: Run) -> Tensor:
        guide = made = x * 255
        for _ in range(self.bilateral_passes):
            made = bilateral(made, self.diameter, self.sigma_colour, self.sigma_space)
        for _ in range(self.guided_passes):
            made = guided(made, guide, self.radius, self.eps)
        return (made / 255).clamp(0, 1)


def bilateral(x: Tensor, diameter: int, sigma_colour: float, sigma_space: float) -> Tensor:
    """``cv2.bilateralFilter`` of CHW: over a disc, colours compared by the sum of their channels' differences, edges
    mirrored without the edge pixel."""
    radius, (height, width) = diameter // 2, x.shape[-2:]
    rows, columns = (_mirrored(side, radius, 0).to(x.device) for side in (height, width))
    around = x[:, rows][:, :, columns]
    total, weights = torch.zeros_like(x), torch.zeros_like(x[:1])
    for i in range(-radius, radius + 1):
        for j in range(-radius, radius + 1):
            if i * i + j * j > radius * radius:
                continue
            near = around[:, radius + i : radius + i + height, radius + j : radius + j + width]
            differs = (near - x).abs().sum(0, keepdim=True)
            weight = torch.exp(-(differs / sigma_colour).square() / 2 - (i * i + j * j) / (2 * sigma_space**2))
            total, weights = total + weight * near, weights + weight
    return total / weights


def guided(x: Tensor, guide: Tensor, radius: int, eps: float) -> Tensor:
    """``cv2.ximgproc.guidedFilter`` of CHW by a guide of three channels: the means, over the windows that a pixel is
    in, of ridge regressions of the picture on the guide; edges mirrored with the edge pixel. In float64: variances are
    differences of large numbers."""
    p, by = x.double(), guide.double()
    mean_by, mean_p = _mean(by, radius), _mean(p, radius)
    covariance = _mean(by[:, None] * by[None], radius) - mean_by[:, None] * mean_by[None]
    with_p = _mean(by[:, None] * p[None], radius) - mean_by[:, None] * mean_p[None]
    ridge = covariance.permute(2, 3, 0, 1) + eps * torch.eye(len(by), dtype=by.dtype, device=by.device)
    slope = torch.linalg.solve(ridge, with_p.permute(2, 3, 0, 1)).permute(2, 3, 0, 1)
    offset = mean_p - (slope * mean_by[:, None]).sum(0)
    return ((_mean(slope, radius) * by[:, None]).sum(0) + _mean(offset, radius)).to(x.dtype)


def _mean(x: Tensor, radius: int) -> Tensor:
    """Mean over the square window of every pixel of (..., H, W)."""
    height, width = x.shape[-2:]
    rows, columns = (_mirrored(side, radius, 1).to(x.device) for side in (height, width))
    around = x[..., rows, :][..., columns].reshape(-1, 1, height + 2 * radius, width + 2 * radius)
    return F.avg_pool2d(around, 2 * radius + 1, 1).reshape(x.shape)


def _mirrored(side: int, radius: int, edge: int) -> Tensor:
    """Indices from -radius to side + radius - 1 thrown back into 0 to side - 1 as often as need be; ``edge``: the edge
    pixel is seen in the mirror, too (1), or not (0)."""
    index = torch.arange(-radius, side + radius)
    period = max(1, 2 * side - 2 + 2 * edge)
    index = index.remainder(period)
    return torch.where(index < side, index, period - index - edge)
