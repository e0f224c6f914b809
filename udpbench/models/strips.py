"""Networks that see large pictures in little memory: a strip of rows at a time, nothing kept that is done with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udpbench.core.memory import give_freed_memory_back

STRIP = 1 << 19  # pixels of a strip of rows
STRIDE = 4  # what every strip begins at a multiple of: layers' strides divide it


def strips(x: Tensor, margin: int, pixels: int) -> Iterator[tuple[Tensor, int, int]]:
    """NCHW in strips of rows, about ``pixels`` of each picture and ``margin`` rows on either side (a multiple of
    ``STRIDE``), and where the rows of a strip itself begin and end in it.

    Layers pad a picture by what its height leaves over a stride: a strip leaves over what the whole leaves.
    """
    height = x.shape[-2]
    rows = max(margin, pixels // x.shape[-1] // STRIDE * STRIDE)
    for top in range(0, height, rows):
        first, bottom = max(0, top - margin), min(height, top + rows)
        yield x[:, :, first : min(height, bottom + margin + height % STRIDE)], top - first, bottom - first


def sparingly(autoencoder: nn.Module) -> None:
    """From now on diffusers' ``autoencoder`` takes large pictures in little memory where no gradient is wanted; smaller
    ones go the same way as ever."""
    for layer in autoencoder.modules():
        layer.__class__ = SPARING.get(layer.__class__, layer.__class__)


class StripConv(nn.Conv2d):
    """A convolution of up to 7 x 7 with stride 1 or 2, of strips: libraries copy what a layer takes and gives."""

    def forward(self, x: Tensor) -> Tensor:
        if not _is_large(x):
            return super().forward(x)
        give_freed_memory_back()
        (stride, _), done = self.stride, 0
        height, width = (
            (side + 2 * pad - kernel) // stride + 1  # type: ignore[operator]
            for side, pad, kernel in zip(x.shape[-2:], self.padding, self.kernel_size, strict=True)
        )
        found = x.new_empty(len(x), self.out_channels, height, width)  # filled in turn: a list would be all of it again
        for part, top, bottom in strips(x, STRIDE, STRIP // 4):
            rows = super().forward(part)[:, :, top // stride : -(-bottom // stride)]
            found[:, :, done : done + rows.shape[-2]] = rows
            done += rows.shape[-2]
        return found


class SparingNorm(nn.GroupNorm):
    """A norm before which what the layer before it freed goes back to the system."""

    def forward(self, x: Tensor) -> Tensor:
        if _is_large(x):
            give_freed_memory_back()
        return super().forward(x)


class InPlaceSiLU(nn.SiLU):
    """Writes over what it is given: here that is a norm's, and nobody else's."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x, inplace=_is_large(x))


def _is_large(x: Tensor) -> bool:
    # Of more than 1024 x 1024 px: what diffusion models are trained on goes through at once.
    return not torch.is_grad_enabled() and x.shape[-2] * x.shape[-1] > 2 * STRIP


SPARING: dict[type, type] = {nn.Conv2d: StripConv, nn.GroupNorm: SparingNorm, nn.SiLU: InPlaceSiLU}
