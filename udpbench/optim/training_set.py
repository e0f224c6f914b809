"""The pictures that a model is trained on: latents and prompts computed once, batches drawn by the step.

Victims and surrogates use the same class, so that a surrogate's training is the victim's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from udpbench.core.images import at_once, room
from udpbench.core.memory import queued
from udpbench.interfaces import Run
from udpbench.models.diffusion import Cond, Diffusion, Trainable
from udpbench.optim.pgd import by_size

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Drawn:
    """All that is random in a training step of N pictures of one size."""

    z: Tensor  # latents, (N, C, h, w)
    t: Tensor  # time steps, (N,)
    noise: Tensor  # like ``z``
    prompts: list[str]  # one per picture
    cond: Cond | None  # their embeddings; None: what makes them is in training
    most: int  # how many of their size keep their layers at once


def loss_in_parts(model: Diffusion, z: Tensor, cond: Cond, t: Tensor, noise: Tensor, most: int) -> Tensor:
    """``model.loss``; of more than ``most`` inputs in parts, whose layers are not kept but computed again for the
    gradient, one part's at a time."""
    if len(z) <= most:
        return model.loss(z, cond, t, noise)
    parts = zip(z.split(most), map(Cond, cond.hidden.split(most)), t.split(most), noise.split(most), strict=True)
    return torch.cat([checkpoint(model.loss, *part, use_reentrant=False) for part in parts])


def losses_of(trainable: Trainable, drawn: Sequence[Drawn]) -> list[Tensor]:
    """Denoising losses (N,) of each of ``drawn``, by one pass of the model over all latents of a size; over more pixels
    than ``run.grad_batch`` allows by several, whose layers are computed again for the gradient, a part at a time."""
    found: list[Tensor] = [torch.empty(0)] * len(drawn)
    for group in by_size([one.z[0] for one in drawn]):
        mine = [drawn[i] for i in group]
        z, t, noise = (torch.cat(parts) for parts in zip(*((one.z, one.t, one.noise) for one in mine), strict=True))
        losses = loss_in_parts(trainable.model, z, _embedded(trainable.model, mine), t, noise, mine[0].most)
        for i, part in zip(group, losses.split([len(one.t) for one in mine]), strict=True):
            found[i] = part
    return found


def _embedded(model: Diffusion, drawn: Sequence[Drawn]) -> Cond:
    """Embeddings of the prompts of ``drawn``, one after the other; those in training of each prompt once."""
    if known := [one.cond.hidden for one in drawn if one.cond]:
        return Cond(torch.cat(known))
    prompts = [prompt for one in drawn for prompt in one.prompts]
    each = sorted(set(prompts))
    return model.embed(each).take(torch.tensor([each.index(prompt) for prompt in prompts]))


class TrainingSet:
    """Pictures with their prompts, for the denoising loss of a model in training.

    Args:
        trainable: the model in training.
        images: CHW [0,1] each.
        prompts: one per picture.
        run: its device and batch sizes; pictures through the UNet are counted in it under ``counted``.
        sample_latents: draw latents from the posterior at each step (as the released scripts do) or use its mean.
        mixed_sizes: pictures may differ in size. A batch holds one size; which, is drawn by how many pictures have it.
        augment: changes the pictures of a batch (NCHW [0,1]) before they are encoded; None: they are encoded once.
        cond: the prompts' embeddings, if they are known.
    """

    def __init__(
        self,
        trainable: Trainable,
        images: Sequence[Tensor],
        prompts: Sequence[str],
        run: Run,
        *,
        sample_latents: bool = False,
        mixed_sizes: bool = False,
        augment: Augment | None = None,
        cond: Cond | None = None,
        counted: str = "unet_train",
    ) -> None:
        if not images or len(images) != len(prompts):
            raise ValueError(f"training: {len(images)} pictures and {len(prompts)} prompts given; one prompt a picture")
        self.trainable, self.run, self.counted = trainable, run, counted
        self.sample_latents, self.mixed_sizes, self.augment = sample_latents, mixed_sizes, augment
        self.groups = [torch.tensor(group) for group in by_size(images)]
        if len(self.groups) > 1 and not mixed_sizes:
            raise ValueError("training: pictures differ in size; say mixed_sizes=True, or fit them to one")
        self.group_of = {int(i): k for k, group in enumerate(self.groups) for i in group}
        self.prompts = list(prompts) if cond else sorted(set(prompts))
        first = {prompt: i for i, prompt in reversed(list(enumerate(self.prompts)))}
        self.which = torch.tensor([first[prompt] for prompt in prompts])
        grouped = [[images[i] for i in group] for group in self.groups]
        self.most = [room(run.grad_batch, *group[0].shape[-2:]) for group in grouped]
        with torch.no_grad():
            self.pictures = grouped if augment else []
            self.latents = [] if augment else [self._encode(group) for group in grouped]
            self.embedded = None if trainable.text else cond or trainable.model.embed(self.prompts)

    def loss(self, n: int, rng: torch.Generator) -> Tensor:
        """Mean denoising loss of ``n`` pictures drawn with replacement; all that is random comes from ``rng``."""
        return losses_of(self.trainable, [self.draw(n, rng)])[0].mean()

    def draw(self, n: int, rng: torch.Generator) -> Drawn:
        """``n`` pictures drawn with replacement, and what their loss needs beside them; counts them."""
        k = self.group_of[int(torch.randint(len(self.group_of), (), generator=rng))] if self.mixed_sizes else 0
        index = torch.randint(len(self.groups[k]), (n,), generator=rng)
        z, which = self._latents(k, index, rng), self.which[self.groups[k][index]]
        t, noise = self.trainable.model.times_and_noise(z, rng)
        self.run.tally(self.counted, n)
        cond = None if self.embedded is None else self.embedded.take(which)
        return Drawn(z, t, noise, [self.prompts[i] for i in which], cond, self.most[k])

    def _latents(self, group: int, index: Tensor, rng: torch.Generator) -> Tensor:
        if self.augment:
            with torch.no_grad(), torch.autocast(self.run.device.type, enabled=False):  # as latents that are cached
                drawn = torch.stack([self.pictures[group][i] for i in index])
                mean, std = self._encode(self.augment(drawn, rng))
        else:
            mean, std = self.latents[group]
            index = queued(index, mean.device)
            mean, std = mean[index], None if std is None else std[index]
        return mean if std is None else mean + std * queued(torch.randn(mean.shape, generator=rng), mean.device)

    def _encode(self, pictures: Sequence[Tensor] | Tensor) -> tuple[Tensor, Tensor | None]:
        """Latents of pictures of one size (CHW [0,1]), or mean and standard deviation of their posterior."""
        model, n = self.trainable.model, at_once(self.run.batch, *pictures[0].shape[-2:])
        firsts = range(0, len(pictures), n)
        parts = (torch.stack(list(pictures[first : first + n])).to(self.run.device) for first in firsts)
        if not self.sample_latents:
            return torch.cat([model.encode(x) for x in parts]), None
        mean, std = (torch.cat(moments) for moments in zip(*(model.moments(x) for x in parts), strict=True))
        return mean, std
