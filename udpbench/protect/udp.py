"""UDP and EUDP: unlearnable diffusion perturbations (Zhao et al., arXiv 2306.01902).

The published idea: one perturbation per picture, found as a max-min problem. The model is trained on the perturbed
pictures (min), the perturbation raises the loss of that trained model (max), in turn. EUDP changes at which time steps
the perturbation is optimised, using the noise scales of the forward process, because the perturbation fades along it.

This is a *reconstruction*: no code was published and the text that could be found does not give the formulas. The
paper's are: the max-min problem, sample-wise bounded noise, alternation, and that EUDP changes the sampling of time
steps by the noise schedule. Our choices are: the L-infinity (or RMS) budget, projected sign ascent, the numbers of
rounds and steps, the optimizer of the inner model, where it starts, whether it begins anew on the way and whether it
sees mirrored pictures, and the distribution P(t) of ``udpbench.optim.samples.time_distribution``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from udpbench.core.budget import Budget
from udpbench.core.component import check_choice, check_numbers
from udpbench.core.images import room
from udpbench.core.memory import queued
from udpbench.interfaces import Owner, Protection, Run
from udpbench.models.diffusion import Cond, Diffusion, Trainable
from udpbench.optim.fit import FitSettings, fit
from udpbench.optim.pgd import Loss, first_images, first_length, handed_over, pgd
from udpbench.optim.rounds import Rounds
from udpbench.optim.samples import TIMES, normal, time_distribution, times_from
from udpbench.optim.training_set import TrainingSet, loss_in_parts
from udpbench.optim.transforms import flip

STATE = "udp.ckpt"


@dataclass(kw_only=True)
class UDP(Protection):
    """Alternate ``model_steps`` of training a surrogate on the perturbed pictures with ``image_steps`` of projected
    ascent of its loss by the pictures.

    The surrogate and the moments of its AdamW go on from round to round, or begin anew every ``restart_every`` rounds;
    in the first it is trained on pictures that nothing has moved yet (but for a random start). It is not ASPL's, which
    clean pictures train, too (docs/methods.md).

    Args:
        rounds, model_steps, image_steps: of the alternation; ``model_steps`` 0: the surrogate stays as it starts.
        step_size: length of one image step, of 255; None: an eighth of the budget.
        samples: (t, noise) samples per picture and image step, in one forward pass.
        outer: which loss the pictures raise. ``perturbed``: the surrogate's loss on the perturbed pictures
            (error-maximising); ``clean``: the loss that the surrogate would have on the *clean* pictures after one
            more gradient step on the perturbed ones (one unrolled step; differentiates through the gradient, which
            couples the pictures: all of one size are in memory at once, whatever ``runtime.grad_batch`` is).
        surrogate_init: ``victim_task`` starts from the surrogate model's weights, as fine-tuning does; ``random``
            from fresh ones, as training from scratch does.
        start_steps: of training on the clean pictures, before the first round: the surrogate starts from a clean model.
        restart_every: rounds after which the surrogate is again as it started (after ``start_steps``), as a victim
            begins anew, while the perturbation goes on; 0: never.
        flip: the surrogate trains on pictures mirrored with probability 1/2, as a victim may.
        lr, weight_decay, batch: of the surrogate's training (AdamW, constant rate, gradients clipped to norm 1).
        random_start: start from uniform noise within the budget.
        dtype: of the surrogate's passes, in its training and under the pictures (fp32 | bf16).
        train_text_encoder: the surrogate's text encoder is trained, too, as the victim's may be.
        gradient_checkpointing: less memory, more time.
        times: P(t) of the image steps (see ``time_distribution``).
    """

    rounds: int
    model_steps: int
    image_steps: int
    lr: float
    batch: int
    samples: int = 1
    step_size: float | None = None
    outer: str = "perturbed"
    surrogate_init: str = "victim_task"
    start_steps: int = 0
    restart_every: int = 0
    flip: bool = False
    weight_decay: float = 1e-2
    random_start: bool = False
    dtype: str = "fp32"
    train_text_encoder: bool = False
    gradient_checkpointing: bool = False
    times: str = "uniform"

    version = 4  # 4: the loss is of the picture alone, not of what it is padded with
    places = ("gradient_checkpointing",)
    later = {"start_steps": 0, "restart_every": 0, "flip": False}
    needs = frozenset({"denoise"})
    wrappable = True

    def __post_init__(self) -> None:
        who = type(self).__name__.lower()
        check_choice(f"{who}: unknown time distribution", self.times, TIMES)
        check_choice(f"{who}: unknown outer", self.outer, ("perturbed", "clean"))
        check_choice(f"{who}: unknown surrogate_init", self.surrogate_init, ("victim_task", "random"))
        counts = {"rounds": self.rounds, "image_steps": self.image_steps, "samples": self.samples}
        check_numbers(who, least=1, batch=self.batch, **counts)
        none = {"start_steps": self.start_steps, "restart_every": self.restart_every}
        check_numbers(who, least=0, model_steps=self.model_steps, **none)
        if self.train_text_encoder:
            if self.outer == "clean":
                raise ValueError(f"{who}: outer=clean unrolls a step of the UNet alone; give train_text_encoder=false")
            self.needs = self.needs | {"text"}
        self.training = FitSettings(
            steps=self.model_steps, lr=self.lr, weight_decay=self.weight_decay, dtype=self.dtype
        )

    @property
    def label(self) -> str:
        """Name, and what of the variant is not the default."""
        variant = [self.times] if self.times != type(self).times else []
        variant += ["outer_clean"] if self.outer == "clean" else []
        variant += ["scratch"] if self.surrogate_init == "random" else []
        further = {"clean_start": self.start_steps, "restarts": self.restart_every, "flip": self.flip}
        variant += [name for name, given in further.items() if given]
        return "_".join([type(self).__name__.lower(), *variant])

    @property
    def starts_from_weights(self) -> bool:
        return self.surrogate_init == "victim_task"

    def protect(self, owner: Owner, budget: Budget, surrogate: Diffusion, run: Run) -> list[Tensor]:
        trainable = self._trainable(surrogate, run)
        optimizer = self.training.optimizer(trainable.parameters)
        rounds, images = Rounds(run, STATE, self.rounds), first_images(owner, budget, run, self.random_start)
        if saved := rounds.saved:
            trainable.load(saved["weights"])
            cond = _embedded(trainable, owner)
            optimizer.load_state_dict(saved["optimizer"])
            images, start = saved["images"], saved["start"]
        else:
            cond = self._train(trainable, optimizer, owner.images, owner, _embedded(trainable, owner), run)
            start = [w.clone() for w in trainable.weights()] if self.restart_every else []
        most = run.grad_batch // self.samples if self.outer == "perturbed" else None
        steps = [first_length(self.step_size, budget.eps)] * self.image_steps
        with run.log.bar("perturb", self.rounds * self.image_steps, "step") as advance:
            advance(rounds.first * self.image_steps)
            ascend = partial(pgd, clean=owner.images, budget=budget, run=run, steps=steps, most=most, advance=advance)
            for k in rounds.left:
                if k and self.restart_every and k % self.restart_every == 0:
                    trainable.load(start)
                    optimizer = self.training.optimizer(trainable.parameters)
                cond = self._train(trainable, optimizer, images, owner, cond, run, k)
                trainable.train(False, needs_grad=self.outer == "clean")
                loss = self._image_loss(trainable, cond, owner, run, k)
                with self._kernel():
                    images = ascend(handed_over(images), loss=loss, before=k * self.image_steps)
                parts = {"weights": trainable.weights(), "optimizer": optimizer.state_dict(), "start": start}
                rounds.done(k, parts | {"images": images})
        return images

    def _kernel(self) -> AbstractContextManager[Any]:
        """With ``outer`` clean the one attention kernel that has second derivatives, for passes that are recomputed,
        too."""
        kernel = torch.nn.attention.SDPBackend.MATH
        return torch.nn.attention.sdpa_kernel(kernel) if self.outer == "clean" else nullcontext()

    def _trainable(self, surrogate: Diffusion, run: Run) -> Trainable:
        text = {"text_encoder": True} if self.train_text_encoder else {}  # a model of pixels has none
        init = "copy" if self.surrogate_init == "victim_task" else "random"
        return surrogate.trainable(
            run.rng("surrogate"), init, gradient_checkpointing=self.gradient_checkpointing, **text
        )

    def _train(
        self,
        trainable: Trainable,
        optimizer: Optimizer,
        images: Sequence[Tensor],
        owner: Owner,
        cond: Cond,
        run: Run,
        k: int | None = None,
    ) -> Cond:
        """Train the surrogate on the pictures as they are in round ``k`` (None: on clean ones, before the first): t is
        uniform as in any training. Returns what the prompts' embeddings are then."""
        settings = self.training if k is not None else replace(self.training, steps=self.start_steps)
        if not settings.steps:
            return cond
        augment = _mirrored if self.flip else None
        pictures = TrainingSet(trainable, images, owner.prompts, run, mixed_sizes=True, augment=augment, cond=cond)
        trainable.train(True)

        def loss(step: int) -> Tensor:
            return pictures.loss(self.batch, run.rng("surrogate", "clean" if k is None else k, step))

        title, before = ("clean surrogate", 0) if k is None else ("surrogate", k * settings.steps)
        fit(trainable.parameters, loss, settings, run, title=title, optimizer=optimizer, before=before)
        return _embedded(trainable, owner) if trainable.text else cond

    def _image_loss(self, trainable: Trainable, cond: Cond, owner: Owner, run: Run, k: int) -> Loss:
        """What the pictures raise in round ``k``; each has (t, noise) samples of its own."""
        model, n = trainable.model, self.samples
        rngs = [run.rng("udp", k, name) for name in owner.names]
        p = time_distribution(model.alpha_bar, self.times)
        autocast = torch.autocast(run.device.type, torch.bfloat16, enabled=self.training.dtype == "bf16")

        def drawn(z: Tensor, index: list[int]) -> tuple[Cond, Tensor, Tensor]:
            mine = [rngs[i] for i in index]
            t = queued(times_from(p, mine, n), z.device)
            return cond.take(torch.tensor(index)).repeat(n), t, normal(mine, n, z)

        def perturbed(x: Tensor, index: list[int]) -> Tensor:
            z = model.encode(x)
            many, t, noise = drawn(z, index)
            run.tally("unet_image", len(t))
            most = room(run.grad_batch, *x.shape[-2:])
            with autocast:
                return loss_in_parts(model, z.repeat_interleave(n, 0), many, t, noise, most).view(len(x), n).mean(1)

        def clean(x: Tensor, index: list[int]) -> Tensor:
            """First-order term of L_clean(theta - lr grad L_perturbed(theta)): minus the product of the two gradients.

            Both losses use the same (t, noise), so that they differ by the perturbation alone. The pictures are
            coupled by the product.
            """
            z = model.encode(x)
            with torch.no_grad():
                z_clean = model.encode(queued(torch.stack([owner.images[i] for i in index]), x.device))
            many, t, noise = drawn(z, index)
            run.tally("unet_image", 2 * len(t))

            def gradients(latents: Tensor, graph: bool) -> tuple[Tensor, ...]:
                each = model.loss(latents.repeat_interleave(n, 0), many, t, noise)
                return torch.autograd.grad(each.mean(), trainable.parameters, create_graph=graph)

            with self._kernel(), autocast:
                on_clean = gradients(z_clean, False)
                on_perturbed = gradients(z, True)
            product = torch.stack([(a * b).sum() for a, b in zip(on_clean, on_perturbed, strict=True)]).sum()
            return -product.view(1)

        return clean if self.outer == "clean" else perturbed


def _mirrored(pictures: Tensor, rng: torch.Generator) -> Tensor:
    return torch.stack([flip(x, rng) for x in pictures])


def _embedded(trainable: Trainable, owner: Owner) -> Cond:
    with torch.no_grad():
        return trainable.model.embed(owner.prompts)


@dataclass(kw_only=True)
class EUDP(UDP):
    """UDP with time steps drawn by the noise schedule: in proportion to the root of the signal-to-noise ratio, by
    default (see ``time_distribution``).

    Which P(t) the paper has is not known. ``snr`` was the strongest of three on objects of the embedded world, and
    stronger than ``sqrt_alpha_bar`` on each of ten further ones (experiments/udp).
    """

    times: str = "snr"
