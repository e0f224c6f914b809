"""The denoising loss as a function of pictures: what AdvDM, Anti-DreamBooth and their kin raise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from udpbench.core.memory import queued
from udpbench.interfaces import Run
from udpbench.models.diffusion import Cond
from udpbench.optim.pgd import Loss
from udpbench.optim.samples import normal, uniform_times

# z (M, C, h, w), prompts, time steps (M,), noise like z, and the index of the picture of each -> M losses
Objective = Callable[[Tensor, Cond, Tensor, Tensor, list[int]], Tensor]
# indices of N pictures, their generators, n -> n time steps for each, (N * n,) on the CPU
Times = Callable[[list[int], Sequence[torch.Generator], int], Tensor]


def denoising_loss(
    model: Any,
    cond: Cond,
    rngs: Sequence[torch.Generator],
    run: Run,
    *,
    samples: int,
    sample_latents: bool,
    times: Times | None = None,
    objective: Objective | None = None,
    dtype: str = "fp32",
) -> Loss:
    """Mean denoising loss of each picture over ``samples`` of (latent, t, noise) in one forward pass.

    Args:
        model: a latent ``Diffusion``.
        cond: one prompt per picture.
        rngs: one generator per picture, from which its samples come.
        run: what the pictures through the UNet are counted in.
        samples: per picture and call.
        sample_latents: draw latents from the posterior, or use its mean.
        times: how time steps are drawn; None: uniformly.
        objective: the loss of latents; None: the model's denoising loss.
        dtype: of the UNet's pass (autocast): fp32 | bf16.
    """
    n = samples

    def uniform(index: list[int], mine: Sequence[torch.Generator], n: int) -> Tensor:
        return uniform_times(mine, n, len(model.alpha_bar))

    def plain(z: Tensor, cond: Cond, t: Tensor, noise: Tensor, which: list[int]) -> Tensor:
        return model.loss(z, cond, t, noise)

    def loss(x: Tensor, index: list[int]) -> Tensor:
        mine = [rngs[i] for i in index]
        mean, std = model.moments(x)
        z = mean.repeat_interleave(n, 0)
        if sample_latents:
            z = z + std.repeat_interleave(n, 0) * normal(mine, n, mean)
        t = queued((times or uniform)(index, mine, n), z.device)
        noise, many = normal(mine, n, mean), cond.take(torch.tensor(index)).repeat(n)
        run.tally("unet_image", len(z))
        with torch.autocast(z.device.type, torch.bfloat16, enabled=dtype == "bf16"):
            each = (objective or plain)(z, many, t, noise, [i for i in index for _ in range(n)])
        return each.view(len(x), n).mean(1)

    return loss
