"""BlurGuard: a perturbation blurred, region by region, to suit the picture's spectrum (Kim et al., NeurIPS 2025; after
the released code, jsu-kim/BlurGuard)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from udpbench.core.budget import Budget, rms_direction
from udpbench.core.component import check_numbers
from udpbench.core.memory import queued
from udpbench.interfaces import Owner, Run
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.pgd import Ascent, first_length, pgd_through, shrinking

RADIUS = 16  # of the kernel, in pixels


class _Free:
    """No bound: steps along the gradient, whose root mean square over a picture is 1/255."""

    def direction(self, gradient: Tensor) -> Tensor:
        return rms_direction(gradient)

    def project(self, x: Tensor, clean: Tensor, /) -> Tensor:
        return x


@dataclass(kw_only=True)
class BlurGuard(Ascent):
    """Lower ``mean z^2`` of the latents (PhotoGuard's aim) by ``x + sum_r M_r (G(sigma_r) * delta)``: what is left of
    a free ``delta`` after a Gaussian blur ``G`` of its own in each region ``M_r`` is bounded.

    First the blurs are chosen, without the model: Adam on ``log sigma_r``, from 0, lowers the largest gap over
    frequencies between the radial power spectra, ``|log10 P(x) - log10 P(x + blurred noise)|``, for normal noise
    clipped to the budget. Then ``delta`` descends along its normalised gradient from 0, in steps that shrink linearly
    over both phases to a hundredth. The released code's: all of that, and that its spectra are summed in rings about
    the *highest* frequency (their zero frequency is not moved to the middle). Its weight of the spectral loss changes
    no step of Adam's. Its regions come from a segmentation network (SAM), which is not here: **regions are the object
    and the rest where the owner has masks, else the whole picture is one**, which is less than the paper's. Our
    choices are: the posterior's mean (there: a sample), and a kernel that is no wider than a small picture allows
    (there: 33).

    Args:
        blur_steps: of Adam, on the blurs; 50 in the released code. 0: no more than the first blur, of one pixel.
        image_steps: of descent; 100.
        blur_lr: of Adam; .06.
        step_size: root mean square of the first step, of 255, if there were no ``blur_steps``; None: an eighth of the
            budget. .288 in the released code, at 512 px.
        tolerance: gap of the spectra that is no loss; 0.
    """

    blur_steps: int
    image_steps: int
    blur_lr: float = 0.06
    tolerance: float = 0.0

    needs = frozenset({"latent"})

    def __post_init__(self) -> None:
        check_numbers("blurguard", least=1, image_steps=self.image_steps)
        check_numbers("blurguard", least=0, blur_steps=self.blur_steps, tolerance=self.tolerance)
        check_numbers("blurguard", above=0, blur_lr=self.blur_lr)

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        clean = [x.to(run.device) for x in owner.images]
        whole = [torch.ones_like(x[:1]) for x in clean]
        regions = whole if owner.masks is None else [torch.cat([m, 1 - m]).to(run.device) for m in owner.masks]
        rngs = [run.rng("blurguard", name) for name in owner.names]
        sigmas = [self.sigmas(x, m, budget.eps / 255, rng) for x, m, rng in zip(clean, regions, rngs, strict=True)]

        def make(delta: Tensor, index: list[int]) -> Tensor:
            x = torch.stack([clean[i] for i in index])
            blurred = [blur_by_region(d, sigmas[i], regions[i]) for d, i in zip(delta, index, strict=True)]
            return budget.project(x + torch.stack(blurred), x)

        def loss(x: Tensor, index: list[int]) -> Tensor:
            run.tally("vae_image", len(x))
            return -surrogate.encode(x).square().flatten(1).mean(1)

        first, done = first_length(self.step_size, budget.eps), self.blur_steps
        steps = shrinking(first, done + self.image_steps)[done:]  # one schedule over both phases
        start: list[Tensor] = [torch.zeros_like(x) for x in clean]
        return pgd_through(make, start, loss, _Free(), run, steps=steps, most=run.grad_batch)

    def sigmas(self, x: Tensor, regions: Tensor, limit: float, rng: torch.Generator) -> Tensor:
        """Blur of each of R regions (R, H, W) of a picture ``x`` (CHW [0,1]), in pixels, (R,); ``limit``: of the
        perturbation."""
        logs = torch.zeros(len(regions), device=x.device, requires_grad=True)
        adam, wanted = torch.optim.Adam([logs], lr=self.blur_lr), spectrum(x)
        for _ in range(self.blur_steps):
            noise = queued(torch.randn(x.shape, generator=rng), x.device) / 2  # of variance 1 in [-1,1]
            moved = blur_by_region(noise.clamp(-limit, limit), logs.exp(), regions).clamp(-limit, limit)
            gap = (wanted - spectrum((x + moved).clamp(0, 1))).abs().max()
            (logs.grad,) = torch.autograd.grad((gap - self.tolerance).relu(), logs)
            adam.step()
        return logs.detach().exp()


def spectrum(x: Tensor) -> Tensor:
    """log10 of the power of a picture (CHW), summed over channels and over rings about the middle of torch's FFT: its
    highest frequency."""
    power = torch.fft.fft2(x).abs().square().sum(0)
    ring, n = _rings(*power.shape, x.device)
    return (power.new_zeros(n).index_add(0, ring, power.flatten()) + 1e-8).log10()


@lru_cache(maxsize=8)
def _rings(height: int, width: int, device: torch.device) -> tuple[Tensor, int]:
    """The ring about the middle that each place is in, (height * width,), and how many there are."""
    rows, columns = (torch.arange(side) - (side - 1) / 2 for side in (height, width))
    ring = torch.hypot(rows[:, None], columns).round().long().flatten()
    return ring.to(device), int(ring.max()) + 1


def blur_by_region(delta: Tensor, sigmas: Tensor | Sequence[Tensor], regions: Tensor) -> Tensor:
    """``sum_r regions[r] * (G(sigmas[r]) * delta)``, CHW; edges are reflected. Differentiable in ``sigmas``, too."""
    radius = min(RADIUS, *(side - 1 for side in delta.shape[-2:]))
    far = torch.arange(-radius, radius + 1, device=delta.device)
    padded = F.pad(delta, (radius,) * 4, mode="reflect")[:, None]  # channels as a batch
    out = torch.zeros_like(delta)
    for sigma, region in zip(sigmas, regions, strict=True):
        weight = torch.exp(-far.square() / (2 * sigma.square()))
        weight = (weight / weight.sum()).view(1, 1, 1, -1)
        out = out + region * F.conv2d(F.conv2d(padded, weight), weight.transpose(2, 3))[:, 0]
    return out
