"""What several test files use: the tiny random pipeline, pictures of its size, an owner of them."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tiny import save_tiny_pixel, save_tiny_upscaler

from udpbench.benchmark.build import build
from udpbench.benchmark.cell import Cell
from udpbench.benchmark.check import checked_graph
from udpbench.benchmark.graph import Graph
from udpbench.commands.composing import read_files_once
from udpbench.core.budget import Linf
from udpbench.core.images import as_saved, write_metadata, write_png
from udpbench.data.cifar10 import CLASSES
from udpbench.interfaces import Log, Owner
from udpbench.models.pixel import PixelDiffusion
from udpbench.models.upscaler import Upscaler
from udpbench.world import renderer

CONF = Path(__file__).parent.parent / "conf"

hypothesis.settings.register_profile("udpbench", deadline=None)  # time says how busy the machine is, not what is wrong
hypothesis.settings.load_profile("udpbench")


PLAIN_HYDRA = ConfigLoaderImpl.__init__
_known: dict[str, dict[tuple[Any, ...], Any]] = {}


def _reads_once(self: ConfigLoaderImpl, config_search_path: ConfigSearchPath) -> None:
    """Commands that are run in a test's process find files of conf/ read already, as cells of a grid do."""
    PLAIN_HYDRA(self, config_search_path)
    read_files_once(self)
    self.repository.known = _known  # type: ignore[attr-defined]


ConfigLoaderImpl.__init__ = _reads_once  # type: ignore[method-assign]


@pytest.fixture
def plain_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra as it is, for tests of what is read once."""
    monkeypatch.setattr(ConfigLoaderImpl, "__init__", PLAIN_HYDRA)


# The files that take longest, in that order: begun first, for at the end a core would wait for them (loadfile).
LONGEST = [
    f"test_{name}.py"
    for name in (
        "golden", "cell", "plan", "contracts_protect", "contracts", "sweep", "udp", "config", "ddpm", "drawn_failures", "drawn_damage", "workers",
        "own_methods", "presets", "micro", "commands", "signals", "api", "consistent", "protect_command", "device", "contracts_attack", "micro_train", "fit", "wheel", "fill", "drawn_settings",
    )
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files are begun first; tests that compose a configuration are slow, whether or not they say so."""
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
    for item in items:
        if {"cell", "graph", "planned"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # nothing here is large enough for two


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Folder of a Stable-Diffusion-shaped pipeline of 16 px pictures with random weights; do not write into it."""
    from tiny import save_tiny

    from udpbench.models.pretrained import _quiet

    _quiet()
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def model(tiny):
    """The tiny pipeline, loaded once; nothing may change its weights."""
    from udpbench.models.latent import LatentDiffusion

    return LatentDiffusion(str(tiny), "tiny")


@pytest.fixture(scope="session")
def pictures() -> list[torch.Tensor]:
    """Four 8-bit pictures of subject 0, CHW [0,1], 16 px; the last has black and white corners, where no change can go outward."""
    truth = renderer.draw(4, torch.Generator().manual_seed(0), renderer.subject(0))
    found = [as_saved(x) for x in renderer.render(truth, 16)]
    found[3][:, :4, :4], found[3][:, -4:, -4:] = 0.0, 1.0
    return found


@pytest.fixture(scope="session")
def folder(pictures, tmp_path_factory) -> Path:
    """``pictures`` with captions, as a thief trains on them; do not write into it."""
    out = tmp_path_factory.mktemp("train")
    for i, x in enumerate(pictures):
        write_png(out / f"{i}.png", x)
    write_metadata(out, {f"{i}.png": {"text": "a photo of a sks ring"} for i in range(len(pictures))})
    return out


class Losses(Log):
    """Keeps the values of every curve, in the order in which they come."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.names: set[str] = set()

    def scalar(self, name: str, value: torch.Tensor | float, step: int) -> None:
        self.names.add(name)
        self.values.append(float(value))


class Stops(Log):
    """Interrupts the work at the sixth image step."""

    def scalar(self, name: str, value: torch.Tensor | float, step: int) -> None:
        if name == "perturb/loss" and step == 5:
            raise KeyboardInterrupt


@pytest.fixture
def owner(pictures) -> Owner:
    """The owner of ``pictures``."""
    return make_owner(pictures)


def cifar10_pictures(per_class: tuple[int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random (labels, pictures NHWC uint8) of the training and the test split, so many a class."""
    rng = np.random.default_rng(0)
    labels = [rng.permutation(np.arange(10 * n) % 10) for n in per_class]
    return [(of, rng.integers(0, 256, (len(of), 32, 32, 3), np.uint8)) for of in labels]


def write_cifar10(root: Path, per_class: tuple[int, int] = (4, 2)) -> Path:
    """``cifar10_pictures`` as archives by split and class; written as PNG, so that they stay the same."""
    folder = root / "archives"
    folder.mkdir(parents=True)
    for split, (labels, pictures) in zip(("train", "test"), cifar10_pictures(per_class), strict=True):
        for k, name in enumerate(CLASSES):
            with tarfile.open(folder / f"{split}-{name}.tar.gz", "w:gz") as archive:
                for i, x in enumerate(pictures[labels == k]):
                    stream = io.BytesIO()
                    Image.fromarray(x).save(stream, format="PNG")
                    member = tarfile.TarInfo(f"{split}/{name}/{i:04d}.jpg")
                    member.size = len(stream.getvalue())
                    archive.addfile(member, io.BytesIO(stream.getvalue()))
    return root


def options(group: str) -> list[str]:
    """Every option of a group of conf/, by listing the folder."""
    found = sorted(p.stem for p in (CONF / group).glob("*.yaml"))
    assert found
    return found


def family_options() -> list[str]:
    """FAMILY/GROUP/OPTION of all settings that a family of models brings."""
    found = sorted(p.relative_to(CONF / "family").with_suffix("") for p in (CONF / "family").glob("*/*/*.yaml"))
    assert found
    return list(map(str, found))


def presets(group: str) -> set[str]:
    """The options of a group whose class an option before them has: the same code with other numbers."""
    classes: set[str] = set()
    found = set()
    for option in options(group):
        named = re.search(r"^_target_: (\S+)", (CONF / group / f"{option}.yaml").read_text(), re.MULTILINE)
        if named is None or named[1] in classes:
            found.add(option)
        else:
            classes.add(named[1])
    return found


# Methods of a model that the quick tests try, one for each way of making pictures; the whole suite tries all.
QUICK = {
    "protect": {"none", "folder", "noise", "noise_rms", "advdm", "udp", "glaze"},
    "attack": {"none", "folder", "jpeg", "blur", "resize", "chain", "impress", "diffpure"},
}


def quick(group: str, *, of_presets: bool = True) -> list:
    """Every option of a group, without ``of_presets`` one for each class; slow are presets, and methods not in QUICK."""
    again = presets(group)
    kept = [o for o in options(group) if of_presets or o not in again]
    slow = {o for o in kept if o in again or o not in QUICK.get(group, kept)}
    return [pytest.param(o, marks=pytest.mark.slow) if o in slow else o for o in kept]


@cache
def every(family: str, group: str) -> DictConfig:
    """All options of a group for a family of models, in one composition; what one takes grows with the square of their number."""
    words = ["model=micro", "family=micro"]  # a task among them would choose a model and its family
    if family == "micro":
        words += [f"+{group}@every.{o}={o}" for o in options(group)]
    else:
        names = [name for name in family_options() if name.startswith(f"{family}/{group}/")]
        for name, option in ((name, Path(name).name) for name in names):
            words += [f"+{group}@every.{option}={option}", f"+family@every.{option}={name}"]
    return _composed(*words).every


@cache
def inside(option: str) -> DictConfig:
    """What a wrapper has inside it: those of one composition would choose it for one another."""
    return _composed("model=micro", "family=micro", f"protect={option}").protect.inner


@pytest.fixture(scope="session")
def node() -> Callable[..., DictConfig]:
    """(group, option) -> a fresh copy of its configuration as the command line composes it."""

    def copy(group: str, option: str, family: str = "micro") -> DictConfig:
        found = every(family, group)[option]
        if group == "protect" and "inner" in found:
            found = found.copy()
            found.inner = inside(option)
        conf = OmegaConf.create(OmegaConf.to_container(found, resolve=True))
        conf.pop("preset", None)  # no setting of the method: see udpbench.benchmark.build
        return conf

    return copy


def on(tiny: Path) -> list[str]:
    """Overrides that choose the tiny pipeline, with the embedded world's settings."""
    return ["model=local", "family=micro", f"model.path={tiny}", "model.dtype=fp32"]


def small(tiny: Path) -> list[str]:
    """Overrides of a cell that computes almost nothing, on the tiny pipeline."""
    return [*on(tiny), "data.size=16", "++task.pictures=6", "track=none"]


def composed(tiny: Path, *overrides: str) -> DictConfig:
    """The configuration of a small cell on the tiny pipeline, as the command line composes it."""
    return deepcopy(_composed(*small(tiny), *overrides))


@cache
def _composed(*overrides: str) -> DictConfig:
    return _loader().load_configuration("config", list(overrides), RunMode.RUN)


@cache
def _loader() -> ConfigLoader:
    """Hydra's."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return GlobalHydra.instance().config_loader()


@pytest.fixture
def graph(tiny) -> Callable[..., Graph]:
    """Overrides -> the graph of the cell that they make of ``composed``, checked."""

    def make(*overrides: str) -> Graph:
        cfg = composed(tiny, *overrides)
        return checked_graph(build(cfg, cfg.hydra.runtime.choices), asked_for=tuple(cfg.metrics.get("extra") or {}))

    return make


@pytest.fixture
def cell(graph) -> Callable[..., Cell]:
    """Overrides -> the cell they make of ``composed``, checked."""
    return lambda *overrides: graph(*overrides).cell


class Watching(Linf):
    """A budget that keeps the gradients and the steps that come by."""

    def __init__(self, eps: float) -> None:
        super().__init__(eps)
        self.gradients: list[torch.Tensor] = []
        self.moved: list[torch.Tensor] = []

    def direction(self, gradient: torch.Tensor) -> torch.Tensor:
        self.gradients.append(gradient)
        return super().direction(gradient)

    def project(self, x: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        self.moved.append(x)
        return super().project(x, clean)


def make_owner(images: list[torch.Tensor], names: list[str] | None = None) -> Owner:
    """An owner whose pictures go by numbers (or ``names``) and have prompts of their own; there is a further clean
    picture and one of the class, of the first one's size."""
    names = names or [f"{i:04d}.png" for i in range(len(images))]
    prompts = [f"a photo of a ring {renderer.SCENES[int(name[:4]) % len(renderer.SCENES)]}" for name in names]
    further = {"extra_clean": [images[0].flip(2)], "class_images": [images[0].flip(1)]}
    return Owner(images=list(images), names=names, prompts=prompts, class_prompt="a photo of a ring", **further)


@pytest.fixture(scope="session")
def elsewhere(pictures, tmp_path_factory) -> Path:
    """Pictures made elsewhere, one for each of ``pictures``."""
    out = tmp_path_factory.mktemp("elsewhere")
    for i, x in enumerate(pictures):
        write_png(out / f"{i:04d}.png", 1 - x)
    write_metadata(out, {f"{i:04d}.png": {"text": "a photo of a sks ring"} for i in range(len(pictures))})
    return write_cifar10(out)


@pytest.fixture(scope="session")
def pixels(tmp_path_factory) -> PixelDiffusion:
    return PixelDiffusion(str(save_tiny_pixel(tmp_path_factory.mktemp("pixel") / "ddpm")), "pixels")


@pytest.fixture(scope="session")
def upscaler(tmp_path_factory) -> Upscaler:
    return Upscaler(str(save_tiny_upscaler(tmp_path_factory.mktemp("upscaler") / "x2")), "upscaler")
