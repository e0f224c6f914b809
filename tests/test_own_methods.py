"""Methods from outside the package: their source is in the keys, their errors are told in one line, their hooks act."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Mapping

import pytest
import torch
from forked import Command
from omegaconf import OmegaConf
from safetensors.torch import load_file
from shared import composed, small

from udpbench.benchmark.build import build, make_part
from udpbench.benchmark.graph import Graph
from udpbench.benchmark.store import Store
from udpbench.commands import plan
from udpbench.commands import run as command
from udpbench.core.images import read_folder
from udpbench.core.source import source_digests
from udpbench.interfaces import Attack, Dataset, Metric, Protection

pytestmark = pytest.mark.slow  # every test composes a configuration or starts a process


# -- a protection under development, in real processes -----------------------------------------------------------------

METHOD = '''
"""Somebody's own protection."""
from . import helper
from udpbench.interfaces import Protection
from ascent import FACTOR


class Ascent(Protection):
    needs = frozenset({"latent"})
    couples_images = False

    def protect(self, owner, budget, surrogate, run):
        from ascent.late import STEP

        made = []
        for picture in owner.images:
            x = picture[None].to(run.device).requires_grad_(True)
            loss = +surrogate.encode(x).square().sum()
            loss.backward()
            made.append((picture + FACTOR * helper.SIZE * STEP * x.grad[0].sign().cpu() / 255).clamp(0, 1))
        return made
'''
FILES = {
    "ascent/__init__.py": "from .constants import FACTOR\n",
    "ascent/constants.py": "FACTOR = 1\n",
    "ascent/method.py": METHOD,
    "ascent/helper.py": "import json\n\nSIZE = 2\n",
    "ascent/late.py": "STEP = 2\n",
    "ascent/unrelated.py": "OTHER = 1\n",
    "conf/protect/ascent.yaml": "# One step up.\n_target_: ascent.method.Ascent\n",
}


@pytest.fixture
def mine(tmp_path, tiny):
    """Writes the method; runs the commands on it."""

    class Mine:
        def write(self, name: str, old: str = "", new: str = "") -> None:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text() if old else FILES[name]
            assert old in text
            path.write_text(text.replace(old, new) if old else text)

        cell = [
            *small(tiny), "protect=ascent", "hydra.searchpath=[file://conf]", "arms=[protected]", "task.steps=1",
            "task.sample_steps=1", "data.reference=0", "data.heldout=0", "metrics.primary=[]", "seed=0",
        ]  # fmt: skip

        def command(self, *words: str) -> str:
            status, _, said = Command(*words, *self.cell, cwd=tmp_path, path=(tmp_path,)).finish()
            assert status == 0, said
            return said

        def todo(self) -> set[str]:
            """The kinds of stages that the same command would do now."""
            self.command("plan", "--json", "plan.json")
            return self.planned()

        def todo_here(self) -> set[str]:
            """The same without a process of its own: modules are imported anew all the same."""
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(tmp_path)
                patch.syspath_prepend(tmp_path)
                # What is compiled would be taken for a source of the same second and size.
                patch.setattr(sys, "dont_write_bytecode", True)
                with pytest.raises(SystemExit) as end:
                    plan.main([*self.cell, "--json", "plan.json"])
            for name in [name for name in sys.modules if name.split(".")[0] == "ascent"]:
                del sys.modules[name]
            assert end.value.code == 0
            return self.planned()

        def planned(self) -> set[str]:
            return {kind for kind, n in json.loads((tmp_path / "plan.json").read_text())["kinds"].items() if n["todo"]}

        def pictures(self) -> list[torch.Tensor]:
            """Every picture that the protection has ever made."""
            folders = sorted((tmp_path / "outputs/store/protect").iterdir(), key=lambda path: path.stat().st_mtime_ns)
            return [torch.stack(list(read_folder(folder).values())) for folder in folders]

    made = Mine()
    for name in FILES:
        made.write(name)
    return made


@pytest.mark.slow
def test_a_method_under_development_never_shows_old_numbers(mine):
    mine.command()
    assert mine.todo() == set()
    changes = {
        "ascent/method.py": ("+surrogate", "-surrogate"),  # the sign of its loss
        "ascent/helper.py": ("SIZE = 2", "SIZE = 3"),  # from . import
        "ascent/late.py": ("STEP = 2", "STEP = 1"),  # imported in a function
        "ascent/constants.py": ("FACTOR = 1", "FACTOR = -1"),  # by way of the package's own imports
    }
    for name, (old, new) in changes.items():
        mine.write(name, old, new)
        assert {"protect", "train", "generate"} <= mine.todo_here(), name
        mine.write(name, new, old)
    mine.write("ascent/unrelated.py", "OTHER = 1", "OTHER = 1  # nothing")
    assert mine.todo_here() == set()

    mine.write("ascent/method.py", "+surrogate", "-surrogate")
    said = mine.command()
    assert "0 stages to do" not in said
    up, down = mine.pictures()
    assert not torch.equal(up, down)


def test_a_class_that_is_loaded_keeps_the_digest_of_what_was_loaded(tmp_path, monkeypatch):
    """A process runs what it has imported, whatever has been written into the file since."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file, settings = tmp_path / "edited_meanwhile.py", {"_target_": "edited_meanwhile.Own"}
    file.write_text("class Own:\n    size = 1\n")
    loaded = source_digests(settings)
    file.write_text("class Own:\n    size = 22\n")
    assert source_digests(settings) == loaded
    del sys.modules["edited_meanwhile"]
    assert source_digests(settings).keys() == loaded.keys()
    assert source_digests(settings) != loaded
    del sys.modules["edited_meanwhile"]


def test_libraries_and_the_package_are_no_part_of_the_source(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        found = source_digests({"_target_": "ascent.method.Ascent", "parts": [{"_target_": "torch.nn.Linear"}]})
    finally:
        for name in [name for name in sys.modules if name.startswith("ascent")]:
            del sys.modules[name]
    assert set(found) == {"ascent", "ascent.constants", "ascent.method", "ascent.helper", "ascent.late"}
    assert source_digests({"_target_": "udpbench.protect.noise.Noise"}) == {}


# -- errors ------------------------------------------------------------------------------------------------------------


class Misspelt(Protection):
    """Needs what there is not."""

    needs = frozenset({"latnt"})


class Listed(Protection):
    """Its needs are no set."""

    needs = ("latent",)  # type: ignore[assignment]


class Higher(Metric):
    """Its scores say in other words which way is better protected."""

    scores = {"mine": "higher"}


class Nowhere(Metric):
    """Compares with what there is not."""

    against = "references"
    scores = {"mine": "up"}


class Shifting(Protection):
    """Has a setting that may be negative, and one that may not be 0."""

    unbounded = ("shift",)
    nonzero = ("rate",)

    def __init__(self, shift: float = 0.0, rate: float = 1.0, inner: Protection | None = None) -> None:
        self.shift, self.rate, self.inner = shift, rate, inner


class Holding(Protection):
    """Is made of others."""

    def __init__(self, inner: Protection, members: Mapping[str, Protection], shift: float = 0.0) -> None:
        self.inner, self.members, self.shift = inner, members, shift


class Sizeless(Dataset):
    """Does not say how many pictures there are."""


class Stranger:
    """No protection."""


class Changes(Protection):
    """Returns what it is told to."""

    def __init__(self, how: str) -> None:
        self.how = how

    def protect(self, owner, budget, surrogate, run):
        few, small = owner.images[:3], [x[:, :-1] for x in owner.images]
        arrays = [x.numpy() for x in owner.images]
        return {"few": few, "small": small, "nothing": None, "arrays": arrays}[self.how]


@pytest.mark.parametrize(
    ("kind", "base", "told"),
    [
        (
            "Misspelt",
            Protection,
            "mine: test_own_methods.Misspelt needs unknown latnt; allowed are latent, text, denoise, pixel, inpaint",
        ),
        ("Listed", Protection, "mine: needs of test_own_methods.Listed must be a set, such as {'latent'}"),
        ("Higher", Metric, "mine: scores of test_own_methods.Higher must say of each whether up or down is better"),
        (
            "Nowhere",
            Metric,
            "mine: test_own_methods.Nowhere compares with unknown 'references'; allowed are reference, train_clean, ",
        ),
        ("Sizeless", Dataset, "mine: test_own_methods.Sizeless must have sizes, with the number of training pictures"),
        (
            "Stranger",
            Protection,
            "mine: test_own_methods.Stranger is no Protection; derive it from udpbench.interfaces.Protection",
        ),
    ],
)
def test_a_class_that_does_not_fit_is_told_in_one_line(kind, base, told):
    with pytest.raises(ValueError) as error:
        make_part(OmegaConf.create({"_target_": f"test_own_methods.{kind}"}), "mine", base)
    (line,) = str(error.value).splitlines()
    assert line.startswith(told)


def holding(inner: dict[str, float], member: dict[str, float], shift: float = 0.0) -> None:
    of = {"_target_": "test_own_methods.Shifting"}
    node = {"_target_": "test_own_methods.Holding", "inner": of | inner, "members": {"a": of | member}, "shift": shift}
    make_part(OmegaConf.create(node), "mine", Protection)


def test_what_numbers_may_be_is_said_by_the_part_that_has_them():
    holding({"shift": -1.0}, {"shift": -2.0})
    with pytest.raises(ValueError, match=r"^mine: shift must be a number from 0 to 1e\+07, given -1.0$"):
        holding({}, {}, shift=-1.0)
    with pytest.raises(ValueError, match="^mine: inner.rate must be > 0, given 0.0$"):
        holding({"rate": 0.0}, {})
    with pytest.raises(ValueError, match="^mine: members.a.rate must be > 0, given 0.0$"):
        holding({}, {"rate": 0.0})


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("few", "returned 3 pictures for 6"),
        ("small", "returned a picture of 3 x 15 x 16"),
        ("nothing", "returned NoneType; it must return a list of pictures"),
        ("arrays", "returned ndarray for 0000.png; pictures are tensors"),
    ],
)
def test_pictures_of_another_number_or_kind_are_told_in_one_line(how, told, tiny, tmp_path, monkeypatch, capsys):
    words = ["protect=none", "protect._target_=test_own_methods.Changes", f"+protect.how={how}", "arms=[protected]"]
    monkeypatch.setattr(sys, "argv", ["udpbench", *small(tiny), f"runtime.out={tmp_path}", *words])
    with pytest.raises(SystemExit) as end:
        command.run()
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert told in line


# -- hooks of an attack ------------------------------------------------------------------------------------------------


class Mirrors(Attack):
    """Trains on mirrored pictures."""

    def augment(self, batch, rng):
        return batch.flip(-1)


class SaysNo(Attack):
    """Generates away from a word."""

    def __init__(self, prompt: str = "noise") -> None:
        self.prompt = prompt

    def sampling(self):
        return {"negative_prompt": self.prompt}


class Weakens(Attack):
    """Trains a model of smaller weights."""

    def adapt(self, victim, images, run):
        other = copy.copy(victim)
        other.pipe = copy.deepcopy(victim.pipe)
        with torch.no_grad():
            for weight in other.pipe.unet.parameters():
                weight *= 0.9
        return other


ARMS = "arms=[pretrained,clean,noise,protected,purified,clean_attacked]"
FEW = [
    "protect=noise",
    "task.steps=2",
    "task.sample_steps=2",
    "task.pictures=2",
    "data.reference=0",
    "data.heldout=0",
    ARMS,
]


@pytest.fixture
def graph(tiny):
    """Overrides -> the graph of a small cell."""

    def make(*overrides: str) -> Graph:
        cfg = composed(tiny, *FEW, *overrides)
        return Graph(build(cfg, cfg.hydra.runtime.choices))

    return make


def attack(kind: str, *more: str) -> list[str]:
    return ["attack=none", f"attack._target_=test_own_methods.{kind}", *more]


@pytest.mark.parametrize("kind", ["Mirrors", "SaysNo", "Weakens"])
def test_a_hook_changes_the_keys_of_the_attacked_arms_only(graph, kind):
    without, with_it = graph("attack=none"), graph(*attack(kind))
    assert list(without.arms) == ["pretrained", "clean", "noise", "protected"]
    assert list(with_it.arms) == ["pretrained", "clean", "noise", "protected", "purified", "clean_attacked"]
    for name, arm in without.arms.items():
        assert [stage.key for stage in with_it.arms[name].wanted] == [stage.key for stage in arm.wanted], name
    trained = {name: arm.final.parents["model"].key for name, arm in with_it.arms.items() if name != "pretrained"}
    for attacked, base in (("purified", "protected"), ("clean_attacked", "clean")):
        assert with_it.arms[attacked].final.key != with_it.arms[base].final.key
        assert (trained[attacked] == trained[base]) is (kind == "SaysNo"), "sampling leaves the training as it is"


def test_the_settings_of_a_hook_are_in_the_keys(graph):
    one, two = (graph(*attack("SaysNo", f"+attack.prompt={word}")).arms for word in ("noise", "grain"))
    changed = {name for name in one if one[name].final.key != two[name].final.key}
    assert changed == {"purified", "clean_attacked"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Mirrors", "Weakens"])
def test_a_hook_of_the_training_makes_another_model(graph, kind, tmp_path):
    arms = graph(*attack(kind)).arms
    clean, attacked = Store(tmp_path).do(*(arms[name].final.parents["model"] for name in ("clean", "clean_attacked")))
    (before,), (after,) = (sorted(folder.rglob("*.safetensors")) for folder in (clean, attacked))
    weights = load_file(before), load_file(after)
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_a_hook_of_the_generation_makes_other_pictures(graph, tmp_path):
    arms = graph(*attack("SaysNo"), "task.guidance=5.0").arms
    clean, attacked = (
        read_folder(f) for f in Store(tmp_path).do(*(arms[n].final for n in ("clean", "clean_attacked")))
    )
    assert list(clean) == list(attacked)
    assert any(not torch.equal(clean[name], attacked[name]) for name in clean)


def test_a_setting_of_another_type_is_told_whether_or_not_annotations_are_postponed(tmp_path, monkeypatch):
    (tmp_path / "now.py").write_text(
        "from udpbench.interfaces import Protection\n\n\nclass Now(Protection):\n"
        "    def __init__(self, steps: int, size: float | None = None, path: 'str | Path' = '',\n"
        "        further: 'Mapping[str, Diffusion]' = {}): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    given = {"_target_": "now.Now", "steps": 1.5, "size": "x", "path": True, "further": {"a": True}}
    told = (
        "mine: steps must be a whole number, given 1.5; size must be a number, given 'x'; path must be a text, given True; "
        "as a text: 'path=\"True\"'; further must be settings by name, each of it a part of its own, with the _target_ of "
        "a Diffusion, given {'a': True}"
    )
    with pytest.raises(ValueError, match=re.escape(told)):
        make_part(OmegaConf.create(given), "mine", Protection)
