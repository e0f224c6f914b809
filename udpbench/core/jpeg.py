"""The lossy part of JPEG as a function of pictures: colour, blocks, cosine transform, quantisation (ITU-T T.81, JFIF);
chroma is not subsampled (4:4:4)."""

from __future__ import annotations

import io
import math

import torch
from PIL import Image
from torch import Tensor

from udpbench.core.pixels import padded

SIDE = 8  # of a block
# Y, Cb, Cr of R, G, B (JFIF; ITU-R BT.601)
YCBCR = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def quantisation(quality: int) -> Tensor:
    """Quantisation steps of Y, Cb, Cr, (3, 8, 8), of the encoder that is in use here (libjpeg's in Pillow)."""
    stream = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(stream, format="JPEG", quality=quality, subsampling="4:4:4")
    tables = Image.open(stream).quantization  # type: ignore[attr-defined]  # a JPEG's
    luma, chroma = (torch.tensor(tables[k], dtype=torch.float32).view(SIDE, SIDE) for k in (0, 1))
    return torch.stack([luma, chroma, chroma])


def coefficients(x: Tensor, steps: Tensor) -> Tensor:
    """Quantised coefficients, rounded, of pictures (NCHW [0,1]) by ``steps`` (3, 8, 8); each block in its own place,
    sides filled up to multiples of 8 with the last pixels."""
    x = padded(x * 255, SIDE)
    planes = torch.einsum("ij,njhw->nihw", YCBCR.to(x), x).round()  # as 8-bit encoders do
    planes[:, 0] -= 128
    return (_blockwise(planes, _cosines().to(x)) / _tiled(steps, x)).round()


def decoded(c: Tensor, steps: Tensor, height: int, width: int) -> Tensor:
    """Pictures of ``coefficients``, cut to ``height`` and ``width``, NCHW, clamped to [0,1]; differentiable."""
    planes = _blockwise(c * _tiled(steps, c), _cosines().T.to(c))
    rgb = torch.einsum("ij,njhw->nihw", torch.linalg.inv(YCBCR).to(c), planes) + 128
    return (rgb / 255).clamp(0, 1)[..., :height, :width]


def _cosines() -> Tensor:
    """The orthonormal DCT of eight values, (8, 8), a basis vector a row."""
    k = torch.arange(SIDE)
    basis = torch.cos((2 * k + 1) * k[:, None] * math.pi / (2 * SIDE)) * math.sqrt(2 / SIDE)
    basis[0] /= math.sqrt(2)
    return basis


def _blockwise(planes: Tensor, matrix: Tensor) -> Tensor:
    """``matrix @ block @ matrix.T`` of every block."""
    n, c, h, w = planes.shape
    blocks = planes.view(n, c, h // SIDE, SIDE, w // SIDE, SIDE)
    return torch.einsum("ij,ncajbk,lk->ncaibl", matrix, blocks, matrix).reshape(n, c, h, w)


def _tiled(steps: Tensor, like: Tensor) -> Tensor:
    return steps.to(like).repeat(1, like.shape[-2] // SIDE, like.shape[-1] // SIDE)
