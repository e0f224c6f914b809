"""How far a picture may be changed.

All lengths are 8-bit levels: 1/255 of a pixel in [0,1].
"""

from __future__ import annotations

import math
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from udpbench.core.images import to_uint8

MAXIMUM = 128.0


class Budget(Protocol):
    """A bound on the perturbation of each picture, kept by the 8-bit PNG."""

    eps: float

    @property
    def name(self) -> str:
        """Kind and size, e.g. ``linf_8``."""
        ...

    def project(self, x: Tensor, clean: Tensor) -> Tensor:
        """The picture nearest to ``x`` (about) within the bound around ``clean``, both NCHW float32 in [0,1]."""
        ...

    def direction(self, gradient: Tensor) -> Tensor:
        """The steepest step of one level within the geometry of the bound, NCHW: what PGD multiplies by its step
        size."""
        ...

    def holds(self, measured: dict[str, float]) -> bool:
        """Whether what ``measure`` found is within the bound."""
        ...


class Linf:
    """No pixel may change by more than ``levels``; at least 1, for less would leave every 8-bit picture as it is."""

    kind: ClassVar[str] = "linf"

    def __init__(self, eps: float) -> None:
        self.eps = _checked("linf", eps, 1.0)
        # A saved pixel is a whole number of levels from the clean one: beyond n + 1/2 rounding would carry it to n + 1.
        self._radius = min(self.eps, math.floor(self.eps) + 0.49) / 255

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.eps:g}"

    def project(self, x: Tensor, clean: Tensor) -> Tensor:
        """Clip ``x`` to the ball around ``clean`` and to [0,1]; both NCHW, ``clean`` as read from an 8-bit picture.

        The bound holds after rounding to 8 bits, too: the ball for n + 0.5 levels and more ends just below n + 0.5.
        """
        return torch.minimum(torch.maximum(x, clean - self._radius), clean + self._radius).clamp(0, 1)

    def direction(self, gradient: Tensor) -> Tensor:
        """One level along the sign of the gradient."""
        return gradient.sign() / 255

    def holds(self, measured: dict[str, float]) -> bool:
        return measured["linf"] <= self.eps


class RMS:
    """The root mean square of the change, over all pixels and channels of one picture, may not exceed ``levels``.

    An L2 ball: its L2 radius on [0,1] pixels is levels/255 * sqrt(C*H*W).
    """

    kind: ClassVar[str] = "rms"

    def __init__(self, eps: float) -> None:
        self.eps = _checked("rms", eps, 0.0)

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.eps:g}"

    def project(self, x: Tensor, clean: Tensor) -> Tensor:
        """Shrink the change of each picture to the ball; both NCHW, ``clean`` as read from an 8-bit picture.

        Rounding to 8 bits can lengthen a change (many pixels just above half a level), so where it would break the
        bound the change is shrunk further: bisection, for the length after rounding grows with the factor.
        """
        change = x.clamp(0, 1) - clean
        length = change.square().flatten(1).mean(1).sqrt() * 255
        factor = (self.eps / length.clamp(min=1e-12)).clamp(max=1)
        low, high = torch.zeros_like(factor), factor
        if bool((ok := self._fits(change, factor, clean)).all()):
            return _moved(clean, change, factor)
        for _ in range(20):
            middle = torch.where(ok, factor, (low + high) / 2)
            fits = self._fits(change, middle, clean)
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        return _moved(clean, change, torch.where(ok, factor, low))

    def _fits(self, change: Tensor, factor: Tensor, clean: Tensor) -> Tensor:
        steps = to_uint8(_moved(clean, change, factor)).long() - to_uint8(clean).long()
        return steps.square().flatten(1).sum(1) <= self.eps**2 * steps[0].numel()

    def direction(self, gradient: Tensor) -> Tensor:
        """The gradient of each picture at a root mean square of one level."""
        length = gradient.square().flatten(1).mean(1).sqrt().clamp(min=1e-20)
        return gradient / length.view(-1, 1, 1, 1) / 255

    def holds(self, measured: dict[str, float]) -> bool:
        return measured["rms"] <= self.eps * (1 + 1e-9)


def _moved(clean: Tensor, change: Tensor, factor: Tensor) -> Tensor:
    return (clean + change * factor.view(-1, 1, 1, 1)).clamp(0, 1)


def _checked(kind: str, eps: float, least: float) -> float:
    number = isinstance(eps, int | float) and not isinstance(eps, bool)
    if not number or not (eps >= least and 0 < eps <= MAXIMUM):
        allowed = f"{least:g} to {MAXIMUM:g}" if least else f"above 0 to {MAXIMUM:g}"
        raise ValueError(f"budget {kind}: eps (of 255) must be {allowed}, given {eps!r}")
    return float(eps)


def measure(clean: Tensor, changed: Tensor) -> dict[str, float]:
    """What was changed, in levels on the 8-bit pictures (CHW or NCHW): ``linf`` (largest), ``rms``, ``mean_abs``."""
    if clean.shape != changed.shape:
        sizes = f"{tuple(clean.shape)} and {tuple(changed.shape)}"
        raise ValueError(f"budget: pictures must be of the same size, given {sizes}")
    steps = (to_uint8(changed).cpu().long() - to_uint8(clean).cpu().long()).abs()
    n = steps.numel()
    return {
        "linf": float(steps.max()),
        "rms": math.sqrt(int(steps.square().sum()) / n),
        "mean_abs": int(steps.sum()) / n,
    }
