"""The reverse of the forward process from a time step on: ancestral sampling, the reverse SDE, its ODE, DDIM."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from udpbench.models.diffusion import Cond, Diffusion, clean_and_noise


def epsilon(model: Diffusion, noisy: Tensor, index: int, cond: Cond) -> Tensor:
    """The noise that ``model`` sees in N inputs at the time step ``index``, float32."""
    output = model.predict(noisy, torch.full((len(noisy),), index, device=noisy.device), cond)
    return clean_and_noise(output, noisy, float(model.alpha_bar[index]), model.prediction)[1]


def posterior_mean(clean: Tensor, noisy: Tensor, a: Any, before: Any) -> Tensor:
    """The mean of q(x_s | x_t, x_0) for x_t = ``noisy`` and x_0 = ``clean`` (Ho et al. 2020, eq. 7).

    ``a``, ``before``: alpha_bar at t and at s < t, numbers or tensors that fit.
    """
    kept = a / before
    return before**0.5 * (1 - kept) / (1 - a) * clean + kept**0.5 * (1 - before) / (1 - a) * noisy


def ancestral(x: Tensor, eps: Tensor, a: float, before: float, noise: Tensor) -> Tensor:
    """A sample of q(x_s | x_t, x_0) (Ho et al. 2020, eq. 7) with the x_0 that ``eps`` says, clipped to [-1,1].

    ``a``, ``before``: alpha_bar at t and at s < t. The variance is the posterior's (the smaller of the paper's two).
    """
    clean, _ = clean_and_noise(eps, x, a, "epsilon")
    mean = posterior_mean(clean.clamp(-1, 1), x, a, before)
    return mean + ((1 - a / before) * (1 - before) / (1 - a)) ** 0.5 * noise


def reverse_sde(x: Tensor, eps: Tensor, a: float, before: float, noise: Tensor) -> Tensor:
    """A step of Euler and Maruyama on the reverse VP-SDE (Song et al. 2021, eq. 6 and 32; DiffPure, eq. 6); beta dt is
    what the schedule loses between the two time steps."""
    beta, score = math.log(before / a), -eps / (1 - a) ** 0.5
    return x + beta * (x / 2 + score) + beta**0.5 * noise


def flow(x: Tensor, eps: Tensor, a: float, before: float, noise: Tensor) -> Tensor:
    """A step of Euler on the probability flow ODE (Song et al. 2021, eq. 13); without noise."""
    return x + math.log(before / a) / 2 * (x - eps / (1 - a) ** 0.5)


def ddim(
    output: Tensor, x: Tensor, a: Any, b: Any, prediction: str, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """One step of DDIM (Song, Meng & Ermon 2021, eq. 12) from alpha_bar ``a`` to ``b``, in either direction, NCHW.

    ``output``: of the model for ``x``; ``a``, ``b``: numbers or tensors that fit. ``noise``, standard normal,
    counts with ``eta`` (0: deterministic).
    """
    clean, eps = clean_and_noise(output, x, a, prediction)
    if noise is None:
        return b**0.5 * clean + (1 - b) ** 0.5 * eps
    variance = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
    return b**0.5 * clean + (1 - b - variance) ** 0.5 * eps + variance**0.5 * noise


SAMPLERS: dict[str, Callable[[Tensor, Tensor, float, float, Tensor], Tensor]] = {
    "ddpm": ancestral, "sde": reverse_sde, "ode": flow,
}  # fmt: skip


def reverse(
    model: Diffusion, x: Tensor, cond: Cond, indices: Sequence[int], sampler: str, noise: Callable[[], Tensor]
) -> Tensor:
    """N inputs without the noise of the time step ``indices[0]``: a step of ``sampler`` from each of ``indices``, which
    fall, to the next and at last to no noise; ``noise()``: what a step draws, of the shape of ``x``.

    Raises ValueError if the first time step of a schedule of zero terminal SNR leaves nothing of the inputs.
    """
    if not float(model.alpha_bar[indices[0]]):
        todo = "start from an earlier one (a smaller attack.t)"
        raise ValueError(f"model {model.name}: its last time step is noise alone; {todo}")
    for index, to in zip(indices, [*indices[1:], None], strict=True):
        before = 1.0 if to is None else float(model.alpha_bar[to])
        eps = epsilon(model, x, index, cond)
        x = SAMPLERS[sampler](x, eps, float(model.alpha_bar[index]), before, noise())
    return x
