"""What every diffusion model here is: frozen weights with a name, a forward process and a denoising loss."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from udpbench.core.compiled import compile_networks
from udpbench.core.component import check_choice, check_numbers
from udpbench.core.memory import queued
from udpbench.core.pixels import padded
from udpbench.interfaces import Run
from udpbench.models.headers import read_json
from udpbench.models.networks import initialised_by, trainable_copy
from udpbench.models.pretrained import PREDICTIONS, Pretrained
from udpbench.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Cond:
    """What N pictures are conditioned on, ready for the UNet: prompt embeddings (N, tokens, width); (N, 0, 0) for a
    model without text."""

    hidden: Tensor

    def take(self, index: Tensor | slice) -> Cond:
        """The embeddings at ``index`` only."""
        return Cond(self.hidden[index if isinstance(index, slice) else queued(index, self.hidden.device)])

    def repeat(self, times: int) -> Cond:
        """Each embedding ``times`` times in a row."""
        return Cond(self.hidden.repeat_interleave(times, 0))


def noised(alpha_bar: Tensor, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """``sqrt(alpha_bar_t) z + sqrt(1 - alpha_bar_t) noise`` (Ho et al. 2020, eq. 4); z (N, C, h, w), t (N,)."""
    a = alpha_bar[t].view(-1, 1, 1, 1)
    return a.sqrt() * z + (1 - a).sqrt() * noise


def clean_and_noise(output: Tensor, noisy: Tensor, a: Any, prediction: str) -> tuple[Tensor, Tensor]:
    """The clean input and the noise that the model's ``output`` for ``noisy`` means: noise, or a velocity (Salimans &
    Ho 2022, appendix D). ``a``: alpha_bar, a number or a tensor that fits."""
    if prediction == "v_prediction":
        return a**0.5 * noisy - (1 - a) ** 0.5 * output, a**0.5 * output + (1 - a) ** 0.5 * noisy
    return (noisy - (1 - a) ** 0.5 * output) / a**0.5, output


def velocity(alpha_bar: Tensor, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """``sqrt(alpha_bar_t) noise - sqrt(1 - alpha_bar_t) z`` (Salimans & Ho 2022, appendix D); z, noise (N, C, h, w), t
    (N,)."""
    a = alpha_bar[t].view(-1, 1, 1, 1)
    return a.sqrt() * noise - (1 - a).sqrt() * z


@dataclass
class Trainable:
    """A model in training: ``model`` has what is trained in place of its own parts."""

    model: Any  # a Diffusion
    parameters: list[nn.Parameter]
    save: Callable[[Path], None]  # writes what was trained into a folder, as ``with_tuned`` reads it
    text: bool = False  # whether what is trained has a part in the prompts' embeddings

    def train(self, training: bool, needs_grad: bool | None = None) -> None:
        """Training or evaluation mode; gradients of the weights by ``needs_grad`` (None: as the mode is)."""
        for part in ("unet", "text_encoder") if self.text else ("unet",):
            getattr(self.model.pipe, part).train(training)
        for p in self.parameters:
            p.requires_grad_(training if needs_grad is None else needs_grad)

    def weights(self) -> list[Tensor]:
        """What is trained, to be kept with other state."""
        return [p.detach() for p in self.parameters]

    @torch.no_grad()
    def load(self, weights: Sequence[Tensor]) -> None:
        """Put back what ``weights`` gave."""
        for p, saved in zip(self.parameters, weights, strict=True):
            p.copy_(saved)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The weights are as they were when the block ends: for trainings that are thrown away."""
        kept = [p.clone() for p in self.weights()]
        try:
            yield
        finally:
            self.load(kept)


class Diffusion(Pretrained, ABC):
    """A frozen diffusion model, cheap to name and loaded on first use.

    Pictures are NCHW float32 in [0,1] on this side; the model's own range [-1,1] and latent scaling exist only in
    here. Losses are computed in float32 whatever the model's dtype.
    """

    pipeline_options: ClassVar[dict[str, Any]] = {}  # further arguments of the pipeline's constructor
    known_size: int | None = None  # ``size``, read without the model; None: not known before it is loaded
    pipe: Any  # the diffusers pipeline: frozen, in evaluation mode, on ``device``
    _alpha_bar_there: Tensor | None = None

    @property
    @abstractmethod
    def capabilities(self) -> frozenset[str]:
        """What it offers, of ``udpbench.interfaces.NEEDS``."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, read without the model; None: it has none, or it cannot be read alone."""
        return None

    @property
    def time_steps(self) -> int | None:
        """How many time steps there are, read without the model; None: it is not on this machine yet."""
        if not (folder := self.folder):
            return None
        return int(read_json(folder / "scheduler" / "scheduler_config.json").get("num_train_timesteps", 1000))

    def check_steps(self, who: str, less: int = 0, **settings: int) -> None:
        """ValueError if a setting (name=value) of ``who`` is more than the number of time steps, if that is known, or
        than ``less`` below it."""
        if (most := self.time_steps) is not None:
            check_numbers(f"{who}, model {self.name}", most=most - less, **settings)

    def to(self, device: torch.device | str) -> Self:
        """Move the model (loading it if it was not)."""
        self.device = torch.device(device)
        self.pipe.to(self.device)
        return self

    def on(self, run: Run) -> Self:
        """The model on the device of ``run``; for ``run.low_memory`` its networks, and copies of them, compute layers
        again in backward passes (gradient checkpointing), which changes no gradient."""
        from diffusers import ModelMixin

        self.to(run.device)
        for part in self.pipe.components.values():
            if run.low_memory and isinstance(part, ModelMixin):
                part.enable_gradient_checkpointing()
        compile_networks(self.compile, self.networks)
        return self

    @property
    def networks(self) -> list[nn.Module]:
        """What ``compile`` compiles."""
        return [self.pipe.unet]

    def having(self, **parts: Any) -> Self:
        """This model with other parts (such as ``unet``) in place of its own."""
        other = copy.copy(self)
        other.__dict__["pipe"] = self.assembled(type(self.pipe), **parts)
        if "scheduler" in parts:  # which these were read from
            other.__dict__.pop("alpha_bar", None)
            other._alpha_bar_there = None
        compile_networks(self.compile, other.networks)
        return other

    def assembled(self, kind: Any, **parts: Any) -> Any:
        """A diffusers pipeline of class ``kind`` from this model's parts, ``parts`` (a ``scheduler``) in place of its
        own."""
        pipe = kind(**{**self.pipe.components, **parts}, **self.pipeline_options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def fresh_unet(self, init: str, rng: torch.Generator) -> Any:
        """A trainable float32 copy of the UNet (``init="copy"``), or one of the same shape with fresh weights
        (``init="random"``)."""
        if init == "copy":
            return trainable_copy(self.pipe.unet)
        with initialised_by(rng):
            unet = type(self.pipe.unet).from_config(self.pipe.unet.config)
        return unet.to(self.device).train()

    # -- the forward process and the denoising loss --------------------------------------------------------------------

    @cached_property
    def alpha_bar(self) -> Tensor:
        """Cumulative product of 1 - beta of the forward process, (T,) float32 on the CPU."""
        return self.pipe.scheduler.alphas_cumprod.float().cpu()

    def alpha_bar_on(self, device: torch.device) -> Tensor:
        """``alpha_bar``, copied to a device once: a copy in every loss would wait for the device."""
        if self._alpha_bar_there is None or self._alpha_bar_there.device != device:
            with torch.inference_mode(False):  # whoever asks next may want gradients
                self._alpha_bar_there = self.alpha_bar.to(device)
        return self._alpha_bar_there

    def noised(self, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """``z`` (N, C, h, w), as ``encode`` gives it, under ``noise`` at the time steps ``t`` (N,)."""
        return noised(self.alpha_bar_on(z.device), z, t, noise)

    @property
    def prediction(self) -> str:
        """``epsilon`` or ``v_prediction``; ValueError for a model that predicts anything else."""
        kind = self.pipe.scheduler.config.prediction_type
        check_choice(f"model {self.name}: has no loss for the prediction", kind, PREDICTIONS)
        return kind

    @property
    @abstractmethod
    def multiple(self) -> int:
        """What the sides of an input of the network that pictures meet first must be a multiple of."""

    def padded(self, x: Tensor) -> Tensor:
        """NCHW whose sides are multiples of ``multiple``: padded right and below with their last values."""
        return padded(x, self.multiple)

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """What the UNet denoises, (N, C, h, w), of pictures ``x`` (NCHW [0,1]), and of nothing beside them: where a
        network needs larger sides, it gets them, and what it makes of those is cut off again. Differentiable."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Pictures, NCHW float32, about [0,1] (not clamped), of ``z`` (N, C, h, w); differentiable."""

    @abstractmethod
    def embed(self, prompts: list[str]) -> Cond:
        """What the prompts condition the UNet on; of a model that is not in training, without a graph."""

    @abstractmethod
    def predict(self, noisy: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """What the UNet predicts for N noisy inputs (N, C, h, w) at time steps ``t`` (N,): noise or velocity, of the
        inputs' shape, float32."""

    @abstractmethod
    def trainable(self, rng: torch.Generator, init: str = "copy", *, gradient_checkpointing: bool = False) -> Trainable:
        """What a victim or a surrogate trains, saves and loads: a float32 UNet with the model's weights
        (``init="copy"``) or fresh ones from ``rng`` (``init="random"``); ``gradient_checkpointing``: less memory, more
        time."""

    def training_loss(self, z: Tensor, cond: Cond, rng: torch.Generator) -> Tensor:
        """``loss`` with time steps (uniform) and noise drawn from ``rng``: one step of any training, (N,)."""
        return self.loss(z, cond, *self.times_and_noise(z, rng))

    def times_and_noise(self, z: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Time steps (N,), uniform, and standard normal noise like ``z`` (N, ...), from ``rng``."""
        t = torch.randint(len(self.alpha_bar), (len(z),), generator=rng)
        return queued(t, z.device), queued(torch.randn(z.shape, generator=rng), z.device)

    def loss(self, z: Tensor, cond: Cond, t: Tensor, noise: Tensor) -> Tensor:
        """Denoising loss of each of N inputs, (N,): mean squared error of the prediction (Ho et al. 2020, eq. 14).

        It is over the picture: ``z`` holds a place for each pixel, or for each of the autoencoder's cells that holds
        any pixel, a partly filled one counting whole; padding that a network needs beyond those is not part of it.

        z, noise: (N, C, h, w) of ``encode`` and standard normal; t: (N,) integer time steps. The target is the noise,
        or the velocity for v-prediction models.
        """
        output = self.predict(self.noised(z, t, noise), t, cond)
        return (output - self.training_target(z, t, noise)).square().flatten(1).mean(1)

    def training_target(self, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the model is trained to predict for ``z`` under ``noise`` at ``t``: the noise or the velocity."""
        return velocity(self.alpha_bar_on(z.device), z, t, noise) if self.prediction == "v_prediction" else noise
