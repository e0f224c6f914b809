"""Rotation, crop and erasing: the geometric distortions that benchmarks of watermarks put pictures through (WAVES, An
et al., ICML 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from udpbench.attack.each import EachPicture
from udpbench.core.component import check_numbers
from udpbench.core.pixels import cropped, resize, warped
from udpbench.interfaces import Run


@dataclass(kw_only=True)
class RotateCropErase(EachPicture):
    """Rotate, keep the centre at the old size, and grey out a rectangle.

    Our choices: one fixed distortion of all three; only the rectangle's place is drawn, for each picture. What a
    rotation brings in from outside is the picture's mirror image.

    Args:
        degrees: of the rotation, counterclockwise, 0 to 180.
        keep: fraction of both sides that is kept, above 0, at most 1.
        erase: fraction of the area of a rectangle of the picture's proportions that becomes middle grey, 0 to below 1.
    """

    degrees: float
    keep: float
    erase: float

    def __post_init__(self) -> None:
        check_numbers("attack rotate_crop_erase", least=0, most=180, degrees=self.degrees)
        check_numbers("attack rotate_crop_erase", above=0, most=1, keep=self.keep)
        check_numbers("attack rotate_crop_erase", least=0, below=1, erase=self.erase)

    def pure(self, x: Tensor, name: str, run: Run) -> Tensor:
        height, width = x.shape[-2:]
        angle = torch.deg2rad(torch.tensor(self.degrees))
        cos, sin, ratio = angle.cos(), angle.sin(), width / height
        matrix = torch.tensor([[cos, -sin / ratio, 0], [sin * ratio, cos, 0], [0, 0, 1]])  # sides are both 2 long here
        made = resize(cropped(warped(x, matrix), self.keep)[None], (height, width))[0]
        down, right = (round(side * self.erase**0.5) for side in (height, width))
        at = torch.rand(2, generator=run.rng("rotate_crop_erase", name))
        top, left = round(float(at[0]) * (height - down)), round(float(at[1]) * (width - right))
        made[:, top : top + down, left : left + right] = 0.5
        return made
