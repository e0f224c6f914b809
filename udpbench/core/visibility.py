"""How visible a perturbation is, and how much of it is left after a website has recompressed the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from udpbench.core.budget import measure
from udpbench.core.codecs import recompress
from udpbench.core.images import as_saved, to_uint8

WINDOW = 11  # side of SSIM's window in pixels
GAUSSIAN = tuple(math.exp(-0.5 * ((k - WINDOW // 2) / 1.5) ** 2) for k in range(WINDOW))  # Wang et al.'s
UNIFORM = (1.0,) * WINDOW
STRIP = 1 << 18  # places of SSIM's window at a time


def visibility(clean: Tensor, protected: Tensor) -> dict[str, float | None]:
    """How far ``protected`` is from ``clean``; both CHW float32 [0,1] of one size, measured as they are saved (8 bits).

    ``linf`` and ``rms`` of 255, ``psnr`` in dB (None if the pictures are equal), ``ssim`` in [-1,1] (None below 11
    pixels).
    """
    a, b = (to_uint8(x).double()[None] / 255 for x in (clean, protected))
    found = float(psnr(b, a))
    similar = ssim(as_saved(clean), as_saved(protected))
    return {**measure(clean, protected), "psnr": found if math.isfinite(found) else None, "ssim": similar}


def psnr(changed: Tensor, original: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each of N pictures (NCHW, peak 1), (N,); infinite for equal ones."""
    return -10 * (changed - original).double().square().mean((1, 2, 3)).log10()


def ssim(a: Tensor, b: Tensor, window: Sequence[float] = GAUSSIAN) -> float | None:
    """Structural similarity of CHW pictures in [0,1] (Wang et al., 2004), in float64.

    11 x 11 window, Gaussian of sigma 1.5 unless other weights are given, K1 = 0.01, K2 = 0.03. Mean over channels and
    over all places where the window fits; None if it fits nowhere. The window is two passes of 11 weights, over a strip
    of rows at a time: the memory is that of a strip.
    """
    height, width = (side - WINDOW + 1 for side in a.shape[-2:])
    if min(height, width) < 1:
        return None
    rows, total = max(1, STRIP // a.shape[-1]), 0.0
    for top in range(0, height, rows):
        x, y = (t.detach()[:, top : top + rows + WINDOW - 1].double() for t in (a, b))
        mean_x, mean_y, xx, yy, xy = (_windowed(part, window) for part in (x, y, x * x, y * y, x * y))
        both, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
        luminance = (2 * both + 0.01**2) / (squares + 0.01**2)
        structure = (2 * (xy - both) + 0.03**2) / (xx + yy - squares + 0.03**2)
        total += float((luminance * structure).sum())
    return total / (len(a) * height * width)


def _windowed(x: Tensor, weights: Sequence[float]) -> Tensor:
    """Weighted means of CHW over the places where the window fits, (C, H - 10, W - 10)."""
    for axis in (1, 2):
        places = x.shape[axis] - WINDOW + 1
        x = sum(w / sum(weights) * x.narrow(axis, k, places) for k, w in enumerate(weights))  # type: ignore[assignment]
    return x


def survival(clean: Tensor, protected: Tensor, codec: str, quality: int) -> float | None:
    """The fraction of the perturbation's energy that survives ``codec`` (jpeg | webp, chroma 4:2:0), ``quality`` 1-100.

    With d = protected - clean and d' = codec(protected) - codec(clean), both of 8-bit CHW pictures, it is the energy of
    the part of d' that points along d: sign(c) * c^2 * |d'|^2 / |d|^2, c the cosine between d and d'. 1: unchanged, 0:
    removed or replaced by something unrelated, above 1: enlarged (quantisation rounds up, too), negative: reversed.
    None if the pictures are equal. ``compare`` gives cosine and energy ratio apart.
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
