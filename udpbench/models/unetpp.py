"""UNet++, a U-Net whose skip connections are convolved on the way (Zhou et al., DLMIA 2018, arXiv 1807.10165)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNetPlusPlus(nn.Module):
    """Pictures in, three channels of the same size out, NCHW; sides need not be multiples of anything.

    ``X(i, j) = H([X(i, 0), ..., X(i, j-1), up(X(i+1, j-1))])`` (equation 1), ``H`` two 3 x 3 convolutions, level ``i``
    pooled ``i`` times; the output is a 1 x 1 convolution of ``X(0, depth)``, without deep supervision. Norms are of
    groups within a picture where the paper has batch norms, so that no picture depends on its batch.

    Args:
        widths: channels of each level, multiples of 8.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.depth = len(widths) - 1
        self.nodes = nn.ModuleDict()
        for j in range(len(widths)):
            for i in range(len(widths) - j):
                taken = j * widths[i] + widths[i + 1] if j else widths[i - 1] if i else 3
                self.nodes[f"{i}-{j}"] = _convolutions(taken, widths[i])
        self.last = nn.Conv2d(widths[0], 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        made: dict[tuple[int, int], Tensor] = {}
        for i in range(self.depth + 1):
            made[i, 0] = self.nodes[f"{i}-0"](F.max_pool2d(made[i - 1, 0], 2) if i else x)
        for j in range(1, self.depth + 1):
            for i in range(self.depth + 1 - j):
                size = made[i, 0].shape[-2:]
                below = F.interpolate(made[i + 1, j - 1], size, mode="bilinear", align_corners=True)
                made[i, j] = self.nodes[f"{i}-{j}"](torch.cat([*(made[i, k] for k in range(j)), below], 1))
        return self.last(made[0, self.depth])


def _convolutions(taken: int, given: int) -> nn.Sequential:
    first, second = nn.Conv2d(taken, given, 3, padding=1), nn.Conv2d(given, given, 3, padding=1)
    return nn.Sequential(first, nn.GroupNorm(8, given), nn.ReLU(), second, nn.GroupNorm(8, given), nn.ReLU())
