"""IMPRESS: purify a picture until its autoencoder reconstruction is consistent.

Cao et al., NeurIPS 2023, equation 4.1 and Algorithm 1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from udpbench.core.component import check_choice
from udpbench.core.memory import give_freed_memory_back
from udpbench.interfaces import Advance, Attack, Images, Run, Texts
from udpbench.models.latent import LatentDiffusion, inconsistency
from udpbench.models.perceptual import Perceptual, ToOriginal, load_distance
from udpbench.optim.pgd import are_large, chunks
from udpbench.optim.samples import normal
from udpbench.optim.soft_bound import SoftBound, gradient

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(kw_only=True)
class Impress(SoftBound, Attack):
    """Minimise ``mean |x - D(E(x))|^2 + alpha * max(dist(x, x_protected) - distance_budget, 0)``, pixels in [-1,1].

    As in the released code: mean (not sum) of squares, gradient through both sides, posterior mean, Adam (eps 1e-5)
    under a cosine schedule down to 1e-5, a start at ``x_protected + start_noise * N(0, 1)``, clamping after each
    step. The distance is LPIPS (VGG) there; ``perceptual`` names the one used here.

    ``precision`` decides how far it gets: the released scripts keep picture, noise, Adam's moments and autoencoder in
    half precision (LPIPS in float32), which rounds small gradients and small steps away. float32 purifies further: on
    the embedded model 700 iterations with Glaze's settings (lite1 in place of LPIPS) bring the mean |x - D(E(x))|^2 of
    two pictures protected by PhotoGuard from .0042 to .0024, as clean ones have it, but in half precision to .0063:
    the start is under noise.

    Our choice (``size_correct``): the whole loss is multiplied by H*W / 512^2, so that the gradient of a pixel, and
    with it the effect of Adam's eps and of rounding, is as at the 512 pixels the settings were made for. The losses of
    a batch are summed: pictures do not influence one another.

    Args: those of ``SoftBound``, and
        size_correct: as above.
        precision: ``fp32``: picture and moments in float32, the autoencoder in the model's dtype; ``fp16``: all three
            in half precision. Slow on a CPU; give the model's weights as they are (``model.dtype=fp32``), not
            rounded to bf16 before.
        clamp_start: clamp the start to [-1,1], too; the released code does not.
    """

    size_correct: bool = True
    precision: str = "fp32"
    clamp_start: bool = True

    name: ClassVar[str] = "impress"
    version = 2  # 2: latents of the picture alone, not of what it is padded with
    needs = frozenset({"latent"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(f"{self.name}: unknown precision", self.precision, PRECISIONS)

    def purify(self, images: Images, names: Texts, prompts: Texts, model: LatentDiffusion, run: Run) -> list[Tensor]:
        """As the interface says; prompts are not used."""
        distance = load_distance(self.perceptual, self.weights, run.device)
        if self.precision == "fp16":
            model = model.having(vae=copy.deepcopy(model.pipe.vae).half())
        out: list[Tensor] = list(images)
        groups = list(chunks(images, run.grad_batch))
        with run.log.bar("purify", self.iterations * len(groups), "it") as advance:
            for index in groups:
                x, named = torch.stack([images[i] for i in index]).to(run.device), [names[i] for i in index]
                pure = self._purified(x, named, distance, model, run, advance)
                for i, picture in zip(index, pure.cpu(), strict=True):
                    out[i] = picture
        return out

    def _purified(
        self, x: Tensor, names: Sequence[str], distance: Perceptual, model: LatentDiffusion, run: Run, advance: Advance
    ) -> Tensor:
        """N pictures ``x`` of one size, purified, NCHW [0,1]; they do not influence one another."""
        large, protected = are_large(x, run), (x * 2 - 1).to(PRECISIONS[self.precision])  # [-1,1], as in the paper
        as_given = x if protected.dtype == x.dtype else (protected.float() + 1) / 2
        to_original = distance.to_original(as_given)
        y = self._start(protected, names, run).requires_grad_(True)
        adam = torch.optim.Adam([y], lr=self.lr, eps=1e-5)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.iterations, eta_min=1e-5)
        aims = self.aims(as_given, names, model, run)
        for step in range(self.iterations):
            if large:
                give_freed_memory_back()
            loss, y.grad = gradient(partial(aims, y, step), partial(self.bound, y, to_original), y)
            adam.step()
            cosine.step()
            with torch.no_grad():
                y.clamp_(-1, 1)
            run.log.scalar("impress/loss", loss.sum(), step)
            advance(1)
        run.tally("vae_purify", self.iterations * len(y))
        return (y.detach().float() + 1) / 2

    def _start(self, protected: Tensor, names: Sequence[str], run: Run) -> Tensor:
        """Where the descent starts, from pictures in [-1,1]."""
        noise = normal([run.rng("impress", name) for name in names], 1, protected)
        y = protected + (self.start_noise * noise).to(protected.dtype)
        return y.clamp(-1, 1) if self.clamp_start else y

    def aims(
        self, protected: Tensor, names: Sequence[str], model: LatentDiffusion, run: Run
    ) -> Callable[[Tensor, int], Tensor]:
        """What is minimised beside the bound for N pictures of one size: ``y``, NCHW [-1,1], and the step -> (N,).
        ``protected``: the pictures, NCHW [0,1]."""
        return lambda y, step: self.consistency_of(y, model)

    def consistency_of(self, y: Tensor, model: LatentDiffusion) -> Tensor:
        """The first term of equation 4.1 for each of N pictures ``y``, NCHW [-1,1], float32 or (if the autoencoder is)
        float16; (N,)."""
        half = y.dtype == torch.float16
        return self.scale(y) * (half_inconsistency(y, model) if half else inconsistency((y + 1) / 2, model))

    def bound(self, y: Tensor, to_original: ToOriginal) -> Tensor:
        """The second term, (N,); ``to_original``: distances to the protected pictures."""
        return self.scale(y) * self.excess(to_original((y.float() + 1) / 2))

    def scale(self, y: Tensor) -> float:
        """What the loss of pictures of the size of ``y`` is multiplied by."""
        return y.shape[-1] * y.shape[-2] / 512**2 if self.size_correct else 1.0


def half_inconsistency(y: Tensor, model: LatentDiffusion) -> Tensor:
    """``inconsistency`` with every step of it in half precision: ``y`` NCHW float16 [-1,1], (N,) float16."""
    back = model.pipe.vae(model.padded(y)).sample[..., : y.shape[-2], : y.shape[-1]]
    return torch.stack([F.mse_loss(made, given) for made, given in zip(back, y, strict=True)])
