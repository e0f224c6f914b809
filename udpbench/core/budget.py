"""How far a picture may be changed. All lengths are in 1/255 of a pixel in [0,1], the steps of an 8-bit picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from udpbench.core.component import Component
from udpbench.core.images import to_uint8
from udpbench.core.pixels import is_grey

MAXIMUM = 128.0


class Budget(Component):
    """A bound on the perturbation of each picture, kept by the 8-bit PNG.

    Args:
        eps: the bound, of 255.
    """

    version = 2  # 2: grey pictures stay grey
    kind: ClassVar[str]  # what of ``measure`` it bounds
    least: ClassVar[float] = 0.0  # smallest eps; 0: any above 0
    score: str = ""  # by which a metric of perturbations must measure it; empty: it is one of ``measure``

    def __init__(self, eps: float) -> None:
        number = isinstance(eps, int | float) and not isinstance(eps, bool)
        if not number or not (eps >= self.least and 0 < eps <= MAXIMUM):
            allowed = f"{self.least:g} to {MAXIMUM:g}" if self.least else f"above 0 to {MAXIMUM:g}"
            raise ValueError(f"budget {self.kind}: eps (of 255) must be {allowed}, given {eps!r}")
        self.eps = float(eps)

    @property
    def name(self) -> str:
        """Kind and size, e.g. ``linf_8``."""
        return f"{self.kind}_{self.eps:g}"

    def project(self, x: Tensor, clean: Tensor) -> Tensor:
        """The picture nearest to ``x`` (about) within the bound around ``clean``, both NCHW float32 in [0,1].

        Where ``clean`` is grey, so is the result: a change of colour would give itself away, and go with the colour.
        ``clean`` is as read from an 8-bit picture; the bound holds after rounding to 8 bits, too.
        """
        raise NotImplementedError

    def direction(self, gradient: Tensor) -> Tensor:
        """The steepest step of length 1/255 in the geometry of the bound, NCHW: PGD multiplies it by its step size."""
        raise NotImplementedError

    def finished(
        self, who: str, made: Sequence[Tensor], clean: Sequence[Tensor], names: Sequence[str], run: Any
    ) -> list[Tensor]:
        """What is saved of the pictures that ``who`` has made of the ``clean`` ones (CHW [0,1], on the CPU): here all
        of it. The harness calls it; ``run``: a ``udpbench.interfaces.Run``."""
        return list(made)

    @property
    def facts(self) -> dict[str, Any]:
        """What records say of it: ``udpbench.results.schema.BudgetFacts``."""
        return {"kind": self.kind, "eps": self.eps}


class Linf(Budget):
    """No value may change by more than ``eps``; at least 1, for less would leave every 8-bit picture as it is."""

    kind: ClassVar[str] = "linf"
    least: ClassVar[float] = 1.0

    def __init__(self, eps: float) -> None:
        super().__init__(eps)
        # A saved value differs from the clean one by whole steps: beyond n + 1/2 rounding would carry it to n + 1.
        self._radius = min(self.eps, math.floor(self.eps) + 0.49) / 255

    def project(self, x: Tensor, clean: Tensor) -> Tensor:
        """Clip ``x`` to [0,1] and to the ball around ``clean``, which for an eps of n + 0.5 and more ends just below
        n + 0.5 (7.65: at 7.49)."""
        x = _colourless(x, clean)
        return x.clamp(clean - self._radius, clean + self._radius).clamp(0, 1)

    def direction(self, gradient: Tensor) -> Tensor:
        """The sign of the gradient, over 255."""
        return gradient.sign() / 255


class RMS(Budget):
    """The root mean square of the change, over all pixels and channels of one picture, may not exceed ``eps``.

    An L2 ball: its L2 radius on [0,1] pixels is eps/255 * sqrt(C*H*W).
    """

    kind: ClassVar[str] = "rms"

    def project(self, x: Tensor, clean: Tensor) -> Tensor:
        """Shrink the change of each picture to the ball.

        Rounding to 8 bits can lengthen a change (many pixels just above half a step), so where it would break the
        bound the change is shrunk further: bisection, for the length after rounding grows with the factor. The
        factor counts as a constant in gradients.
        """
        change = _colourless(x, clean).clamp(0, 1) - clean
        return _moved(clean, change, self._factor(change.detach(), clean))

    def _factor(self, change: Tensor, clean: Tensor) -> Tensor:
        """The largest factor of the change, at most 1 and about, that keeps the bound, (N,)."""
        length = change.square().flatten(1).mean(1).sqrt() * 255
        factor = (self.eps / length.clamp(min=1e-12)).clamp(max=1)
        low, high = torch.zeros_like(factor), factor
        ok = self._fits(change, factor, clean)
        if change.device.type == "cpu" and bool(ok.all()):  # a GPU would be waited for; the result is the same
            return factor
        for _ in range(20):
            middle = torch.where(ok, factor, (low + high) / 2)
            fits = self._fits(change, middle, clean)
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        return torch.where(ok, factor, low)

    def _fits(self, change: Tensor, factor: Tensor, clean: Tensor) -> Tensor:
        steps = to_uint8(_moved(clean, change, factor)).long() - to_uint8(clean).long()
        return steps.square().flatten(1).sum(1) <= self.eps**2 * steps[0].numel()

    def direction(self, gradient: Tensor) -> Tensor:
        """The gradient of each picture, scaled to a root mean square of 1/255."""
        return rms_direction(gradient)


def rms_direction(gradient: Tensor) -> Tensor:
    """N gradients (NCHW), each scaled to a root mean square of 1/255."""
    length = gradient.square().flatten(1).mean(1).sqrt().clamp(min=1e-20)
    return gradient / length.view(-1, 1, 1, 1) / 255


def _colourless(x: Tensor, clean: Tensor) -> Tensor:
    """``x`` with the mean of its channels in all of them where ``clean`` is grey, which keeps the bounds that ``x``
    keeps."""
    return torch.where(is_grey(clean), x.mean(1, keepdim=True), x)


def _moved(clean: Tensor, change: Tensor, factor: Tensor) -> Tensor:
    return (clean + change * factor.view(-1, 1, 1, 1)).clamp(0, 1)


def measure(clean: Tensor, changed: Tensor) -> dict[str, float]:
    """The change of the 8-bit pictures (CHW or NCHW), of 255: ``linf``, the largest, and ``rms``."""
    if clean.shape != changed.shape:
        sizes = f"{tuple(clean.shape)} and {tuple(changed.shape)}"
        raise ValueError(f"budget: pictures must be of the same size, given {sizes}")
    steps = (to_uint8(changed).cpu().int() - to_uint8(clean).cpu().int()).abs()
    return {"linf": float(steps.max()), "rms": math.sqrt(int(steps.square().sum()) / steps.numel())}
