"""What a cloak looks like, and what of it is left after a website has recompressed the picture."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from udpbench.core.budget import measure
from udpbench.core.images import as_saved, recompress


def visibility(clean: Tensor, protected: Tensor) -> dict[str, float | None]:
    """How far ``protected`` is from ``clean``; both CHW float32 [0,1] of one size, measured as they are saved (8 bits).

    ``linf`` and ``rms`` in levels (1/255), ``psnr`` in dB (None if the pictures are equal), ``ssim`` in [-1,1] (None
    below 11 pixels).
    """
    lengths = measure(clean, protected)
    psnr = 20 * math.log10(255 / lengths["rms"]) if lengths["rms"] else None
    return {
        "linf": lengths["linf"],
        "rms": lengths["rms"],
        "psnr": psnr,
        "ssim": ssim(as_saved(clean), as_saved(protected)),
    }


def ssim(a: Tensor, b: Tensor) -> float | None:
    """Structural similarity of CHW pictures in [0,1] (Wang et al., 2004).

    11 x 11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03. Mean over channels and over all places where the window
    fits; None if it fits nowhere.
    """
    if min(a.shape[-2:]) < 11:
        return None
    axis = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(axis**2) / (2 * 1.5**2))
    window = torch.outer(line, line)[None, None] / line.sum() ** 2
    x, y = (t.detach().cpu().double()[:, None] for t in (a, b))

    def local(t: Tensor) -> Tensor:
        return F.conv2d(t, window)

    mx, my = local(x), local(y)
    vx, vy, vxy = local(x * x) - mx**2, local(y * y) - my**2, local(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return float((((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


def survival(clean: Tensor, protected: Tensor, codec: str, quality: int) -> float | None:
    """The share of the perturbation's energy that survives ``codec`` (jpeg | webp, chroma 4:2:0), ``quality`` 1-100.

    With d = protected - clean and d' = codec(protected) - codec(clean), both of 8-bit CHW pictures, it is the energy of the
    part of d' that points along d: sign(c) * c^2 * |d'|^2 / |d|^2, c the cosine between d and d'. 1: untouched, 0: gone
    or replaced by something unrelated, negative: turned round. None if the pictures are equal. ``compare`` gives cosine
    and energy ratio apart.
    """
    cosine, energy = compare(clean, protected, codec, quality)
    return None if cosine is None or energy is None else math.copysign(cosine**2 * energy, cosine)


def compare(clean: Tensor, protected: Tensor, codec: str, quality: int) -> tuple[float | None, float | None]:
    """Cosine of d and d', and |d'|^2 / |d|^2 (see ``survival``); with nothing left both are 0, both None if d = 0."""
    before = (as_saved(protected) - as_saved(clean)).double().cpu()
    after = (recompress(protected, codec, quality) - recompress(clean, codec, quality)).double()
    old, new = float(before.square().sum()), float(after.square().sum())
    if not old:
        return None, None
    return (float((before * after).sum()) / math.sqrt(old * new) if new else 0.0), new / old
