"""What every diffusion model here is: frozen weights with a name, a forward process and a denoising loss."""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from udpbench.core.compiled import check_compiler, compile_networks
from udpbench.core.component import Component, check_choice, check_numbers
from udpbench.core.digest import files_digest, folder_digest
from udpbench.core.memory import queued
from udpbench.core.pixels import padded
from udpbench.interfaces import Run
from udpbench.models.folder import INDEX, SCHEDULERS, UNUSED, look
from udpbench.models.headers import pipeline_of, read_json
from udpbench.models.networks import initialised_by, trainable_copy
from udpbench.models.tokenizer import Tokenizer

PREDICTIONS = ("epsilon", "v_prediction")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


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


class Diffusion(Component, ABC):
    """A frozen diffusion model, cheap to name and loaded on first use.

    Pictures are NCHW float32 in [0,1] on this side; the model's own range [-1,1] and latent scaling exist only in
    here. Losses are computed in float32 whatever the model's dtype.
    """

    places = ("path", "mirrors", "config", "compile")  # ``identity`` says what is compiled
    shape: ClassVar[str]  # what a folder must be shaped like
    trained: ClassVar[bool] = True  # whether its weights have learned anything
    option: ClassVar[str]  # of the configuration that takes such a folder
    pipelines: ClassVar[tuple[str, ...]]  # diffusers' classes that model_index.json may name; the first is ``pipeline``
    # Folders of the pipeline whose files are the model, and the classes that model_index.json may give them.
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {"scheduler": SCHEDULERS}
    wants_classes: ClassVar[bool] = False  # whether its UNet is given a class
    pipeline_options: ClassVar[dict[str, Any]] = {}  # further arguments of the pipeline's constructor
    known_size: int | None = None  # ``size``, read without the model; None: not known before it is loaded
    pipe: Any  # the diffusers pipeline: frozen, in evaluation mode, on ``device``

    def __init__(
        self,
        path: str,
        name: str,
        revision: str | None = None,
        mirrors: tuple[str, ...] = (),
        dtype: str = "fp32",
        config: str | None = None,
        compile: str = "none",
    ) -> None:
        check_choice(f"model {name}: unknown dtype", dtype, DTYPES)
        check_compiler(f"model {name}", compile)
        self.embedded = path.startswith("pkg:")
        if self.embedded:  # weights that come with the package
            path = str(Path(__file__).parent / "micro" / "weights" / path.removeprefix("pkg:"))
        self.name, self.path, self.revision, self.mirrors, self.dtype = name, path, revision, tuple(mirrors), dtype
        self.config, self.compile = config, compile
        self.device = torch.device("cpu")
        self._alpha_bar_there: Tensor | None = None

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

    @property
    def pipeline(self) -> Any:
        """The class of diffusers."""
        import diffusers

        return getattr(diffusers, self.pipelines[0])

    # -- identity and loading ------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, str]:
        """What names the weights in a key: digests of the parts of a local folder, or hub id and revision.

        Raises ValueError if neither a folder nor a hub id with a commit is given (branches and tags move), and with
        what ``looked_at`` finds.
        """
        local, file = Path(self.path).expanduser(), self._file
        if not (local.is_dir() or file) and not (HUB_ID.fullmatch(self.path) and self.revision):
            todo = f"give a {self.shape} folder, or a hub id (owner/name) with its revision"
            raise ValueError(f"model {self.name}: no folder {self.path!r}; {todo}")
        if not (local.is_dir() or file or COMMIT.fullmatch(str(self.revision))):
            todo = f"give its commit, 40 hex digits{self._commit_here}"
            raise ValueError(f"model {self.name}: revision {self.revision!r} may come to mean other weights; {todo}")
        found, how = self.looked_at(), {"dtype": self.dtype}
        if self.compile != "none":  # it rounds otherwise
            how["compile"] = self.compile
        if found and (file or local.is_dir()):
            return self._digests(found[0]) | how
        return {"hub": self.path, "revision": str(self.revision)} | how

    def contents(self) -> dict[str, str]:
        """Digests of its parts, by which models are compared: of a hub's too, once it is on this machine; before,
        ``identity``."""
        found = self.looked_at()
        return self._digests(found[0]) if found else self.identity()

    def _digests(self, folder: Path) -> dict[str, str]:
        digests = {part: folder_digest(folder / part) for part in self.parts}
        return digests | ({"file": files_digest([self._file])} if self._file else {})

    @property
    def _commit_here(self) -> str:
        """What a branch or tag means in the hub's cache, in words; nothing if it is not there."""
        return f"; on this machine it is {self.folder.name}" if self.folder else ""

    @property
    def folder(self) -> Path | None:
        """Where the pipeline's files are: a local folder, or a snapshot of the hub's in its cache; None: not here."""
        for name, revision in self._places:
            if (local := Path(name).expanduser()).is_dir():
                return local
            if HUB_ID.fullmatch(name):
                from huggingface_hub import try_to_load_from_cache

                if isinstance(found := try_to_load_from_cache(name, INDEX, revision=revision), str):
                    return Path(found).parent
        return None

    @property
    def _file(self) -> Path | None:
        """The single-file checkpoint that ``path`` is, if it is one."""
        file = Path(self.path).expanduser()
        return file if file.is_file() else None

    @property
    def _places(self) -> list[tuple[str, str | None]]:
        """Folders or hub ids with their revisions, in the order in which they are tried; of a single-file checkpoint
        that of its configuration files."""
        if self._file:
            return [_pinned(self.config or pipeline_of(self._file))]
        return [(self.path, self.revision), *map(_pinned, self.mirrors)]

    def looked_at(self) -> tuple[Path, str | None] | None:
        """The folder and the variant of its weights to load; None if the model is not on this machine yet.

        Raises ValueError in one line if anything of it is missing, damaged or not supported: see
        ``udpbench.models.folder``.
        """
        try:
            folder = self.folder or (self._downloaded() if self._file else None)  # configuration files are small
            return (folder, look(folder, type(self), self._file, keys=not self.embedded)) if folder else None
        except ValueError as error:
            raise ValueError(f"model {self.name}: {str(error).removeprefix(f'model {self.name}: ')}") from error

    @classmethod
    def unsupported(cls, configs: Mapping[str, Any]) -> Iterator[str]:
        """A line for everything in the configurations of the parts (``configs``) that is not supported."""
        scheduler, unet = configs["scheduler"], configs["unet"]
        flows = scheduler.get("use_flow_sigmas") or "Flow" in str(scheduler.get("_class_name"))
        kind = "flow_prediction" if flows else scheduler["prediction_type"]
        if kind not in PREDICTIONS:
            yield f"has no loss for the prediction {kind!r}; allowed are {', '.join(PREDICTIONS)}"
        if (unet.class_embed_type or unet.num_class_embeds) and not cls.wants_classes:
            yield "its UNet wants classes, which is not supported"
        if not isinstance(unet.sample_size, int):
            yield f"its UNet's sample_size must be a whole number, the side of its input, it is {unet.sample_size!r}"

    def fetch(self) -> None:
        """Download what is not on this machine, and look at it; ValueError with a line of what to do if it cannot be
        had."""
        if self.looked_at() is None:
            self._downloaded()
            self.looked_at()

    def _downloaded(self) -> Path:
        """The folder of what was downloaded from the first place that has it; of a single-file checkpoint, the
        configuration files."""
        from huggingface_hub import snapshot_download

        reason = "no such folder"
        for name, revision in self._places:
            try:
                if self._file:
                    return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.txt"]))
                return Path(self.pipeline.download(name, revision=revision, **dict.fromkeys(UNUSED)))
            except (OSError, ValueError) as error:
                reason = str(error).strip().splitlines()[0]
        if self._file:
            said = f"the configuration of {self._file} is not in {name} ({reason})"
            todo = "give a folder with these files (and the tokenizer; no weights) as model.config=DIR"
            raise ValueError(f"model {self.name}: {said}; {todo}")
        places = ", ".join((self.path, *self.mirrors))
        todo = f"download it (hf download {self.path}) and say model={self.option} model.path=DIR"
        raise ValueError(f"model {self.name}: cannot be loaded from {places} ({reason}); {todo}")

    def load(self, **options: Any) -> Any:
        """The pipeline, frozen and on ``device``; ValueError as ``fetch``."""
        _quiet()
        self.fetch()
        folder, variant = self.looked_at() or (Path(self.path), None)
        if self._file:
            file = str(self._file)
            pipe = self.pipeline.from_single_file(file, config=str(folder), local_files_only=True, **options)
        else:
            pipe = self.pipeline.from_pretrained(folder, variant=variant, local_files_only=True, **options)
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(self.device, DTYPES[self.dtype])

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


def _pinned(place: str) -> tuple[str, str | None]:
    """A mirror's name and revision: ``owner/name@revision`` or ``owner/name``; a folder that exists is itself."""
    name, at, revision = place.rpartition("@")
    return (name, revision) if at and not Path(place).expanduser().is_dir() else (place, None)


def _quiet() -> None:
    """The libraries' own progress bars and warnings would run into ours."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
