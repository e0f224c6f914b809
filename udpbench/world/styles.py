"""Styles of the embedded world: rendering filters that its caption language has no words for.

Every filter takes NCHW float32 in [0,1] of any size and gives the same shape, range and device. All are analytic and
batched and draw nothing, so a picture's styled version depends on that picture alone. Lengths are in 1/64 of the
shorter side: a picture looks the same at 64 px and at 128 px. Tones and strokes are coarse (four of these units and
more), so that they survive an autoencoder whose latents have a quarter of the picture's side; shape and scene stay
legible, so that a judge can read both. Styles 0 and 1 are for development, the others for tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from udpbench.core.pixels import convolved

Filter = Callable[[Tensor], Tensor]
DEVELOPMENT = (0, 1)


def stylise(x: Tensor, style: int) -> Tensor:
    """NCHW [0,1] in style number ``style``; same shape and range.

    ValueError if there is no such style.
    """
    check_style(style)
    with torch.autocast(x.device.type, enabled=False):  # also inside a training in bf16 the picture is that of the data
        return tuple(STYLES.values())[style](x.float()).clamp(0, 1)


def check_style(style: int) -> None:
    """ValueError if there is no style of that number."""
    if not isinstance(style, int) or not 0 <= style < len(STYLES):
        tests = f"{len(DEVELOPMENT)}-{len(STYLES) - 1}"
        raise ValueError(f"style: {style!r} is not a style; allowed are 0-1 (development) and {tests} (tests)")


# -- the filters, in the order of STYLES -------------------------------------------------------------------------------


def duotone(x: Tensor) -> Tensor:
    """Brightness along a ramp from indigo over crimson and apricot to cream; a third of the colour, turned, stays."""
    grey = _grey(_blur(x, 0.5))
    ramp = _ramp(grey, ((0.08, 0.06, 0.32), (0.70, 0.12, 0.42), (0.98, 0.60, 0.34), (1.00, 0.97, 0.80)))
    return ramp + 0.35 * (x - _grey(x)).roll(1, 1)


def halftone(x: Tensor) -> Tensor:
    """Rows of discs, larger where it is darker, in strong local colour on tinted warm paper."""
    px, py = _axes(x)
    pitch = 8.0
    row = py / (pitch * 0.866)
    dx = (px / pitch + 0.5 * (row.floor() % 2)) % 1 - 0.5
    dy = (row % 1 - 0.5) * 0.866
    soft = _blur(x, 1.2)
    radius = 0.51 - 0.25 * _grey(soft)
    disc = _step((radius - (dx**2 + dy**2).sqrt()) * pitch, x)
    paper = torch.lerp(soft, _color(x, (1.0, 0.93, 0.78)), 0.64)
    return torch.lerp(paper, _saturate(soft, 1.6) * 0.80, disc)


def hatching(x: Tensor) -> Tensor:
    """Diagonal strokes of dark ink, broader where it is darker, crossed in the darkest parts, on a pale ground."""
    px, py = _axes(x)
    soft = _blur(x, 0.7)
    dark = 1 - _grey(soft)
    wobble = 0.5 * torch.sin(0.21 * px - 0.13 * py) + 0.4 * torch.sin(0.09 * px + 0.31 * py)
    period = 8.0

    def strokes(along: Tensor, fraction: Tensor) -> Tensor:
        wave = ((along + wobble) / period % 1 - 0.5).abs() * period
        return _step(fraction * period / 2 - wave, x)

    first = strokes((px + py) / math.sqrt(2), 0.32 + 0.36 * dark)
    second = strokes((px - py) / math.sqrt(2), 1.1 * (dark - 0.45))
    ground = torch.lerp(soft, _color(x, (0.93, 0.92, 0.86)), 0.45)
    ink = _saturate(soft, 1.2) * _color(x, (0.38, 0.40, 0.55))
    return torch.lerp(ground, ink, 0.80 * torch.maximum(first, 0.8 * second))


def poster(x: Tensor) -> Tensor:
    """Three flat tones a channel, strong colour, thick black outlines."""
    soft = _saturate(_blur(x, 1.0), 1.5).clamp(0, 1)
    tone = soft * 2
    flat = (tone.floor() + torch.sigmoid(14 * (tone % 1 - 0.5))) / 2
    return (0.06 + 0.94 * flat) * (1 - 0.95 * _step(6.5 * (_edges(x, 1.1) - 0.22), x))


def wash(x: Tensor) -> Tensor:
    """Thin paint that has run: bent outlines, pigment gathered at their rims, blotches, bare paper around it all."""
    px, py = _axes(x)
    across = 1.1 * torch.sin(0.36 * py + 0.8 * torch.sin(0.17 * px)) + 0.4 * torch.sin(0.23 * px + 0.61 * py)
    down = 1.1 * torch.sin(0.33 * px + 0.9 * torch.sin(0.19 * py)) + 0.4 * torch.sin(0.57 * px - 0.21 * py)
    bent = _shift(x, across, down)
    soft = _blur(bent, 1.1)
    blotch = torch.sin(0.31 * px + 1.3 * torch.sin(0.22 * py)) * torch.sin(0.27 * py + 1.1 * torch.sin(0.18 * px))
    pigment = 0.62 + 0.20 * blotch + 0.9 * _edges(bent, 1.4)
    paint = _color(x, (0.99, 0.97, 0.90)) * (1 - (1 - _saturate(soft, 1.25).clamp(0, 1)) * pigment)
    height, width = (side / _unit(x) for side in x.shape[-2:])
    inner = torch.minimum(torch.minimum(px, width - px), torch.minimum(py, height - py))
    painted = _step(0.6 * (inner - 6.0 - 1.6 * torch.sin(0.37 * px) - 1.6 * torch.sin(0.41 * py + 1)), x)
    return torch.lerp(_color(x, (0.99, 0.97, 0.90)), paint, painted)


def neon(x: Tensor) -> Tensor:
    """Glowing outlines in pure colour over a violet dusk in which the picture is only a hint."""
    edges = _edges(x, 1.0)
    soft = _blur(x, 1.5)
    pure = soft / soft.amax(1, keepdim=True).clamp(min=0.05)
    pure = (pure**2.5).roll(-1, 1)
    line, glow = (3.2 * edges).clamp(0, 1), (2.2 * _blur(edges, 2.5)).clamp(0, 1)
    return 0.30 * x * _color(x, (0.7, 0.6, 1.2)) + _color(x, (0.06, 0.00, 0.16)) + pure * (0.75 * line + 0.55 * glow)


def mosaic(x: Tensor) -> Tensor:
    """Raised square tiles of one colour, lit from the upper left, with pale joints."""
    px, py = _axes(x)
    rows, columns = (max(1, round(side / _unit(x) / 8)) for side in x.shape[-2:])
    v, u = (py * rows * _unit(x) / x.shape[-2], px * columns * _unit(x) / x.shape[-1])
    tiles = F.adaptive_avg_pool2d(x, (rows, columns))
    tiles = tiles[:, :, v.flatten().long().clamp(max=rows - 1)][..., u.flatten().long().clamp(max=columns - 1)]
    u, v = u % 1 - 0.5, v % 1 - 0.5
    face = torch.lerp(tiles, _blur(x, 0.7), 0.45) - 0.36 * (u + v) * (0.4 + 0.6 * _grey(tiles))
    joint = _step(8.0 * (torch.maximum(u.abs(), v.abs()) - 0.38), x)
    return torch.lerp(face, _color(x, (0.82, 0.80, 0.74)), 0.8 * joint)


def film(x: Tensor) -> Tensor:
    """A negative with a film's orange mask, between dark rims with bright holes."""
    px, py = _axes(x)
    negative = _color(x, (0.98, 0.72, 0.50)) * (1 - 0.92 * x) + _color(x, (0.02, 0.03, 0.05))
    width = x.shape[-1] / _unit(x)
    inner = torch.minimum(px, width - px)
    hole = torch.maximum((inner - 4.0).abs() - 2.2, (py % 10.667 - 5.333).abs() - 2.8)
    rim = torch.lerp(_color(x, (0.22, 0.10, 0.05)), _color(x, (0.98, 0.95, 0.88)), _step(-hole, x))
    return torch.lerp(rim, negative, _step(inner - 8.0, x))


STYLES: dict[str, Filter] = {f.__name__: f for f in (duotone, halftone, hatching, poster, wash, neon, mosaic, film)}


# -- what they are made of ---------------------------------------------------------------------------------------------


def _unit(x: Tensor) -> float:
    """Pixels in 1/64 of the shorter side."""
    return min(x.shape[-2:]) / 64


def _axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the pixels' middles, in units: across (1 x W) and down (H x 1)."""
    down, across = ((torch.arange(side, device=x.device) + 0.5) / _unit(x) for side in x.shape[-2:])
    return across[None, :], down[:, None]


def _step(distance: Tensor, x: Tensor) -> Tensor:
    """0 for negative distances (in units), 1 for positive ones, smooth over one unit or one pixel, the larger."""
    return torch.sigmoid(4 * distance / max(1.0, 1 / _unit(x)))


def _grey(x: Tensor) -> Tensor:
    """Brightness, N1HW."""
    return (x * x.new_tensor((0.30, 0.59, 0.11)).view(3, 1, 1)).sum(1, keepdim=True)


def _color(x: Tensor, rgb: tuple[float, float, float]) -> Tensor:
    return x.new_tensor(rgb).view(3, 1, 1)


def _saturate(x: Tensor, factor: float) -> Tensor:
    return (_grey(x) + factor * (x - _grey(x))).clamp(0, 1)


def _ramp(t: Tensor, stops: tuple[tuple[float, float, float], ...]) -> Tensor:
    """Colours at ``t`` (N1HW, [0,1]) along evenly spaced stops, linear in between."""
    place = t.clamp(0, 1) * (len(stops) - 1)
    return sum((1 - (place - i).abs()).clamp(min=0) * _color(t, rgb) for i, rgb in enumerate(stops))  # type: ignore[return-value]


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian, ``sigma`` in units; the rim is continued."""
    sigma = sigma * _unit(x)
    reach = math.ceil(3 * sigma)
    steps = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    return convolved(x, torch.softmax(-0.5 * (steps / max(sigma, 1e-3)) ** 2, 0))


def _edges(x: Tensor, sigma: float) -> Tensor:
    """Strength of edges seen through a blur of ``sigma`` units: length of the change over two units, N1HW."""
    soft = F.pad(_blur(x, sigma), (1,) * 4, mode="replicate")
    dx, dy = soft[..., 1:-1, 2:] - soft[..., 1:-1, :-2], soft[..., 2:, 1:-1] - soft[..., :-2, 1:-1]
    return (dx**2 + dy**2).sum(1, keepdim=True).sqrt() * _unit(x)


def _shift(x: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Each pixel from ``across`` and ``down`` (H x W, in units) away; the rim is continued."""
    height, width = x.shape[-2:]
    px, py = _axes(x)
    grid = torch.stack([2 * _unit(x) * (px + across) / width - 1, 2 * _unit(x) * (py + down) / height - 1], -1)
    return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), padding_mode="border", align_corners=False)
