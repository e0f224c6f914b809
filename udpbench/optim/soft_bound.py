"""What methods share that change pictures with Adam under a soft bound on a perceptual distance (IMPRESS, Glaze)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from udpbench.core.component import check_choice, check_numbers
from udpbench.models.perceptual import PERCEPTUAL, check_distance


@dataclass(kw_only=True)
class SoftBound:
    """Settings of the optimisation.

    Args:
        iterations, lr: of Adam; ``lr`` on the [-1,1] scale.
        alpha: weight of the bound.
        distance_budget: distance above which the bound counts.
        start_noise: size of the noise of the start, on the [-1,1] scale.
        perceptual: ``lpips_vgg``, ``lpips_alex``, ``lpips_squeeze`` or ``lite1`` (EfficientNet-Lite1 features, works
            offline; not LPIPS, and its values are not on LPIPS's scale).
        weights: file with the trunk of the LPIPS network; None: where torch hub keeps it.
    """

    iterations: int
    lr: float
    alpha: float
    distance_budget: float
    start_noise: float
    perceptual: str
    weights: str | None = None

    name: ClassVar[str]  # in messages

    def __post_init__(self) -> None:
        check_choice(f"{self.name}: unknown perceptual", self.perceptual, PERCEPTUAL)
        check_numbers(self.name, least=1, iterations=self.iterations)
        check_numbers(self.name, above=0, lr=self.lr)
        sizes = {"alpha": self.alpha, "distance_budget": self.distance_budget, "start_noise": self.start_noise}
        check_numbers(self.name, least=0, **sizes)

    def check(self) -> None:
        """ValueError saying what to do if the weights of the distance are missing; nothing is loaded."""
        check_distance(self.perceptual, self.weights)

    def excess(self, distances: Tensor) -> Tensor:
        """``alpha * max(distance - distance_budget, 0)`` of N pictures, (N,)."""
        return self.alpha * (distances - self.distance_budget).clamp(min=0)


def gradient(aim: Callable[[], Tensor], excess: Callable[[], Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of both losses, (N,) each, and its gradient with respect to ``y``: that of ``excess``, most of the work
    where the network of the distance is large, only where it is above 0 for any picture.

    The two have no part of their graphs in common.
    """
    above_budget = excess()
    exceeded = Later((above_budget > 0).any())
    if y.is_cuda:  # it is busy with ``aim`` while the processor waits for the answer
        aimed, slope = _value_and_slope(aim, y)
        further = _slope_of_excess(above_budget, y, exceeded)
    else:  # one graph at a time: both together would need twice the memory
        further = _slope_of_excess(above_budget, y, exceeded)
        aimed, slope = _value_and_slope(aim, y)
    return aimed + above_budget.detach(), slope if further is None else slope + further


def _value_and_slope(aim: Callable[[], Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
    value = aim()
    return value.detach(), torch.autograd.grad(value.sum(), y)[0]


def _slope_of_excess(above_budget: Tensor, y: Tensor, exceeded: Later) -> Tensor | None:
    """The gradient of ``above_budget`` if it is not 0; its graph is let go in any case."""
    slope = torch.autograd.grad(above_budget.sum(), y)[0] if exceeded.known() else None
    above_budget.detach_()
    return slope


class Later:
    """A truth that a GPU is still finding out: asked for at once, waited for only when ``known`` is called."""

    def __init__(self, truth: Tensor) -> None:
        self.truth, self.there = truth, None
        if truth.is_cuda:
            self.truth = torch.empty_like(truth, device="cpu", pin_memory=True).copy_(truth, non_blocking=True)
            self.there = torch.cuda.current_stream(truth.device).record_event()

    def known(self) -> bool:
        """The truth; waits until what was queued before it is done, and not for what was queued since."""
        if self.there is not None:
            self.there.synchronize()
        return bool(self.truth)
