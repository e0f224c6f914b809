"""Train on pictures under fresh transformations, so that a perturbation is never twice the same: what MetaCloak (Liu et
al., CVPR 2024) tests itself against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from udpbench.core.codecs import recompress
from udpbench.core.component import check_numbers
from udpbench.interfaces import Attack
from udpbench.optim.transforms import blur, noisy

LEAST_BLUR = 0.1  # pixels


@dataclass(kw_only=True)
class RobustAugment(Attack):
    """Every picture of a training step goes through one of JPEG, blur and noise, each as likely.

    MetaCloak's test has JPEG, once before the training, and blur of 7 taps with mirroring, each in a training of its
    own; that they are mixed and drawn anew in each step, the noise, and no mirroring are our choices.

    Args:
        quality: of the JPEG.
        blur: largest standard deviation in pixels, drawn uniformly from 0.1 on.
        noise: standard deviation of 255.
        radius: of the blur's kernel in pixels, which cuts a wide blur off; None: three standard deviations.
    """

    quality: int
    blur: float
    noise: float
    radius: int | None = None

    later: ClassVar[Mapping[str, Any]] = {"radius": None}
    version = 2  # 2: pictures are changed and encoded in full precision in bfloat16 trainings, too

    def __post_init__(self) -> None:
        check_numbers("attack robust_augment", least=1, most=100, quality=self.quality)
        check_numbers("attack robust_augment", least=LEAST_BLUR, blur=self.blur)
        check_numbers("attack robust_augment", above=0, most=255, noise=self.noise)
        if self.radius is not None:
            check_numbers("attack robust_augment", least=1, radius=self.radius)

    def augment(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        changes: tuple[Callable[[Tensor], Tensor], ...] = (
            lambda x: recompress(x, "jpeg", self.quality).to(x.device),
            lambda x: blur(x, rng, LEAST_BLUR, self.blur, radius=self.radius).clamp(0, 1),
            lambda x: noisy(x, rng, self.noise),
        )
        which = torch.randint(len(changes), (len(batch),), generator=rng).tolist()
        return torch.stack([changes[k](x) for k, x in zip(which, batch, strict=True)])
