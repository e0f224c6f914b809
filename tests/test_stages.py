"""The work of stages over folders: what an interrupted attempt had finished."""

from __future__ import annotations

import pytest
import torch

from udpbench.benchmark.cell import Part
from udpbench.benchmark.graph import Graph
from udpbench.benchmark.stages import attack_stage, protect_stage, score_stage, upper_bound_stage
from udpbench.benchmark.store import Store
from udpbench.core import images
from udpbench.core.images import as_saved, list_images, read_folder
from udpbench.interfaces import Attack, Metric, Protection

pytestmark = pytest.mark.slow  # every test composes a configuration


class Inverting(Attack):
    """Inverts pictures; in the ``at``-th batch it interrupts the work, or (``stops``) has it asked to end."""

    def __init__(self, at: int = 0, stops: bool = False) -> None:
        self.at, self.stops, self.seen = at, stops, []

    def purify(self, images, names, prompts, model, run):
        self.seen.append(list(names))
        if len(self.seen) == self.at and not self.stops:
            raise KeyboardInterrupt
        if len(self.seen) == self.at:
            run.stop.set()
        run.tally("inverted", len(images))
        return [1 - x for x in images]


@pytest.mark.parametrize("stops", [False, True])
def test_batches_that_an_interrupted_attempt_finished_are_not_computed_again(cell, tmp_path, stops):
    made = cell("data.train=6")
    data = Graph(made).data

    def stage(attack):
        return attack_stage(made, data, Part("inverting", {}, attack))

    first, again, store = Inverting(at=2, stops=stops), Inverting(), Store(tmp_path, grad_batch=2)
    with pytest.raises(KeyboardInterrupt):  # which Stopped is, too
        Store(tmp_path, grad_batch=2).do(stage(first))
    (folder,) = store.do(stage(again))
    assert len(first.seen) == 2
    assert len(again.seen) == (1 if stops else 2)
    clean = read_folder(store.path(data) / "train")
    assert sorted(name for names in first.seen[: 1 + stops] + again.seen for name in names) == list(clean)
    assert store.facts(stage(again))["counts"] == {"inverted": 6}
    assert [path.name for path in list_images(folder)] == list(clean)
    assert all(torch.equal(x, as_saved(1 - clean[name])) for name, x in read_folder(folder).items())


def test_a_picture_that_a_power_loss_cut_is_computed_again(cell, tmp_path):
    made = cell("data.train=6")
    first, again, store = Inverting(at=3), Inverting(), Store(tmp_path, grad_batch=2)
    stage = attack_stage(made, Graph(made).data, Part("inverting", {}, first))
    with pytest.raises(KeyboardInterrupt):
        store.do(stage)
    part = store.path(stage).with_suffix(".part")
    (part / first.seen[0][0]).write_bytes(b"")
    store.do(attack_stage(made, Graph(made).data, Part("inverting", {}, again)))
    assert again.seen == [first.seen[0], first.seen[2]]


class Keeps(Protection):
    """Keeps what the owner holds."""

    def __init__(self) -> None:
        self.owners = []

    def protect(self, owner, budget, surrogate, run):
        self.owners.append(owner)
        return list(owner.images)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["class", "data", "empty"])
def test_a_protection_is_given_the_prompts_that_are_asked_for_and_the_data_s_masks(cell, tmp_path, kind):
    made, keeps, store = cell("data=toyworld_style", f"owner_prompt={kind}"), Keeps(), Store(tmp_path)
    data = Graph(made).data
    store.do(protect_stage(made, Part("keeps", {}, keeps), data))
    (owner,), folder = keeps.owners, store.path(data)
    captions = [row["text"] for row in images.read_metadata(folder / "train").values()]
    assert len(set(captions)) > 1
    assert (
        owner.prompts == {"class": ["a photo"] * len(captions), "data": captions, "empty": [""] * len(captions)}[kind]
    )
    for name, mask in zip(owner.names, owner.masks, strict=True):
        assert torch.equal(mask, images.read(folder / "masks" / name)[:1].round())


@pytest.mark.slow
def test_the_upper_bound_is_the_round_trip_of_held_out_pictures(cell, tmp_path):
    made, store = cell("data.heldout=2", "data.reference=4", "arms=[upper_bound]"), Store(tmp_path)
    graph = Graph(made)
    (folder,) = store.do(graph.arms["upper_bound"].final)
    held, model = images.read_folder(store.path(graph.data) / "heldout"), made.victim.component
    for name, x in images.read_folder(folder).items():
        with torch.no_grad():
            want = images.as_saved(model.round_trip(held[name][None])[0])
        assert (x - want).abs().max() < 1.5 / 255
        assert (x - held[name]).abs().max() > 4 / 255


def test_an_upper_bound_that_changes_the_victim_says_what_did(cell, tmp_path):
    made = cell("data.heldout=2", "data.reference=4", "arms=[upper_bound]")
    victim = made.victim.component

    def spoils(x):
        victim.alpha_bar.mul_(0.5)
        return x

    victim.round_trip = spoils
    with pytest.raises(ValueError, match=r"^upper bound: changed its model \(alpha_bar\)"):
        Store(tmp_path).do(upper_bound_stage(made, Graph(made).data))


class Talkative(Metric):
    """Returns more than its scores say."""

    against = "train_clean"
    scores = {"bright": "up"}

    def __call__(self, got, ref, run):
        return {"bright": 1.0, "dark": 0.0}

    def against_noise(self, got, noise, run):
        return {"bright_vs_noise": 1.0, "nothing": float("nan")}


def test_scores_that_a_metric_does_not_declare_fail_its_stage_except_those_against_noise(cell, tmp_path):
    data, store = Graph(cell()).data, Store(tmp_path)
    metric = Part("talkative", {}, Talkative())
    with pytest.raises(ValueError, match="^metric talkative: returned dark; its scores are bright"):
        store.do(score_stage(metric, data, data, "train_clean"))
    (folder,) = store.do(score_stage(metric, data, data, "noise", data))
    assert (folder / "scores.json").read_text(encoding="utf-8") == '{"bright_vs_noise": 1.0}'
