"""EOT: the expectation over transformations of what another protection ascends (Athalye et al., ICML 2018,
arXiv 1707.07397)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.component import check_choice, check_numbers
from udpbench.interfaces import ImageLoss, Owner, Run
from udpbench.optim.transforms import blur, crop, flip, jpeg, noisy, resized
from udpbench.protect.wrapper import Wrapper

TRANSFORMS = ("none", "jpeg", "blur", "resize", "crop", "flip", "noise")


@dataclass(kw_only=True)
class EOT(Wrapper):
    """Ascend the mean of ``L(T(x))`` over transformations T, where ``L`` is what ``inner`` ascends of pictures ``x``.

    In every step each picture is changed by one of ``transforms``, all equally likely, of a strength drawn anew. What
    ``L`` compares a picture with (a target, the clean picture) stays as it is, and so do the pictures that a surrogate
    is trained on. The paper's: the expectation, estimated by sampling. Our choices are: the transforms and their
    strengths, one at a time, and JPEG by its real encoder with the gradient of the identity.

    Args:
        transforms: some of ``none``, ``jpeg``, ``blur``, ``resize``, ``crop``, ``flip``, ``noise``.
        views: of each picture in a step, each transformed anew; one costs what a step of ``inner`` costs.
        quality: lowest and highest of JPEG.
        sigma: largest standard deviation of the blur, in pixels.
        scale: smallest fraction of both sides that pictures are resized to, and back.
        part: smallest fraction of both sides that pictures are cropped to.
        std: standard deviation of the noise, of 255.
    """

    transforms: Sequence[str]
    views: int
    quality: Sequence[int]
    sigma: float
    scale: float
    part: float
    std: float

    what: ClassVar[str] = "transformations"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.transforms:
            raise ValueError(f"eot: transforms must hold one at least of {', '.join(TRANSFORMS)}, given none")
        for name in self.transforms:
            check_choice("eot: unknown transform", name, TRANSFORMS)
        if len(self.quality) != 2 or not 1 <= self.quality[0] <= self.quality[1] <= 100:
            raise ValueError(f"eot: quality must be two numbers from 1 to 100, in order, given {self.quality}")
        check_numbers("eot", least=1, views=self.views)
        check_numbers("eot", least=0, sigma=self.sigma, std=self.std)
        check_numbers("eot", above=0, most=1, scale=self.scale, part=self.part)

    def protect(self, owner: Owner, budget: Budget, surrogate: Any, run: Run) -> list[Tensor]:
        heeded, kinds = False, self._kinds()

        def transformed(loss: ImageLoss, before: int) -> ImageLoss:
            seen: Counter[int] = Counter()  # a picture's steps since ``before``, views counted

            def changed(x: Tensor, i: int) -> Tensor:
                rng = run.rng("eot", before, seen[i], owner.names[i])
                seen[i] += 1
                return kinds[int(torch.randint(len(kinds), (), generator=rng))](x, rng)

            def expected(x: Tensor, index: list[int]) -> Tensor:
                nonlocal heeded
                heeded = True
                pairs = list(zip(x, index, strict=True))
                views = (torch.stack([changed(one, i) for one, i in pairs]) for _ in range(self.views))
                return torch.stack([loss(view, index) for view in views]).mean(0)

            return expected

        most = max(1, run.grad_batch // self.views)  # the graphs of all views are there at once
        made = self.inner.protect(owner, budget, surrogate, replace(run, loss_hook=transformed, grad_batch=most))
        self.refuse_unless(heeded)
        return made

    def _kinds(self) -> list[Callable[[Tensor, torch.Generator], Tensor]]:
        low, high = self.quality
        every: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
            "none": lambda x, rng: x,
            "jpeg": lambda x, rng: jpeg(x, rng, low, high),
            "blur": lambda x, rng: blur(x, rng, 0.0, self.sigma),
            "resize": lambda x, rng: resized(x, rng, self.scale),
            "crop": lambda x, rng: crop(x, rng, self.part),
            "flip": flip,
            "noise": lambda x, rng: noisy(x, rng, self.std),
        }
        return [every[name] for name in self.transforms]
