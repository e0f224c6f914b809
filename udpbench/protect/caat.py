"""CAAT: cross-attention attack (Xu et al., CVPR 2024, arXiv 2404.15081)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from udpbench.core.budget import Budget
from udpbench.core.component import check_numbers
from udpbench.interfaces import Owner, Protection, Run
from udpbench.models.diffusion import Trainable
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.denoising import denoising_loss
from udpbench.optim.fit import FitSettings, fit
from udpbench.optim.pgd import chunks, first_length, pgd

TUNED = ("attn2.to_k.", "attn2.to_v.")


@dataclass(kw_only=True)
class CAAT(Protection):
    """In every step the pictures raise the denoising loss and the keys and values of the UNet's cross-attention lower
    it: those are what a thief's training changes most.

    Both take their gradient of one loss at the same pictures, latents, t and noise, as in the released code, whose one
    backward pass is two here. The released code's: AdamW for keys and values, clipped to norm 1, in
    float32. Our choices: float32 for the rest of the UNet, too (there: bfloat16), gradients through the first token's
    key and value (there: cut, as in Custom Diffusion), pictures as they are (there: mirrored at random when they are
    read), no prior preservation (an option there).

    Args:
        image_steps: of ascent, each with one of AdamW.
        lr: of the keys and values; 0: they stay as they are.
        step_size: length of one image step, of 255; None: an eighth of the budget.
        samples: (t, noise) samples per picture and step, in one forward pass; 1 in the released code.
        sample_latents: draw latents from the posterior (as the released code does) or use its mean.
        dtype: of the UNet's passes: fp32 | bf16.
        gradient_checkpointing: less memory, more time.
    """

    image_steps: int
    lr: float
    step_size: float | None = None
    samples: int = 1
    sample_latents: bool = True
    dtype: str = "fp32"
    gradient_checkpointing: bool = False

    places = ("gradient_checkpointing",)
    needs = frozenset({"denoise", "latent", "text"})
    wrappable = True

    def __post_init__(self) -> None:
        check_numbers("caat", least=1, image_steps=self.image_steps, samples=self.samples)
        self.training = FitSettings(steps=1, lr=self.lr, dtype=self.dtype)

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        trainable = self._trainable(surrogate, run)
        optimizer = self.training.optimizer(trainable.parameters)
        cond = surrogate.embed(owner.prompts)
        drawn: dict[str, Any] = {"samples": self.samples, "sample_latents": self.sample_latents, "dtype": self.dtype}
        most, steps = run.grad_batch // self.samples, [first_length(self.step_size, budget.eps)]
        images = list(owner.images)
        with run.log.bar("perturb", self.image_steps, "step") as advance:
            ascend = partial(pgd, clean=owner.images, budget=budget, run=run, steps=steps, most=most, advance=advance)
            for k in range(self.image_steps):

                def loss(run: Run, k: int = k) -> Any:
                    """The same samples each time it is made."""
                    rngs = [run.rng("caat", k, name) for name in owner.names]
                    return denoising_loss(trainable.model, cond, rngs, run, **drawn)

                trainable.train(False)
                moved = ascend(images, loss=loss(run), before=k)
                if self.lr:
                    trainable.train(True)
                    one = loss(replace(run, count={}))  # counted by ``lowered``, as training
                    lowered = partial(_mean, one, self.samples, images, trainable.parameters, most, run)
                    last = k + 1 == self.image_steps
                    fit(
                        trainable.parameters, lowered, self.training, run,
                        title="tune", optimizer=optimizer, before=k, look=last,
                    )  # fmt: skip
                images = moved
        return images

    def _trainable(self, surrogate: LatentDiffusion, run: Run) -> Trainable:
        """The keys and values of the cross-attention of a copy of the UNet."""
        whole = surrogate.trainable(run.rng("surrogate"), gradient_checkpointing=self.gradient_checkpointing)
        unet = whole.model.pipe.unet.requires_grad_(False)
        chosen = [p for name, p in unet.named_parameters() if any(part in name for part in TUNED)]
        return replace(whole, parameters=chosen)


def _mean(
    loss: Any,
    samples: int,
    images: list[Tensor],
    parameters: Sequence[nn.Parameter],
    most: int,
    run: Run,
    _: int,
) -> Tensor:
    """The mean of ``loss``, of ``samples`` each, over all pictures, to be differentiated by ``parameters``.

    Where there are several ``chunks`` of ``most``, the gradient is summed up chunk by chunk, so that one graph is there
    at a time; what is returned then is linear in the parameters and has that gradient.
    """
    parts, means = list(chunks(images, most)), []
    run.tally("unet_train", len(images) * samples)
    for index in parts:
        mean = loss(torch.stack([images[i].to(run.device) for i in index]), index).sum() / len(images)
        if len(parts) == 1:
            return mean
        gradients = torch.autograd.grad(mean, parameters)
        linear = sum(((p - p.detach()) * g).sum() for p, g in zip(parameters, gradients, strict=True))
        means.append(mean.detach() + linear)
    return torch.stack(means).sum()
