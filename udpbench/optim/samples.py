"""Monte Carlo samples of time steps and noise, drawn for each picture from its own generator.

Every function gives the ``n`` samples of the first picture, then those of the second, and so on: the order of
``x.repeat_interleave(n, 0)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from udpbench.core.component import check_choice
from udpbench.core.memory import queued

# Kind of P(t) -> weights of the time steps by their alpha_bar (T,), both float64.
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": torch.ones_like,
    "sqrt_alpha_bar": torch.sqrt,
    "alpha_bar": lambda a: a,
    "snr": lambda a: (a / (1 - a)).sqrt(),
}
TIMES = tuple(WEIGHTS)


def normal(rngs: Sequence[torch.Generator], n: int, like: Tensor) -> Tensor:
    """``n`` standard normal samples for each of N generators, (N * n, ...), shaped like a row of ``like``, on its
    device."""
    return queued(torch.cat([torch.randn((n, *like.shape[1:]), generator=rng) for rng in rngs]), like.device)


def uniform_times(rngs: Sequence[torch.Generator], n: int, steps: int) -> Tensor:
    """``n`` time steps from 0 to ``steps`` - 1 for each of N generators, (N * n,) on the CPU."""
    return torch.cat([torch.randint(steps, (n,), generator=rng) for rng in rngs])


def times_from(distribution: Tensor, rngs: Sequence[torch.Generator], n: int) -> Tensor:
    """``n`` time steps from P(t), (T,) float64, for each of N generators, (N * n,) on the CPU."""
    cumulative = distribution.cumsum(0)
    u = torch.cat([torch.rand(n, generator=rng, dtype=torch.float64) for rng in rngs])
    return torch.searchsorted(cumulative, u).clamp(max=len(cumulative) - 1)


def time_distribution(alpha_bar: Tensor, kind: str) -> Tensor:
    """P(t) over the T steps of a forward process with ``alpha_bar`` (T,); float64, sums to 1.

    A perturbation d reaches step t as sqrt(alpha_bar_t) d. ``sqrt_alpha_bar`` weights steps by that factor,
    ``alpha_bar`` by its square, ``snr`` by sqrt(alpha_bar_t / (1 - alpha_bar_t)), the root of the signal-to-noise
    ratio: what is left of d over the noise beside it; ``uniform`` weights all steps equally.
    """
    check_choice("samples: unknown time distribution", kind, WEIGHTS)
    weights = WEIGHTS[kind](alpha_bar.double())
    return weights / weights.sum()
