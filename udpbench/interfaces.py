"""The interfaces of the benchmark: read this file before adding a method.

A method is one Python file with one class and one YAML in ``conf/`` that names it. Every attribute has a default,
given here; no other attribute is ever looked up. Pictures are float32 RGB in [0,1] everywhere, CHW one by one and NCHW
in batches; a perturbation is measured in 1/255 of that range, on the saved 8-bit PNG.

Random numbers come from ``run.rng(...)`` and belong to the picture they are for, never to the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from udpbench.core import images
from udpbench.core.budget import Budget
from udpbench.core.component import Component
from udpbench.core.errors import Stopped
from udpbench.core.folders import Advance, Facts

# What a method may need, in ``needs``: of its model, or (class_images) of the harness.
NEEDS = {
    "latent": "an autoencoder",
    "text": "prompts",
    "denoise": "a UNet that takes nothing beside its noisy input",
    "pixel": "a model of pixels",
    "inpaint": "a UNet that takes its noisy input, alone or with a mask and the masked picture",
    "upscale": "a model that enlarges pictures",
    "class_images": "class pictures, which need prompts",
}


Bar = AbstractContextManager[Advance]  # within it, ``advance(n)``
Images = Sequence[Tensor]  # CHW float32 [0,1] each; sizes may differ
Texts = Sequence[str]  # one per picture
ImageLoss = Callable[[Tensor, list[int]], Tensor]  # NCHW pictures and their indices -> N losses


# -- what a method is handed -------------------------------------------------------------------------------------------


class Log:
    """Where a stage says what it is doing.

    This one says nothing; ``udpbench.tracking.console`` has the one that prints, ``udpbench.tracking.track`` those that
    plot and send.
    """

    title: str = ""  # whose work it reports

    def bar(self, title: str, total: int, unit: str = "it") -> Bar:
        """A progress bar over ``total`` units."""
        return nullcontext(lambda n: None)

    def scalar(self, name: str, value: Tensor | float, step: int) -> None:
        """One number of a curve (a loss).

        Tensors are kept unread until they are shown, so the device is never waited for.
        """

    def say(self, text: str) -> None:
        """One line for a person."""


class Titled(Log):
    """Another log, with a title before every name: whose bar and whose curve it is."""

    def __init__(self, log: Log, title: str) -> None:
        self.log, self.title = log, title

    def bar(self, title: str, total: int, unit: str = "it") -> Bar:
        return self.log.bar(f"{self.title}: {title}", total, unit)

    def scalar(self, name: str, value: Tensor | float, step: int) -> None:
        self.log.scalar(f"{self.title}/{name}", value, step)

    def say(self, text: str) -> None:
        self.log.say(f"{self.title}: {text}")


@dataclass(frozen=True)
class Run:
    """What every stage gets beside its inputs: seed, device, log and the bounds of its memory."""

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    log: Log = field(default_factory=Log)
    # Pictures of 128 x 128 px through a network at once, of larger ones fewer (``core.images.at_once``); outside the
    # cache keys: it may change speed and memory only.
    batch: int = 32
    grad_batch: int = 32  # the same for gradients with respect to pictures: they keep every layer in memory
    low_memory: bool = False  # layers of large models are computed twice in these, and not kept: less memory, more time
    count: dict[str, int] = field(default_factory=dict)  # work done, e.g. UNet evaluations: written to the record
    scratch: Path | None = None  # a folder for intermediate state; that of an interrupted attempt is still in it
    # Set once the process has been asked to end (see commands/signals.py): work ends where it can be resumed.
    stop: Event = field(default_factory=Event)
    # N losses of NCHW pictures that a protection keeps low beside its own aim (see protect/consistent.py)
    penalty: Callable[[Tensor], Tensor] | None = None
    # (loss, number of steps before) -> the loss that a protection raises in its place (see protect/eot.py)
    loss_hook: Callable[[ImageLoss, int], ImageLoss] | None = None
    # Gradient of pictures, NCHW -> the one that they move along in its place (see protect/ensemble.py)
    gradient_hook: Callable[[Tensor], Tensor] | None = None

    def rng(self, *key: object) -> torch.Generator:
        """The generator that belongs to ``key`` under this run's seed, on the CPU.

        It is the same whatever else is computed, on whatever device.
        """
        text = "/".join([str(self.seed), *map(str, key)]).encode(errors="surrogatepass")  # names need not be text
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1)

    def stop_if_asked(self) -> None:
        """Call where the work can be resumed: raises Stopped if the process has been asked to end."""
        if self.stop.is_set():
            raise Stopped

    def tally(self, what: str, n: int) -> None:
        """Count ``n`` more units of work."""
        self.count[what] = self.count.get(what, 0) + n


@dataclass
class Owner:
    """What the protector holds."""

    images: list[Tensor]  # CHW float32 [0,1]; sizes may differ
    names: list[str]  # one per picture; random numbers are keyed by them
    prompts: list[str]  # one per picture: what the owner thinks the thief will write
    masks: list[Tensor] | None = None  # one per picture, 1HW of 0 and 1 (1: the object); None: the data has none
    # Further clean pictures of the subject, not to be protected.
    extra_clean: list[Tensor] = field(default_factory=list)
    token: str = ""  # the rare word that names the subject in prompts that name it; empty: there is none
    class_prompt: str = ""
    class_images: list[Tensor] = field(default_factory=list)  # pictures of the class, for methods that need them
    like: list[Tensor] | None = None  # a protection's saved pictures, for controls that match its strength


# -- methods -----------------------------------------------------------------------------------------------------------


class Method(Component):
    """What protections, attacks and tasks have in common."""

    needs: frozenset[str] = frozenset()  # of NEEDS; with none of the model's, no model is loaded

    @property
    def starts_from_weights(self) -> bool:
        """Whether it starts from what the model has learned, so that fresh weights are an error in the cell."""
        return bool(self.needs - {"class_images"})

    def check_data(self, data: Dataset) -> None:
        """Raise ValueError in one line if the data lacks what it uses (masks, a word for the subject)."""

    def check_model(self, model: Any) -> None:
        """Raise ValueError in one line if its settings do not fit its model (a ``Diffusion``, which is not loaded)."""


class Protection(Method):
    """Perturbs the owner's pictures within a budget."""

    nonzero: ClassVar[tuple[str, ...]] = ("step_size",)
    protects: ClassVar[bool] = True  # False: it leaves the pictures as they are, so a cell has no protected arm
    keeps_budget: bool = True  # False: it has no bound of its own; what it changed is measured all the same
    # Whether ``consistent``, ``eot`` and ``ensemble`` may wrap it: it subtracts ``run.penalty`` from what it raises and
    # applies ``run.loss_hook`` and ``run.gradient_hook``, as ``pgd`` does
    wrappable: ClassVar[bool] = False
    matches_strength: ClassVar[bool] = False  # whether it is a control as strong as the pictures in ``owner.like``
    couples_images: bool = True  # whether a picture's perturbation depends on the other pictures, as by a surrogate
    class_images: int = 0  # how many class pictures it wants in ``owner.class_images``; needs "class_images"

    @property
    def wants_extra_clean(self) -> bool:
        """Whether it cannot do without ``owner.extra_clean``; data without any is an error then, before any work."""
        return False

    def model_prompts(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that its model is given, if that reads text; ``prompts``: the owner's."""
        return list(prompts)

    def check_texts(self, tokenizer: Any, owner: Owner) -> None:
        """Raise ValueError in one line if the owner's prompts lack what it looks for in them.

        ``tokenizer``: of its model (a ``models.tokenizer.Tokenizer``). ``owner``: without pictures, for there are
        none yet; with every prompt that it may be given.
        """

    def protect(self, owner: Owner, budget: Budget, surrogate: Any, run: Run) -> list[Tensor]:
        """The protected pictures, CHW float32 [0,1], one for each of ``owner.images`` and of its size; else the stage
        fails.

        ``surrogate``: the owner's model (a ``Diffusion``), on ``run.device``; None if ``needs`` names nothing of it.
        Other stages use the same object: it must be left as it was (weights, hooks, attention processors), else the
        stage fails. What is trained is a copy: ``surrogate.trainable(...)``.
        """
        raise NotImplementedError


class Attack(Method):
    """What a thief does about a protection. Override one or more of the methods; each default changes nothing."""

    couples_images: bool = False  # whether what ``purify`` makes of a picture depends on the other pictures

    def purify(self, images: Images, names: Texts, prompts: Texts, model: Any, run: Run) -> list[Tensor]:
        """The purified pictures, CHW float32 [0,1], one for each of ``images`` and of its size; else the stage fails.

        ``names``: keys of the pictures for ``run.rng``. ``prompts``: their captions. ``model``: the purifier (a
        ``Diffusion``), on ``run.device``, to be left as it was, else the stage fails (see ``Protection.protect``); None
        if ``needs`` names nothing of it.
        """
        return list(images)

    def model_prompts(self) -> list[str]:
        """The prompts that ``purify`` gives its model beside the captions."""
        return []

    def check_victim(self, victim: Any) -> None:
        """Raise ValueError in one line if ``adapt`` cannot work on this model (a ``Diffusion``, not loaded)."""

    def on_clean(self) -> Attack | None:
        """The same attack as it is on clean pictures; None if what it would make of them is not known."""
        return self

    def adapt(self, victim: Any, images: Sequence[Tensor], run: Run) -> Any:
        """The thief's model before it is trained on ``images`` (CHW): ``victim``, or one made from it.

        It is what is trained and what generates: parts with other weights than the victim's are saved with it.
        ``victim`` itself, from which other trainings start, must be left as it was, else the stage fails. Called
        again, with the same ``images`` and what it left in ``run.scratch``, where a training goes on that was
        interrupted.
        """
        return victim

    def augment(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        """The pictures of one training step, NCHW [0,1], changed as ``rng``, which is on the CPU, draws; ``batch`` may
        be on any device. If it is overridden, latents are not cached."""
        return batch

    @property
    def hooks(self) -> frozenset[str]:
        """Names of the methods above that it overrides: what of a cell it changes."""
        kind = type(self)
        changed = {
            "purify": kind.purify is not Attack.purify,
            "adapt": kind.adapt is not Attack.adapt,
            "augment": kind.augment is not Attack.augment,
            "sampling": kind.sampling is not Attack.sampling,
        }
        return frozenset(name for name, overridden in changed.items() if overridden)

    def sampling(self) -> dict[str, Any]:
        """Further arguments of the generation, as diffusers' pipelines take them: ``{"negative_prompt": ...}``."""
        return {}


@dataclass(frozen=True)
class Thief:
    """What the thief holds beside the pictures."""

    prompts: Sequence[str] = ()  # what he generates with, in turn
    class_prompt: str = ""
    class_images: Path | None = None  # folder of class pictures, for prior preservation
    masks: Path | None = None  # folder of masks (white: the object), by the names of the pictures
    clean: Path | None = None  # the pictures as they were, for edits that keep a part of them
    attack: Attack = field(default_factory=Attack)  # whose adapt, augment and sampling he uses


BARE = Thief()  # a thief with the pictures alone


class Task(Method):
    """What the thief does with the pictures: train a model and generate, or edit them as they are."""

    trains: ClassVar[bool] = True
    # What of an attack it heeds.
    takes: ClassVar[frozenset[str]] = frozenset({"purify", "adapt", "augment", "sampling"})
    curve: Sequence[float] = (1.0,)  # step multipliers at which the training is scored
    prior_weight: float = 0.0  # of class pictures in the training; 0: there are none
    prior_images: int = 0  # how many class pictures the pretrained victim generates

    def generated_count(self, train: int) -> int:
        """How many pictures are generated, or edits made, from ``train`` pictures."""
        raise NotImplementedError

    def steps_at(self, multiplier: float) -> int:
        """Training steps of a point of the curve."""
        raise NotImplementedError

    def training_key(self) -> dict[str, Any]:
        """The settings that a trained model depends on."""
        return {}

    def sampling_key(self) -> dict[str, Any]:
        """The settings that generated pictures, or edits, depend on."""
        return {}

    @property
    def uses_class_prompt(self) -> bool:
        """Whether it needs the data's class prompt: for class pictures, or in prompts of its own."""
        return self.prior_weight > 0

    def model_prompts(self, facts: Facts) -> list[str]:
        """What the model is asked for, beside the captions it is trained on; ``facts``: of the data."""
        return []

    def check_texts(self, tokenizer: Any, captions: Sequence[str], prompts: Sequence[str]) -> int:
        """How many of ``captions`` are too long for a model's ``tokenizer`` (``models.tokenizer.Tokenizer``) and will
        be cut.

        Raises ValueError in one line for a prompt that is too long.
        """
        return tokenizer.check(captions, prompts)

    def train(self, images: Path, out: Path, victim: Any, run: Run, thief: Thief = BARE) -> None:
        """Train on the pictures in ``images`` and write ``out/step_N/`` for every point of the curve.

        Goes on from its own checkpoint in ``out``. ``victim``, from which other arms are trained, must be left as it
        was (see ``Protection.protect``), also by the methods below.
        """
        raise NotImplementedError

    def generate(self, tuned: Path | None, out: Path, victim: Any, run: Run, thief: Thief) -> None:
        """Write PNGs and ``metadata.jsonl`` by the model in ``tuned`` (None: the pretrained one).

        Pictures that are there are kept.
        """
        raise NotImplementedError

    def class_pictures(self, out: Path, victim: Any, run: Run, thief: Thief) -> None:
        """Write ``prior_images`` PNGs of the class by the pretrained victim, from other noise than scored pictures."""
        raise NotImplementedError

    def edit(self, images: Path, out: Path, victim: Any, run: Run, thief: Thief, noise: str) -> None:
        """Write every edit of the pictures in ``images``; the same ``noise``, the same random numbers.

        Edits that are there are kept.
        """
        raise NotImplementedError

    def repainted(self, pictures: Mapping[str, Tensor], masks: Path | None) -> dict[str, Tensor]:
        """Name -> what an edit paints anew, (1, H, W) of 0 and 1; empty: the whole picture."""
        return {}


class Dataset(Component):
    """The pictures of a cell."""

    subject: str | int = ""  # what tables call the unit of replication: a subject, a style, a folder
    sizes: Mapping[str, int] = MappingProxyType({})  # by folder: train, reference, validation, heldout, extra_clean
    token: str | None = None  # the rare word that names the subject in captions and prompts
    has_masks: ClassVar[bool] = False  # whether it writes ``masks/``, the object of every training picture
    truth: ClassVar[str] = ""  # the kind of truth in data.json that a judge could know: subject | style
    rendered: ClassVar[bool] = False  # whether its pictures are of the embedded world
    compares_sets: ClassVar[bool] = True  # False: its references overlap the training pictures

    def write(self, out: Path, run: Run) -> None:
        """Write ``out`` as a data folder: train/ and further folders of PNGs with captions, and data.json."""
        raise NotImplementedError

    def files(self) -> list[Path]:
        """The training pictures, if they are files already; else nothing."""
        return []

    def shortest_side(self) -> int | None:
        """The shorter side in pixels of the smallest training picture; None: not known before they are written."""
        return None

    def known_sizes(self) -> Mapping[str, tuple[int, int]]:
        """File name -> (height, width) of the training pictures, if they are known before they are written; else
        nothing."""
        return {}

    def own_captions(self) -> list[str]:
        """Texts that somebody wrote for single pictures, if they are known before anything is written; else nothing.

        Those that are too long for a text encoder are cut; prompts (in ``facts``) must not be.
        """
        return []

    def known_captions(self) -> list[str]:
        """Of the training pictures, if they are known before anything is written; else nothing."""
        return []

    def facts(self) -> Facts | None:
        """What data.json will say, if it is known before anything is written."""
        return None


# -- metrics -----------------------------------------------------------------------------------------------------------

AGAINST = ("reference", "train_clean", "clean_arm", "input", "truth")  # what a metric may compare with


class Metric(Component):
    """Scores of a folder of pictures against what it is compared with. The folder that is scored is always the first
    argument, the reference the second."""

    # What it compares with, of AGAINST. ``input``: a changed picture with its original, so it belongs to
    # ``metrics@perturbation``; ``clean_arm``: edits with the clean arm's edits.
    against: ClassVar[str] = "reference"
    # Score -> "up" | "down": the way it goes when pictures are better protected.
    scores: Mapping[str, str] = MappingProxyType({})
    minimum: int = 1  # pictures a side below which it is absent, and the record says so
    equal_sizes: ClassVar[bool] = False  # of the larger folder only the first pictures by name are used
    least_side: int = 1  # of a picture in pixels: pairs of smaller ones cannot be measured
    truth: ClassVar[str] = ""  # the kind of truth it needs the data to have
    compares_with_noise: ClassVar[bool] = False  # whether ``against_noise`` has something to say

    def __call__(self, got: Path, ref: Path, run: Run) -> dict[str, float]:
        """Score -> value; one that is not finite is left out by who asks."""
        raise NotImplementedError

    def against_noise(self, got: Path, noise: Path, run: Run) -> dict[str, float]:
        """Scores of changed pictures against the same pictures under noise of the same budget."""
        raise NotImplementedError


Measure = Callable[[Tensor, Tensor], dict[str, Tensor]]  # changed, original: NCHW [0,1] -> score -> (N,)


class PairMetric(Metric):
    """A metric of pairs, a changed picture and its original: one number per score and picture, then their mean."""

    against: ClassVar[str] = "input"

    def prepare(self, device: torch.device) -> Measure:
        """What measures a batch; loads the network if there is one."""
        raise NotImplementedError

    def per_image(self, got: Path, ref: Path, run: Run) -> dict[str, dict[str, float]]:
        """File name -> what ``prepare`` measures, sorted by name, of ``got`` (changed) against ``ref`` (original).

        Raises ValueError if the folders hold other names, pictures of one name and two sizes, or one that is too small.
        """
        measured: dict[str, dict[str, float]] = {}
        measure, name, n = self.prepare(run.device), type(self).__name__.lower(), len(images.list_images(got))
        with torch.inference_mode(), run.log.bar(f"pairs {name}", n, "img") as advance:
            for files, changed, original in _pairs(got, ref, run.batch):
                if min(changed.shape[-2:]) < self.least_side:
                    side, given = self.least_side, " x ".join(map(str, changed.shape[-2:]))
                    raise ValueError(f"{name}: needs pictures of at least {side} x {side} px; {files[0]} is {given}")
                values = measure(changed.to(run.device), original.to(run.device))
                rows = zip(*(value.tolist() for value in values.values()), strict=True)
                measured |= {file: dict(zip(values, row, strict=True)) for file, row in zip(files, rows, strict=True)}
                advance(len(files))
        return dict(sorted(measured.items()))

    def __call__(self, got: Path, ref: Path, run: Run) -> dict[str, float]:
        """Means over the pictures."""
        rows = list(self.per_image(got, ref, run).values())
        return {score: sum(row[score] for row in rows) / len(rows) for score in self.scores}


def _pairs(got: Path, ref: Path, batch: int) -> Iterator[tuple[list[str], Tensor, Tensor]]:
    ours, theirs = ({path.name for path in images.list_images(folder)} for folder in (got, ref))
    if unmatched := sorted(ours ^ theirs):
        few = f"{len(unmatched)} are in one only, e.g. {unmatched[0]}"
        raise ValueError(f"pairs: {got} and {ref} must hold the same names; {few}")
    batches = zip(images.iterate(got, batch), images.iterate(ref, batch), strict=False)
    for (names, changed), (others, original) in batches:
        # Both are sorted by size, then by name: where they part, some picture has two sizes.
        if names != others or changed.shape != original.shape:
            raise ValueError(f"pairs: pictures of one name must be of one size in {got} and {ref}; see {names[0]}")
        yield names, changed, original


class Features(Component):
    """A feature network and the treatment of the pictures before it."""

    def extract(self, folder: Path, run: Run, side: int | None = None) -> Tensor:
        """Features (N, d) float32 on the CPU of the pictures of ``folder``, sorted by name.

        ``side``: of the centre square of each, resized to it before anything else; None: of the pictures as they are.
        """
        raise NotImplementedError

    def score_name(self, kind: str) -> str:
        """What a score of these features is called: ``kind_network``, or the name the world knows it by (``fid``)."""
        raise NotImplementedError


class SetMetric(Metric):
    """A metric of two sets of pictures: a function of their features, named after the network that makes these.

    Where the generated pictures are squares of one size, which a victim's are, reference pictures are cut and resized
    to it first, as its training pictures were: a victim that draws them again is perfect.

    Args:
        features: the network and the treatment of the pictures before it.
        minimum: pictures a side below which the metric is absent; None: ``usual``.
    """

    version = 2  # 2: one geometry
    kinds: ClassVar[Mapping[str, str]]  # score without the network's name -> up | down
    least: ClassVar[int] = 1  # below this many pictures a side the formula itself makes no sense
    usual: ClassVar[int] = 1  # and below this many its value says little

    def __init__(self, features: Features, minimum: int | None = None) -> None:
        self.features, self.minimum = features, self.usual if minimum is None else minimum
        if self.minimum < self.least:
            kinds = "/".join(self.kinds)
            raise ValueError(f"{kinds}: minimum must be at least {self.least} pictures, given {self.minimum}")
        self.scores = {features.score_name(kind): way for kind, way in self.kinds.items()}

    def check(self) -> None:
        self.features.check()

    def identity(self) -> dict[str, Any]:
        return self.features.identity()

    def compute(self, got: Tensor, ref: Tensor) -> tuple[float, ...]:
        """The scores, in the order of ``kinds``, of features (N, d) of generated and (M, d) of reference pictures."""
        raise NotImplementedError

    def __call__(self, got: Path, ref: Path, run: Run) -> dict[str, float]:
        """Scores of the generated folder ``got`` against ``ref``; ValueError if one of them is too small."""
        n, m = (len(images.list_images(folder)) for folder in (got, ref))
        if min(n, m) < self.minimum:
            given = f"{n} generated and {m} reference pictures given"
            raise ValueError(f"{', '.join(self.scores)}: {given}; at least {self.minimum} a side are needed")
        ours, theirs = self.features.extract(got, run), self.features.extract(ref, run, images.one_side(got))
        if self.equal_sizes:
            ours, theirs = ours[: min(n, m)], theirs[: min(n, m)]
        return dict(zip(self.scores, self.compute(ours, theirs), strict=True))


__all__ = [
    "AGAINST", "BARE", "NEEDS", "Attack", "Component", "Dataset", "Facts", "Features", "Images", "Log", "Measure",
    "Method", "Metric", "Owner", "PairMetric", "Protection", "Run", "SetMetric", "Task", "Texts", "Thief", "Titled",
]  # fmt: skip
