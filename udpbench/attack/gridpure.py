"""GrIDPure: many rounds of a little DiffPure on overlapping windows, at the picture's own size.

Zhao et al., CVPR 2024 ("Can Protective Perturbation Safeguard Personal Data from Being Exploited by Stable
Diffusion?"), section 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from udpbench.attack.diffpure import PixelPurifier
from udpbench.core.component import check_numbers
from udpbench.core.images import as_saved, at_once
from udpbench.interfaces import Images, Run, Texts
from udpbench.models.pixel import PixelDiffusion


@dataclass(kw_only=True)
class GridPure(PixelPurifier):
    """In each round windows of the model's size, half of it apart, are purified and averaged where they overlap, and
    ``x <- (1 - gamma) purified + gamma x``, saved in 8 bits.

    The corners, which only one window sees, are purified once more, together as one window; where a side is no multiple
    of half a window, the last window ends at the edge. Our choices: a side shorter than a window is one, a picture
    of one window is purified once a round (the released code takes its corners for a second window, and the mean), and
    values are rounded to 8 bits (there they are cut off, which darkens a picture by half a step in each round), and the
    variance of a step is the smaller fixed one (the released model learnt its own).

    Args: those of ``PixelPurifier`` (t: in a round), and
        rounds: how many there are.
        gamma: what is kept of a picture in a round.
    """

    rounds: int
    gamma: float

    name = "gridpure"
    called = "gridpure_{t}x{rounds}"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(f"attack {self.name}", least=1, rounds=self.rounds)
        check_numbers(f"attack {self.name}", least=0, below=1, gamma=self.gamma)

    def purify(self, images: Images, names: Texts, prompts: Texts, model: PixelDiffusion, run: Run) -> list[Tensor]:
        out = []
        with run.log.bar(self.label, self.rounds * len(images), "round") as advance:
            for x, name in zip(images, names, strict=True):
                for k in range(self.rounds):
                    pure = self.in_windows(x, (name, k), model, run)
                    x = as_saved((1 - self.gamma) * pure + self.gamma * x)
                    advance(1)
                out.append(x)
        return out

    def in_windows(self, x: Tensor, key: tuple[object, ...], model: PixelDiffusion, run: Run) -> Tensor:
        """CHW purified in windows; random numbers belong to ``key`` and the window."""
        (_, height, width), total, times = x.shape, torch.zeros_like(x), torch.zeros_like(x[:1])
        size = min(height, model.size), min(width, model.size)
        windows, n = places((height, width), size), at_once(run.batch, *size)
        for first in range(0, len(windows), n):
            part = windows[first : first + n]
            rngs = [run.rng("gridpure", *key, first + j) for j in range(len(part))]
            tiles = torch.stack([put_together(x, *window) for window in part])
            made = self.there_and_back(tiles.to(run.device), rngs, model, run).cpu()
            for window, tile in zip(part, made, strict=True):
                for r, c, piece in taken_apart(tile, *window):
                    total[:, r, c] += piece
                    times[:, r, c] += 1
        return total / times


Window = tuple[list[slice], list[slice]]  # the rows and the columns whose crossings it is put together from


def put_together(x: Tensor, rows: Sequence[slice], columns: Sequence[slice]) -> Tensor:
    """The window of a picture, CHW, of its parts where ``rows`` and ``columns`` cross."""
    return torch.cat([torch.cat([x[:, r, c] for c in columns], 2) for r in rows], 1)


def taken_apart(tile: Tensor, rows: Sequence[slice], columns: Sequence[slice]) -> Iterator[tuple[slice, slice, Tensor]]:
    """The parts of such a window and where in the picture they belong."""
    heights, widths = ([part.stop - part.start for part in parts] for parts in (rows, columns))
    for r, band in zip(rows, tile.split(heights, 1), strict=True):
        for c, piece in zip(columns, band.split(widths, 2), strict=True):
            yield r, c, piece


def places(whole: tuple[int, int], size: tuple[int, int]) -> list[Window]:
    """The windows of a picture, and the four corners as one more if there are several."""
    firsts = [sorted({*range(0, w - s, max(1, s // 2)), w - s}) for w, s in zip(whole, size, strict=True)]
    rows, columns = ([[slice(first, first + s)] for first in of] for of, s in zip(firsts, size, strict=True))
    made: list[Window] = list(product(rows, columns))
    ends = [[slice(0, s // 2), slice(w - (s - s // 2), w)] for w, s in zip(whole, size, strict=True)]
    corners = [end if w > s else [slice(0, s)] for end, w, s in zip(ends, whole, size, strict=True)]
    return [*made, (corners[0], corners[1])] if len(made) > 1 else made
