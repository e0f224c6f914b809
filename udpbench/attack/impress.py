"""IMPRESS: purify a picture until its autoencoder reconstruction is consistent.

Cao et al., NeurIPS 2023, equation 4.1 and Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from udpbench.interfaces import Attack, Run
from udpbench.models.latent import LatentDiffusion, inconsistency
from udpbench.models.perceptual import Distance, load_distance
from udpbench.optim.pgd import chunks
from udpbench.optim.samples import normal
from udpbench.optim.soft_bound import SoftBound


@dataclass(kw_only=True)
class Impress(SoftBound, Attack):
    """Minimise ``mean |x - D(E(x))|^2 + alpha * max(dist(x, x_protected) - distance_budget, 0)``, pixels in [-1,1].

    As in the released code: mean (not sum) of squares, gradient through both sides, posterior mean, Adam (eps 1e-5)
    under a cosine schedule down to 1e-5, a start at ``x_protected + start_noise * N(0, 1)``, clamping after each
    step. The distance is LPIPS (VGG) there; ``perceptual`` names the one used here.

    Our choice (``size_correct``): the whole loss is multiplied by H*W / 512^2, so that the gradient of a pixel, and
    with it the effect of Adam's eps, is as at the 512 pixels the settings were made for. The losses of a batch are
    summed: pictures do not influence one another.

    Args: those of ``SoftBound``, and
        size_correct: as above.
    """

    size_correct: bool = True

    needs = frozenset({"latent"})

    def purify(
        self, images: Sequence[Tensor], names: Sequence[str], prompts: Sequence[str], model: LatentDiffusion, run: Run
    ) -> list[Tensor]:
        """As the interface says; prompts are not used."""
        distance = load_distance(self.perceptual, self.weights, run.device)
        out: list[Tensor] = list(images)
        groups = list(chunks(images, run.grad_batch))
        with run.log.bar("purify", self.iterations * len(groups), "it") as advance:
            for index in groups:
                x = torch.stack([images[i] for i in index]).to(run.device)
                noise = normal([run.rng("impress", names[i]) for i in index], 1, x)
                # The variable lives in [-1,1], as in the paper.
                y = ((x * 2 - 1) + self.start_noise * noise).clamp(-1, 1).requires_grad_(True)
                adam = torch.optim.Adam([y], lr=self.lr, eps=1e-5)
                cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.iterations, eta_min=1e-5)
                for step in range(self.iterations):
                    loss = self.objective((y + 1) / 2, x, distance, model).sum()
                    (y.grad,) = torch.autograd.grad(loss, y)
                    adam.step()
                    cosine.step()
                    with torch.no_grad():
                        y.clamp_(-1, 1)
                    run.log.scalar("impress/loss", loss.detach(), step)
                    advance(1)
                run.tally("vae_image", self.iterations * len(y))
                for i, pure in zip(index, (y.detach() + 1) / 2, strict=True):
                    out[i] = pure.cpu()
        return out

    def objective(self, x: Tensor, protected: Tensor, distance: Distance, model: LatentDiffusion) -> Tensor:
        """Equation 4.1 for each of N pictures; NCHW [0,1] in, (N,) out."""
        excess = self.excess(distance, x, protected)
        scale = x.shape[-1] * x.shape[-2] / 512**2 if self.size_correct else 1.0
        return scale * (inconsistency(x, model) + excess)
