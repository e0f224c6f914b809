"""AdvPaint: change what the attention of an inpainting UNet looks at (Jeon et al., ICLR 2025, arXiv 2503.10081)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.component import check_numbers
from udpbench.core.memory import queued
from udpbench.interfaces import Owner, Run
from udpbench.models.attention import check_attention, read_attention
from udpbench.models.diffusion import Cond
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.chains import Inpainting
from udpbench.optim.masked import MaskedAscent
from udpbench.optim.pgd import Loss, first_images, first_length, pgd, shrinking
from udpbench.optim.samples import normal


@dataclass(kw_only=True)
class AdvPaint(MaskedAscent):
    """Ascend the L2 change, from the clean picture, of queries, keys and values of self-attention and of queries of
    cross-attention, summed over the layers and divided by their number.

    It is done twice: as if the box around the object were painted anew, which moves what is around it, then as if all
    but the box were, which moves the box. The box is ``enlarged`` by the same margin on all sides.

    The paper's and the released code's: the objective at the first step, the two regions, a uniform start of the whole
    picture, steps that shrink linearly to a hundredth for each region. The released code draws other noise for the
    perturbed picture than for the clean one (``same_noise`` false; there the clean one's is drawn once for each region,
    here in each step). Our choices: the same noise, so that what changes is due to the perturbation; its enlargement,
    read off the mask that comes with the code; the owner's prompt alone, where that code has the guidance's empty one
    beside it; the posterior mean; a first input of noise alone (there: the latents of the whole picture, which get no
    gradient, noised to that step); for a UNet that takes latents alone see ``Inpainting``. ``repaint`` only says which
    side of the mask is the object.

    Args: those of ``MaskedAscent`` (``iterations`` of each region, ``step_size`` of the first step), and
        enlarged: area of the box, in areas of the smallest box around the object.
        same_noise: clean and perturbed picture meet the same noise.
    """

    enlarged: float = 1.2
    same_noise: bool = True
    random_start: bool = True

    name = "advpaint"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self.name, least=1, enlarged=self.enlarged)
        if self.same_noise and not self.random_start:
            todo = "give random_start=true or same_noise=false"
            raise ValueError(f"{self.name}: under the same noise the gradient at the clean picture is 0; {todo}")

    def check_model(self, model: LatentDiffusion) -> None:
        super().check_model(model)
        check_attention(self.name, model)

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        cond = surrogate.embed(owner.prompts)
        boxes = [self.box(anew if self.repaint == "inside" else 1 - anew) for anew in self.anew_of(owner)]
        n, steps = self.iterations, self.lengths(budget, self.iterations)
        images = first_images(owner, budget, run, self.random_start)
        with run.log.bar("perturb", 2 * n, "step") as advance:
            for k, anew in enumerate((boxes, [1 - box for box in boxes])):
                loss = self._loss(owner, anew, cond, surrogate, run, k)
                images = pgd(
                    images, owner.images, loss, budget, run,
                    steps=steps, most=run.grad_batch, advance=advance, before=k * n,
                )  # fmt: skip
        return images

    def lengths(self, budget: Budget, n: int) -> list[float]:
        return shrinking(first_length(self.step_size, budget.eps), n)

    def _loss(self, owner: Owner, anew: list[Tensor], cond: Cond, model: LatentDiffusion, run: Run, k: int) -> Loss:
        """What is ascended where ``anew`` is painted anew, the ``k``-th region."""
        rngs = [run.rng(self.name, k, name) for name in owner.names]
        others = [run.rng(self.name, k, name, "clean") for name in owner.names]

        def loss(x: Tensor, index: list[int]) -> Tensor:
            clean, masks = (queued(torch.stack([of[i] for i in index]), x.device) for of in (owner.images, anew))
            conds, seen = cond.take(torch.tensor(index)), Inpainting(model, x, masks)
            noise = normal([rngs[i] for i in index], 1, seen.latents)
            other = noise if self.same_noise else normal([others[i] for i in index], 1, noise)
            with torch.no_grad():
                wanted = self.attended(Inpainting(model, clean, masks), conds, other)
            run.tally("unet_forward", len(x))
            run.tally("unet_image", len(x))
            changes = zip(self.attended(seen, conds, noise), wanted, strict=True)
            return torch.stack([(a - b).flatten(1).norm(dim=1) for a, b in changes]).sum(0) * 4 / len(wanted)

        return loss

    def attended(self, seen: Inpainting, cond: Cond, noise: Tensor) -> list[Tensor]:
        """Queries, keys and values of all layers of self-attention, then the queries of those of cross-attention, four
        for each pair of layers, (N, places, width) each."""
        unet = seen.model.pipe.unet
        with read_attention(unet, "self") as own, read_attention(unet, "cross") as cross:
            seen.first_prediction(cond, noise, self.sample_steps)
        return [part for a in own for part in (a.query, a.key, a.value)] + [a.query for a in cross]

    def box(self, of: Tensor) -> Tensor:
        """The box around the object ``of`` (1, H, W) with a margin that makes its area ``enlarged`` times as large,
        likewise; where it would leave the picture, it is cut."""
        rows, columns = (of[0].any(dim).nonzero().flatten() for dim in (1, 0))
        height, width = (int(at.max() - at.min()) + 1 for at in (rows, columns))
        # (height + 2 margin) (width + 2 margin) = enlarged * height * width
        half = (height + width) / 2
        margin = round(((half**2 + (self.enlarged - 1) * height * width) ** 0.5 - half) / 2)
        box = torch.zeros_like(of)
        top, left = (max(int(at.min()) - margin, 0) for at in (rows, columns))
        box[:, top : int(rows.max()) + margin + 1, left : int(columns.max()) + margin + 1] = 1
        return box
