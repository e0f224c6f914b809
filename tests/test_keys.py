"""What a stage's key depends on, and what it must not depend on."""

from __future__ import annotations

import shutil
import sys
from copy import copy
from dataclasses import dataclass, field, replace
from operator import ne
from pathlib import Path
from typing import Any

import pytest
from shared import small

from udpbench.attack.folder import Folder
from udpbench.benchmark.cell import Cell, Part
from udpbench.benchmark.graph import Arm, Graph
from udpbench.benchmark.keys import task_settings
from udpbench.benchmark.stage import Stage, hash_of
from udpbench.benchmark.stages import OWNERS_NOISE, class_stage, protect_stage, surrogate_class_stage
from udpbench.benchmark.store import Store
from udpbench.commands import run as command
from udpbench.core.component import Component
from udpbench.core.images import list_images, read_metadata, write_png
from udpbench.interfaces import Attack, Protection, Task
from udpbench.metrics.edits import Edits
from udpbench.metrics.inconsistency import Inconsistency
from udpbench.models.latent import LatentDiffusion
from udpbench.task.dreambooth import DreamBooth

pytestmark = pytest.mark.slow  # every test composes a configuration or starts a process


def cell_key(cell: Cell) -> str:
    return Graph(cell).key


def arms(cell: Cell) -> dict[str, Arm]:
    return Graph(cell).arms


def test_a_model_that_moved_is_the_same_model(cell, tiny, tmp_path):
    moved = shutil.copytree(tiny, tmp_path / "elsewhere")
    assert cell_key(cell()) == cell_key(cell(f"model.path={moved}"))


def test_pictures_that_moved_are_the_same_pictures(cell, pictures, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder / "mine").mkdir(parents=True)
        for i, x in enumerate(pictures):
            write_png(tmp_path / folder / "mine" / f"{i}.png", x)
    words = ("data=folder", "data.prompt='a photo of a {token} ring'")
    one, two = (cell_key(cell(*words, f"data.path={tmp_path / folder / 'mine'}")) for folder in ("a", "b"))
    assert one == two
    write_png(tmp_path / "b" / "mine" / "0.png", pictures[1])
    assert cell_key(cell(*words, f"data.path={tmp_path / 'b' / 'mine'}")) != one


def test_a_number_of_references_is_no_place(cell):
    assert cell_key(cell("data=photos", "data.reference=9")) != cell_key(cell("data=photos", "data.reference=10"))


def test_a_setting_that_came_later_is_part_of_a_key_once_it_is_used(cell):
    one = cell("protect=udp")
    assert one.protect.settings["restart_every"] == 0
    assert "restart_every" not in one.protect.key["settings"]
    assert cell("protect=udp", "protect.restart_every=2").protect.key["settings"]["restart_every"] == 2


def test_the_upper_bound_is_scored_once_for_all_seeds(cell):
    first, second = (
        {stage.key for stage in arms(cell(f"seed={seed}"))["upper_bound"].scores.values()} for seed in (0, 1)
    )
    assert first == second
    trained = [{stage.key for stage in arms(cell(f"seed={seed}"))["clean"].scores.values()} for seed in (0, 1)]
    assert not trained[0] & trained[1]


def test_class_pictures_do_not_depend_on_how_many_are_scored(cell):
    prior = ("task.prior_weight=1.0", "task.prior_images=4")

    def key(*words: str) -> str:
        made = cell(*words)
        stage = Graph(made).class_pictures
        assert stage is not None
        assert stage.key == class_stage(made, Graph(made).data).key
        return stage.key

    base = key(*prior)
    assert base == key(*prior, "task.pictures=9")
    assert base != key(*prior, "task.guidance=4.0")
    assert base != key(prior[0], "task.prior_images=5")
    assert Graph(cell()).class_pictures is None


def test_the_owner_s_class_pictures_have_other_noise_than_the_thief_s(cell):
    made = cell("task.prior_weight=1.0", "task.prior_images=4", "protect=aspl", "protect.class_images=4")
    graph = Graph(made)
    owner, thief = surrogate_class_stage(made, 4, graph.data), graph.class_pictures
    assert (owner.settings["noise"], thief.settings["noise"]) == (OWNERS_NOISE, "class")


def test_pictures_purified_elsewhere_are_not_what_the_attack_makes_of_clean_ones(cell, tmp_path, pictures):
    for name in ("purified", "clean"):
        (tmp_path / name).mkdir()
        write_png(tmp_path / name / "0000.png", pictures[0 if name == "clean" else 1])
    alone = arms(cell("attack=folder", f"attack.path={tmp_path / 'purified'}"))
    assert "purified" in alone
    assert "clean_attacked" not in alone
    both = arms(cell("attack=folder", f"attack.path={tmp_path / 'purified'}", f"attack.clean={tmp_path / 'clean'}"))
    assert both["purified"].pictures.key == alone["purified"].pictures.key
    assert (
        both["clean_attacked"].pictures.settings["attack"]["identity"]
        != both["purified"].pictures.settings["attack"]["identity"]
    )


def test_where_a_member_of_an_attack_lies_is_no_part_of_its_key_and_what_lies_there_is(cell, tmp_path, pictures):
    def key(folder, picture, *words):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_png(tmp_path / folder / "0000.png", picture)
        member = ("attack=chain", "attack@attack.members.a=folder", f"attack.members.a.path={tmp_path / folder}")
        return cell(*member, *words).attack.key

    before = key("here", pictures[0])
    assert key("elsewhere", pictures[0]) == before
    assert key("elsewhere", pictures[1]) != before
    more = "attack@attack.members.b=jpeg", "attack.members.b.quality=50"
    assert key("here", pictures[0], *more) != before


def test_settings_of_a_wrapped_protection_are_in_the_key_but_where_they_only_say_how(cell):
    wrapped = ("protect=eot", "protect@inner=aspl")
    before = cell(*wrapped).protect.key
    assert cell(*wrapped, "inner.gradient_checkpointing=true").protect.key == before
    assert cell(*wrapped, "inner.rounds=3").protect.key != before


def test_a_model_inside_a_metric_inside_another_is_in_the_key_by_its_weights(tiny, tmp_path):
    def key(place):
        model = LatentDiffusion(str(place), "mine")
        settings = {"of": {"model": {"name": "mine", "path": str(place)}}}
        return Part("edits", settings, Edits(of=Inconsistency(model=model))).key

    same, other = (shutil.copytree(tiny, tmp_path / name) for name in ("same", "other"))
    weights = next((other / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert key(same) == key(tiny) != key(other)


def test_components_in_a_list_are_in_the_key_as_others(pictures, tmp_path):
    class Several(Attack):
        def __init__(self, members):
            self.members = members

    def key(name, picture):
        (tmp_path / name).mkdir(exist_ok=True)
        write_png(tmp_path / name / "0000.png", picture)
        return Part("several", {"members": [{"path": name}]}, Several([Folder(path=tmp_path / name)])).key

    assert key("a", pictures[0]) == key("b", pictures[0]) != key("b", pictures[1])
    assert Part("several", {"members": [1, 1]}, Several([1])).key["settings"] == {"members": [1, 1]}, "kept once"


class Mine(DreamBooth):
    """A thief of somebody's own."""


def test_a_task_of_one_s_own_is_not_the_one_it_is_made_of(cell):
    theirs = cell()
    thing = copy(theirs.task.component)
    thing.__class__ = Mine
    mine = replace(theirs, task=replace(theirs.task, component=thing))
    assert arms(mine)["clean"].final.key != arms(theirs)["clean"].final.key
    assert arms(mine)["clean"].pictures.key == arms(theirs)["clean"].pictures.key


def test_the_upper_bound_has_no_more_pictures_than_a_victim_makes(cell, tmp_path):
    made = cell("data.heldout=9", "data.reference=9", "task.pictures=6", "arms=[upper_bound]")
    (folder,) = Store(tmp_path).do(arms(made)["upper_bound"].final)
    assert [path.name for path in list_images(folder)] == [f"{i:04d}.png" for i in range(6)]
    assert set(read_metadata(folder)) == {path.name for path in list_images(folder)}
    wide = cell("data.heldout=9", "data.reference=9", "task.pictures=9", "arms=[upper_bound]")
    assert arms(wide)["upper_bound"].final.key != arms(made)["upper_bound"].final.key
    assert (
        arms(cell("data.heldout=9", "data.reference=9", "task.pictures=20", "arms=[upper_bound]"))[
            "upper_bound"
        ].final.key
        == arms(wide)["upper_bound"].final.key
    )


def test_a_cached_cell_builds_every_stage_once(tiny, tmp_path, monkeypatch):
    words = [*small(tiny), "protect=noise", "arms=[clean,protected]", "task.steps=1", "task.sample_steps=1"]
    words += ["runtime.device=cpu", f"runtime.out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["udpbench", *words])
    command.run()
    built: dict[type, list] = {Stage: [], Graph: []}
    for kind, made in built.items():
        start = kind.__init__

        def counting(self, *args, _start=start, _made=made, **kwargs):
            _start(self, *args, **kwargs)
            _made.append(self)

        monkeypatch.setattr(kind, "__init__", counting)
    command.run()
    assert len(built[Graph]) == 1
    keys = [stage.key for stage in built[Stage]]
    assert len(keys) == len(set(keys)) == len(built[Graph][0].stages) > 10


EVERY_KIND = (
    "protect=udp",
    "attack=vae_roundtrip",
    "protected_fraction=0.5",
    "task.curve=[0.5,1.0]",
    "++task.prior_weight=1.0",
    "++task.prior_images=2",
    "data.reference=4",
    "data.validation=4",
    "data.heldout=4",
    "metrics.bundle.kernel_distance.minimum=4",
)
THIEF = {"class", "train", "generate", "upper_bound"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (["budget.eps=4"], {"protect"}),
        (["owner_prompt=data"], {"protect"}),
        (["model@surrogate=local", "surrogate.path={other}"], {"protect"}),
        (["model@purifier=local", "purifier.path={other}"], {"attack"}),
        (["model@victim=local", "victim.path={other}"], THIEF),
        (["protected_fraction=0.75"], {"mixed"}),
        (["task.steps=7"], {"train"}),
        (["seed=1"], {"protect", "attack", "mixed", "class", "train", "generate"}),
    ],
)
def test_a_stage_s_own_key_holds_what_its_work_depends_on_and_nothing_else(graph, tiny, tmp_path, words, kinds):
    """Own: without the keys of its parents, which change with all that comes before them."""
    other = shutil.copytree(tiny, tmp_path / "other")
    for part in ("vae", "unet"):
        weights = next((other / part).glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")

    def own(*more: str) -> dict[tuple[str, str], set[str]]:
        found: dict[tuple[str, str], set[str]] = {}
        for stage in graph(*EVERY_KIND, *more).stages:
            found.setdefault((stage.name, stage.title), set()).add(stage.key_on({}))
        return found

    before, after = own(), own(*(word.format(other=other) for word in words))
    assert before.keys() == after.keys()
    assert {name for name, title in before if before[name, title] != after[name, title]} == kinds


@pytest.mark.slow
def test_points_of_a_curve_and_what_they_are_compared_with_have_keys_of_their_own(graph):
    arm = graph(*EVERY_KIND).arms["clean"]
    made = [*arm.generated.values(), *arm.scores.values(), *arm.validation.values()]
    assert len({stage.key for stage in made}) == len(made) == 2 * (1 + len(arm.scores) // 2 + len(arm.validation) // 2)


@pytest.mark.slow
def test_runtime_is_no_part_of_any_key(graph, tmp_path):
    words = [
        "runtime.batch=3",
        "runtime.grad_batch=2",
        "runtime.low_memory=true",
        "runtime.threads=1",
        "runtime.verify=size",
        f"runtime.out={tmp_path}",
        "runtime.workers=2",
    ]
    one, two = ([stage.key for stage in graph("protect=udp", "attack=impress", *more).stages] for more in ([], words))
    assert one == two


def test_a_task_of_ones_own_that_names_no_settings_has_all_of_them_in_its_keys():
    class Own(Task):
        places = ("file",)

        def identity(self) -> dict[str, str]:
            return {"file": "a digest"}

    for method in ("training_key", "sampling_key"):
        found = task_settings(Part("own", {"factor": 0.5, "file": "somewhere"}, Own()), method)
        assert found == {"factor": 0.5, "file": "a digest"}


def test_a_setting_that_a_task_of_ones_own_adds_to_one_of_the_package_is_in_both_of_its_keys(cell):
    class Layers(DreamBooth):
        def __init__(self, layers: str, **settings: Any) -> None:
            super().__init__(**settings)
            self.layers = layers

    theirs = cell().task
    given = {name: value for name, value in theirs.settings.items() if name != "_target_"}
    own = Part("layers", {"layers": "attn2", **given}, Layers("attn2", **given))
    for method in ("training_key", "sampling_key"):
        assert task_settings(own, method) == {"layers": "attn2"} | task_settings(theirs, method)


class Helper(Component):
    """Somebody's own part of a task, which reads a file."""

    places = ("path",)

    def __init__(self, path: Path, strength: float = 1.0) -> None:
        self.path, self.strength = path, strength

    def identity(self) -> dict[str, Any]:
        return {"file": self.path.read_text()}


@dataclass(kw_only=True)
class Helped(DreamBooth):
    """A task of one's own that holds one, and one that no setting names."""

    helper: Any
    helpers: Any = ()
    usual: Any = field(default_factory=lambda: Helper(Path()))


def test_a_component_in_a_task_of_ones_own_is_in_its_keys_by_what_it_reads(cell, tmp_path):
    theirs = cell().task
    given = {name: value for name, value in theirs.settings.items() if name != "_target_"}

    def keys(name: str, text: str, strength: float = 1.0) -> list[str]:
        (tmp_path / name).write_text(text)
        path, said = tmp_path / name, {"path": name, "strength": strength}
        task = Helped(**given, helper=Helper(path, strength), helpers=[Helper(path)])
        part = Part("helped", {**given, "helper": said, "helpers": [{"path": name}]}, task)
        return [hash_of(task_settings(part, method)) for method in ("training_key", "sampling_key")]

    before = keys("a", "weights")
    assert keys("b", "weights") == before
    assert all(map(ne, keys("a", "other weights"), before))
    assert all(map(ne, keys("a", "weights", strength=0.5), before))


def test_a_task_of_ones_own_that_trains_otherwise_has_what_it_samples_with_in_its_key_too(cell):
    class Guided(DreamBooth):
        def trainable(self, victim: Any, run: Any) -> Any:
            return self.guidance

    class Sampled(DreamBooth):
        def generate(self, *given: Any) -> None: ...

    class Says(Guided):
        def training_key(self) -> dict[str, Any]:
            return {"guidance": self.guidance}

    theirs = cell().task
    given = {name: value for name, value in theirs.settings.items() if name != "_target_"}

    def key(kind: type[DreamBooth], **other: Any) -> dict[str, Any]:
        return task_settings(Part("own", given | other, kind(**given | other)), "training_key")

    assert key(Guided, guidance=2.0) != key(Guided, guidance=3.0)
    assert key(Guided, save_every=2) == key(Guided, save_every=3), "which changes nothing that is trained"
    assert key(Sampled, guidance=2.0) == key(Sampled, guidance=3.0) == key(DreamBooth)
    assert key(Says, guidance=2.0) == {"guidance": 2.0}


def test_class_pictures_that_are_not_made_are_in_no_key(cell):
    assert cell_key(cell("task.prior_images=5")) == cell_key(cell())


def test_what_the_owner_writes_is_in_the_key_of_a_protection_of_ones_own(cell):
    class Own(Protection):
        pass

    def key(owner_prompt: str) -> str:
        own = replace(cell(), protect=Part("own", {}, Own()), owner_prompt=owner_prompt)
        return protect_stage(own, own.protect, Graph(own).data).key

    assert key("class") != key("empty")


def test_the_word_that_protections_are_given_is_part_of_what_the_data_is(cell, tmp_path, pictures):
    for i, x in enumerate(pictures):
        (tmp_path / "mine").mkdir(exist_ok=True)
        write_png(tmp_path / "mine" / f"{i}.png", x)
    words = [
        "data=folder",
        f"data.path={tmp_path / 'mine'}",
        "data.prompt='a photo of sks dog'",
        "data.class_prompt='a dog'",
    ]
    store, digests = Store(tmp_path / "store"), []
    for token in ("sks", "dog"):
        data = Graph(cell(*words, f"data.token={token}")).data
        store.do(data)
        digests.append(store.facts(data)["content"])
    assert digests[0] != digests[1]
