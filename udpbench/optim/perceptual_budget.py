"""A budget of visibility: every perturbation is scaled to one perceptual distance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from udpbench.core.budget import Budget, measure
from udpbench.core.component import check_choice, check_numbers
from udpbench.core.images import as_saved
from udpbench.interfaces import Run
from udpbench.models.perceptual import PERCEPTUAL, ToOriginal, check_distance, load_distance
from udpbench.optim.pgd import chunks

HALVINGS = 14
At = Callable[[Tensor], tuple[Tensor, Tensor]]  # factors (N,) -> pictures with them, and their distances (N,)


class Perceptual(Budget):
    """The pictures are made within ``inner``, then the perturbation of each is multiplied by the one factor at which
    its saved PNG has the perceptual ``distance`` to the clean picture.

    While a method works, the bound is that of ``inner``: ``eps``, ``project`` and ``direction`` are its. A factor above
    1 enlarges a weak perturbation as far as ``inner`` has room. Many perturbations have the size +-eps nearly
    everywhere; rounded, their multiples would jump from one distance to the next, so they are rounded at random
    (``scaled``), by a draw that belongs to the picture. The distance is never exceeded, and missed by what the smallest
    step of the factor changes.

    Args:
        inner: the bound while the method works.
        distance: to be reached, on the scale of the network.
        network: of the distance: lite1, lpips_vgg, lpips_alex or lpips_squeeze (``udpbench.models.perceptual``).
        weights: file with the trunk of the LPIPS network; None: where torch hub keeps it.
    """

    version = 1
    kind: ClassVar[str] = "perceptual"

    def __init__(self, inner: Budget, distance: float, network: str = "lite1", weights: str | None = None) -> None:
        check_numbers("budget perceptual", above=0, distance=distance)
        check_choice("budget perceptual: unknown network", network, PERCEPTUAL)
        if isinstance(inner, Perceptual):
            raise ValueError("budget perceptual: inner must be a bound on pixels (linf, rms), given perceptual")
        super().__init__(inner.eps)
        self.inner, self.distance, self.network, self.weights = inner, float(distance), network, weights
        self.score = "dist_lite1" if network == "lite1" else network

    @property
    def name(self) -> str:
        """Distance and inner bound, e.g. ``lite1_0.4_in_linf_16``."""
        return f"{self.network}_{self.distance:g}_in_{self.inner.name}"

    @property
    def facts(self) -> dict[str, Any]:
        found = {"kind": self.kind, "eps": self.eps, "inner": self.inner.kind}
        return found | {"distance": self.distance, "network": self.network, "score": self.score}

    def check(self) -> None:
        check_distance(self.network, self.weights)

    def project(self, x: Tensor, clean: Tensor) -> Tensor:
        return self.inner.project(x, clean)

    def direction(self, gradient: Tensor) -> Tensor:
        return self.inner.direction(gradient)

    def finished(
        self, who: str, made: Sequence[Tensor], clean: Sequence[Tensor], names: Sequence[str], run: Run
    ) -> list[Tensor]:
        """Each picture at the distance, rounded to 8 bits; ValueError if ``who`` cannot reach it with one."""
        out = list(made)
        distance = load_distance(self.network, self.weights, run.device)
        for index in chunks(clean, run.batch):
            x, y = (torch.stack([pictures[i].cpu() for i in index]) for pictures in (clean, made))
            draw = torch.stack([torch.rand((1, *x.shape[-2:]), generator=run.rng("dither", names[i])) for i in index])
            at = partial(self._scaled, x, y, draw, distance.to_original(x.to(run.device)), run.device)
            most = self._largest(who, [names[i] for i in index], x, y, at)
            for i, picture in zip(index, self._at_distance(x, most, at), strict=True):
                out[i] = picture
        return out

    def _scaled(
        self, clean: Tensor, made: Tensor, draw: Tensor, to_original: ToOriginal, device: torch.device, factor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """N pictures (NCHW) whose changes are ``factor`` (N,) times those of ``made``, as far as the inner bound lets
        them grow, and their distances (N,) to the clean ones."""
        x = scaled(clean, made, factor, draw)
        within = as_saved(self.inner.project(x, clean))
        x = torch.where(factor.view(-1, 1, 1, 1) > 1, within, x)
        with torch.no_grad():
            return x, to_original(x.to(device)).cpu()

    def _largest(self, who: str, names: Sequence[str], clean: Tensor, made: Tensor, at: At) -> Tensor:
        """The factor (N,) of each picture that the inner bound allows; ValueError if one is nearer then."""
        sizes = [measure(a, b)[self.inner.kind] for a, b in zip(clean, made, strict=True)]
        most = torch.tensor([max(1.0, self.eps / max(size, 1e-3)) for size in sizes])
        for name, size, found in zip(names, sizes, at(most)[1].tolist(), strict=True):
            if found < self.distance:
                what = f"{self.network} {found:.3g} of {self.distance:g}" if size else "no distance: it is unchanged"
                todo = "give a larger budget.inner.eps or a smaller budget.distance"
                raise ValueError(f"{who}: {name} reaches {what} within {self.inner.name}; {todo}")
        return most

    def _at_distance(self, clean: Tensor, high: Tensor, at: At) -> Tensor:
        """Bisection on the factor of each of N pictures (NCHW), from 0 to ``high``."""
        best, low = clean, torch.zeros_like(high)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            x, reached = at(middle)
            fits = reached <= self.distance
            best = torch.where(fits.view(-1, 1, 1, 1), x, best)
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        return best


def scaled(clean: Tensor, made: Tensor, factor: Tensor, draw: Tensor) -> Tensor:
    """8-bit pictures (NCHW) whose changes are on average ``factor`` (N,) times those of ``made`` as saved.

    A change of s steps of 1/255 becomes floor(factor |s| + u) of them, u its place in ``draw`` (N, 1, H, W; uniform in
    [0,1)): it grows with the factor, and is s at 1.
    """
    steps = (as_saved(made) - clean).mul(255).round() * factor.view(-1, 1, 1, 1)
    return as_saved(clean + steps.sign() * (steps.abs() + draw).floor() / 255)
