"""Methods from outside the package that change what other stages use: they fail in one line, and nothing of them is kept."""

from __future__ import annotations

import copy
import os
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from udpbench.benchmark.cell import Part
from udpbench.benchmark.graph import Graph
from udpbench.benchmark.process_state import SETTINGS, process_left_as_it_was
from udpbench.benchmark.stage import Stage
from udpbench.benchmark.stages import attack_stage, protect_stage, train_stage
from udpbench.benchmark.store import Store
from udpbench.core.errors import class_and_line
from udpbench.interfaces import Attack, Log, Protection
from udpbench.models.diffusion import Trainable
from udpbench.models.fingerprint import Fingerprint
from udpbench.task.dreambooth import DreamBooth

# -- a model that is changed -------------------------------------------------------------------------------------------


def halve(model):
    for weight in model.pipe.unet.parameters():
        weight.data.mul_(0.5)


def round_trip(model):
    model.pipe.unet.conv_in.weight.data.neg_().neg_()


def hook(model):
    model.pipe.unet.conv_in.register_forward_hook(lambda module, given, output: output * 2)


def backward_hook(model):
    model.pipe.vae.encoder.register_full_backward_hook(lambda *given: None)


def removed_hook(model):
    model.pipe.unet.conv_in.register_forward_hook(lambda module, given, output: output * 2).remove()


def forward(model):
    model.pipe.unet.forward = lambda *given, **named: None


def schedule(model):
    model.alpha_bar.mul_(0.5)


def scheduler(model):
    model.pipe.scheduler = copy.deepcopy(model.pipe.scheduler)


def gradients(model):
    model.pipe.text_encoder.requires_grad_(True)


def processor(model):
    layer = next(module for module in model.pipe.unet.modules() if "processor" in vars(module))
    layer.processor = copy.copy(layer.processor)


def layer(model):
    model.pipe.unet.conv_in = nn.Sequential(model.pipe.unet.conv_in, nn.Identity())


CHANGES = {
    halve: r"unet\.conv_in\.weight and \d+ more",
    hook: r"a forward hook of unet\.conv_in",
    backward_hook: r"a backward hook of vae\.encoder",
    forward: r"another forward of unet",
    schedule: r"alpha_bar",
    scheduler: r"another object of scheduler",
    gradients: r"requires_grad of text_encoder\.\S+ and \d+ more",
    processor: r"another attention processor of unet\.\S+",
    layer: r"unet\.conv_in\.weight and \d+ more; .*another class of unet\.conv_in.*",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_a_model_is_found_and_named(model, change):
    changed = copy.copy(model)
    changed.pipe = copy.deepcopy(model.pipe)
    changed.alpha_bar = model.alpha_bar.clone()
    before = Fingerprint(changed)
    assert before.changed() == ""
    change(changed)
    with pytest.raises(ValueError) as error:
        before.check("protect bad", "surrogate", lambda: None)
    told = rf"protect bad: changed its model \({CHANGES[change]}\); "
    todo = r"put it back, or work on a copy: surrogate\.trainable\(\.\.\.\)"
    assert re.fullmatch(told + todo, str(error.value))


def test_the_schedule_of_a_changed_model_is_read_anew(model):
    changed = copy.copy(model)
    changed.pipe = copy.deepcopy(model.pipe)
    changed.alpha_bar, changed._alpha_bar_there = model.alpha_bar.clone(), None  # not the model's own
    before, there = Fingerprint(changed), changed.alpha_bar_on(torch.device("cpu"))
    there.mul_(0.5)
    with pytest.raises(ValueError, match="alpha_bar"):
        before.check("protect bad", "surrogate", lambda: None)
    changed.pipe = model.pipe
    assert torch.equal(changed.alpha_bar_on(torch.device("cpu")), model.alpha_bar)


@pytest.mark.parametrize("change", [round_trip, removed_hook], ids=lambda change: change.__name__)
def test_what_is_put_back_is_no_change(model, change):
    before = Fingerprint(model)
    change(model)
    model.pipe.unet.train().eval()
    assert before.changed() == ""


def test_training_mode_is_a_change_where_something_is_dropped(model):
    before = Fingerprint(model)
    model.pipe.unet.train()  # which has no dropout
    assert before.changed() == ""
    model.pipe.unet.eval()
    dropping = copy.copy(model)
    dropping.pipe = copy.deepcopy(model.pipe)
    next(module for module in dropping.pipe.unet.modules() if isinstance(module, nn.Dropout)).p = 0.1
    before = Fingerprint(dropping)
    dropping.pipe.unet.train()
    assert before.changed().startswith("the training mode of unet.")


class One(nn.Module):
    """A network of one weight."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)


class Model:
    """What a fingerprint looks at."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.device, self.alpha_bar, self.pipe = torch.device("cpu"), torch.ones(3), self
        self.components = {"net": One(weight), "nothing": None}


WEIGHTS = {
    "float32": torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)),
    "bfloat16 of an odd number": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "a vector": torch.arange(7.0),
    "a part of another": torch.arange(33.0)[1:].view(4, 8),
    "transposed": torch.arange(12.0).view(3, 4).t(),
    "a number": torch.tensor(2.0),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_smallest_change_of_any_weight_is_found(name):
    for place in range(WEIGHTS[name].numel()):
        weight = WEIGHTS[name].clone(memory_format=torch.preserve_format)
        model = Model(weight)
        before = Fingerprint(model)
        at = np.unravel_index(place, weight.shape)
        weight.data[at] = torch.nextafter(weight[at].float(), torch.tensor(9e9)).to(weight.dtype) + 2**-7 * (
            weight.dtype == torch.bfloat16
        )
        assert before.changed() == "net.weight", place


def test_exchanged_rows_are_a_change_and_nothing_is_none():
    weight = WEIGHTS["float32"].clone()
    before = Fingerprint(model := Model(weight))
    weight.data[[0, 1]] = weight.data[[1, 0]]
    assert before.changed() == "net.weight"
    assert Fingerprint(Model(torch.empty(0, 3))).changed() == ""
    assert Fingerprint(model).changed() == ""


class Spoils(Protection):
    """Halves the weights of the model that it is given."""

    needs = frozenset({"latent"})
    couples_images = False

    def protect(self, owner, budget, surrogate, run):
        halve(surrogate)
        return list(owner.images)


class SpoilsPurifier(Attack):
    """Leaves a hook in the model that it is given."""

    needs = frozenset({"latent"})

    def purify(self, images, names, prompts, model, run):
        hook(model)
        return list(images)


class SpoilsVictim(Attack):
    """Adapts the victim itself."""

    def adapt(self, victim, images, run):
        (run.scratch / "state").write_text("of a changed model")
        halve(victim)
        return victim


class InPlace(DreamBooth):
    """Trains the weights of the victim itself."""

    def trainable(self, victim, run):
        weights = list(victim.pipe.unet.requires_grad_(True).parameters())
        return Trainable(victim, weights, victim.pipe.save_pretrained)


def weights_of_the_victim(made) -> tuple[torch.Tensor, torch.Tensor]:
    """The first weight of the victim as it is now, and as it was loaded."""
    (file,) = (Path(made.victim.component.path) / "unet").glob("*.safetensors")
    return made.victim.component.pipe.unet.conv_in.weight, load_file(file)["conv_in.weight"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["protect", "attack", "adapt", "task"])
def test_a_method_that_changes_its_model_fails_its_stage_and_no_other_uses_the_model(cell, tmp_path, kind):
    made = cell("task.steps=2", "data.train=3")
    data = Graph(made).data

    def stage() -> tuple[Stage, str]:
        if kind == "protect":
            return protect_stage(made, Part("bad", {}, Spoils()), data), "protect bad: changed its model (unet."
        if kind == "attack":
            told = "attack bad: changed its model (a forward hook of unet.conv_in); "
            return attack_stage(made, data, Part("bad", {}, SpoilsPurifier())), told
        if kind == "adapt":
            told = "attack spoilsvictim: changed its model (unet."
            return train_stage(made, data, None, Part("bad", {}, SpoilsVictim())), told
        task = copy.copy(made.task.component)
        task.__class__ = InPlace
        own = replace(made, task=replace(made.task, component=task))
        return train_stage(own, data, None, None), f"task {made.task.name}: changed its model (unet."

    failing, told = stage()
    store = Store(tmp_path, grad_batch=1)
    for _ in range(2):  # a second attempt goes on from nothing that the first one wrote
        with pytest.raises(ValueError) as error:
            store.do(failing)
        assert str(error.value).startswith(told)
        assert str(error.value).endswith(".trainable(...)")
        part = store.path(failing).with_suffix(".part")
        assert {path.name for path in part.iterdir()} <= {"_begun.json", "_seconds"}
        assert not store.finished(failing)
        assert made.surrogate.component is made.victim.component
        now, then = weights_of_the_victim(made)
        assert torch.equal(now, then)
        assert not made.victim.component.pipe.unet.conv_in._forward_hooks


# -- settings of the process -------------------------------------------------------------------------------------------

LEFT = {
    "float64": (lambda folder: torch.set_default_dtype(torch.float64), "torch's default dtype at torch.float64"),
    "meta": (lambda folder: torch.set_default_device("meta"), "torch's default device at meta"),
    "no gradients": (lambda folder: torch.set_grad_enabled(False), "torch's gradients (set_grad_enabled) at False"),
    "deterministic": (
        lambda folder: torch.use_deterministic_algorithms(True, warn_only=True),
        "torch's deterministic algorithms (on, as a warning) at (True, True)",
    ),
    "threads": (lambda folder: torch.set_num_threads(3), "torch's number of threads at 3"),
    "benchmark": (
        lambda folder: setattr(torch.backends.cudnn, "benchmark", True),
        "torch.backends.cudnn.benchmark at True",
    ),
    "folder": (os.chdir, "the working directory at {folder}"),
}


def settings() -> list:
    return [setting.read() for setting in SETTINGS]


@pytest.mark.parametrize("resumable", [True, False])
@pytest.mark.parametrize("what", LEFT)
def test_a_setting_of_the_process_that_is_left_changed_fails_the_stage_and_is_put_back(tmp_path, what, resumable):
    change, told = LEFT[what]

    def work(out, parents, run):
        (out / "text").write_text("made of other settings")
        change(tmp_path)

    before, stage = settings(), Stage("protect", {}, work, title="bad", resumable=resumable)
    store = Store(tmp_path / "store")
    with pytest.raises(ValueError) as error:
        store.do(stage)
    assert str(error.value).startswith(f"protect bad: left {told.format(folder=tmp_path)}; restore it (")
    assert settings() == before
    assert not (store.path(stage).with_suffix(".part") / "text").exists()


def test_settings_are_put_back_when_the_work_fails_and_its_own_error_is_the_one_that_is_told():
    def fails():
        with process_left_as_it_was("protect bad", lambda: None):
            torch.set_default_dtype(torch.float64)
            raise KeyError("missing")

    before = settings()
    with pytest.raises(KeyError, match="missing"):
        fails()
    assert settings() == before


def test_work_that_restores_what_it_set_is_published(tmp_path):
    def work(out, parents, run):
        with torch.no_grad():
            torch.set_default_dtype(torch.float64)
            (out / "text").write_text(str(torch.ones(1).dtype))
            torch.set_default_dtype(torch.float32)

    (folder,) = Store(tmp_path).do(Stage("protect", {}, work))
    assert (folder / "text").read_text() == "torch.float64"


# -- generators --------------------------------------------------------------------------------------------------------


class Lines(Log):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


DRAWS = {
    "torch": (lambda x, run: x + torch.randn_like(x) / 255, "torch's global generator"),
    "numpy": (lambda x, run: x + np.random.randn() / 255, "numpy's global generator"),  # noqa: NPY002
    "Python": (lambda x, run: x + random.random() / 255, "Python's global generator"),
    "its own": (lambda x, run: x + torch.randn(x.shape, generator=run.rng("own")) / 255, ""),
}


class Draws(Protection):
    """Draws from one generator or another."""

    def __init__(self, of: str) -> None:
        self.of = of

    def protect(self, owner, budget, surrogate, run):
        return [DRAWS[self.of][0](x, run).clamp(0, 1) for x in owner.images]


@pytest.mark.slow
@pytest.mark.parametrize("of", DRAWS)
def test_a_method_that_draws_from_a_global_generator_is_told_so_in_a_line(cell, tmp_path, of):
    made, log = cell("data.train=2"), Lines()
    data = Graph(made).data
    Store(tmp_path).do(data)
    Store(tmp_path, log=log).do(protect_stage(made, Part("bad", {"of": of}, Draws(of)), data))
    told = [f"bad: drew from {DRAWS[of][1]}: a rerun may differ; use run.rng"] if DRAWS[of][1] else []
    assert [line for line in log.said if "drew" in line] == told


# -- errors ------------------------------------------------------------------------------------------------------------


def test_an_error_that_does_not_say_where_is_told_with_its_stage(tmp_path):
    def work(out, parents, run):
        return {}["missing"]

    with pytest.raises(KeyError) as error:
        Store(tmp_path).do(Stage("protect", {}, work, title="bad"))
    assert class_and_line(error.value) == "KeyError: 'missing' (in protect bad)"

    def says(out, parents, run):
        raise ValueError("protect bad: eps must be > 0")

    with pytest.raises(ValueError) as said:
        Store(tmp_path).do(Stage("protect", {}, says, title="bad"))
    assert class_and_line(said.value) == "ValueError: protect bad: eps must be > 0"


def test_a_note_of_a_library_is_not_taken_for_the_line_of_an_error():
    error = TypeError("no number")
    error.add_note("see the manual")
    assert class_and_line(error) == "TypeError: no number"
