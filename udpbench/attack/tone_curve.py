"""A global tone curve, as every photo editor has one: users report that it gives edits of protected pictures back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from udpbench.attack.each import EachPicture
from udpbench.core.component import check_numbers
from udpbench.interfaces import Run


@dataclass(kw_only=True)
class ToneCurve(EachPicture):
    """Map every value by one monotone curve (Fritsch & Carlson 1980) through given points.

    Args:
        inputs, outputs: the points, of 255; ``inputs`` rise from 0 to 255, ``outputs`` never fall.
    """

    inputs: Sequence[float]
    outputs: Sequence[float]

    def __post_init__(self) -> None:
        given = f"given {list(self.inputs)} and {list(self.outputs)}"
        for value in (*self.inputs, *self.outputs):
            check_numbers("attack tone_curve", least=0, most=255, point=value)
        steps = list(zip(self.inputs, self.inputs[1:], strict=False))
        whole = len(self.inputs) == len(self.outputs) >= 2 and (self.inputs[0], self.inputs[-1]) == (0, 255)
        if not whole or any(a >= b for a, b in steps) or list(self.outputs) != sorted(self.outputs):
            wanted = "as many inputs, rising from 0 to 255, as outputs, which never fall"
            raise ValueError(f"attack tone_curve: there must be {wanted}; {given}")

    def pure(self, x: Tensor, name: str, run: Run) -> Tensor:
        from scipy.interpolate import PchipInterpolator

        curve = PchipInterpolator(self.inputs, self.outputs)
        return torch.from_numpy(curve(x.cpu().double().numpy() * 255) / 255).to(x.dtype).clamp(0, 1)
