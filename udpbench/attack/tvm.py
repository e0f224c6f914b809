"""Total variation minimisation of a picture of which some values were dropped (Guo et al., ICLR 2018, section 4.2), one
of the purifications of MetaCloak's and CopyrightMeter's tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from udpbench.attack.each import EachPicture
from udpbench.core.component import check_numbers
from udpbench.interfaces import Run


@dataclass(kw_only=True)
class Tvm(EachPicture):
    """Minimise ``|(1 - M) (z - x)|^2 / 2 + weight * TV(z)``, pixels in [0,1], where M drops values at random.

    Guo et al. have the norm where we have half its square: then ``weight`` is that of scikit-image's
    ``denoise_tv_chambolle``, whose result this is without ``dropout``. Also our choice: pictures keep their size
    (MetaCloak shrinks them to 64 x 64 px and enlarges them with a diffusion model), and the solver is the primal-dual
    algorithm of Chambolle & Pock (2011), algorithm 1, where the released codes take a commercial one or stop L-BFGS
    after 10 steps. TV is isotropic, by channel.

    Args:
        weight: of the total variation.
        dropout: fraction of the values that are dropped, each channel's by themselves, drawn for each picture.
        iterations: of the solver.
    """

    weight: float
    dropout: float
    iterations: int

    version = 2  # 2: values are dropped, not pixels
    called = "tvm_{weight:g}"

    def __post_init__(self) -> None:
        check_numbers("attack tvm", above=0, weight=self.weight)
        check_numbers("attack tvm", least=0, below=1, dropout=self.dropout)
        check_numbers("attack tvm", least=1, iterations=self.iterations)

    def pure(self, x: Tensor, name: str, run: Run) -> Tensor:
        kept = (torch.rand(x.shape, generator=run.rng("tvm", name)) >= self.dropout).to(x)
        return minimised(x, kept, self.weight, self.iterations).clamp(0, 1)


def minimised(x: Tensor, kept: Tensor, weight: float, iterations: int) -> Tensor:
    """``argmin_z |kept (z - x)|^2 / 2 + weight * TV(z)``; CHW both, ``kept`` of 0 and 1."""
    step = 8**-0.5  # of both variables: the gradient's norm is at most the square root of 8
    z, leading, dual = x, x, x.new_zeros(2, *x.shape)
    for _ in range(iterations):
        dual = dual + step * gradient(leading)
        dual = dual / (dual.square().sum(0).sqrt() / weight).clamp(min=1)
        before, z = z, (z + step * divergence(dual) + step * kept * x) / (1 + step * kept)
        leading = 2 * z - before
    return z


def gradient(z: Tensor) -> Tensor:
    """Forward differences down and across, 0 past the edge, (2, C, H, W)."""
    return torch.stack([F.pad(z.diff(dim=1), (0, 0, 0, 1)), F.pad(z.diff(dim=2), (0, 1))])


def divergence(p: Tensor) -> Tensor:
    """Minus the adjoint of ``gradient``, (C, H, W)."""
    down, across = p[0, :, :-1], p[1, :, :, :-1]
    return F.pad(down, (0, 0, 0, 1)) - F.pad(down, (0, 0, 1, 0)) + F.pad(across, (0, 1)) - F.pad(across, (1, 0))
