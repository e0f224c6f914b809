"""What every component must do. The YAMLs in conf/ are listed: a new one is tested without an edit here.

Everything runs with few steps on the tiny random pipeline, methods on the embedded model, too; how well they work is not shown here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import COMPUTES_NOTHING, EVERY, FEWEST, build, purifier
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from shared import CONF, make_owner, options, quick

from udpbench.core import images
from udpbench.core.budget import Linf, measure
from udpbench.core.folders import read_data_facts
from udpbench.interfaces import NEEDS, Log, Run, Thief
from udpbench.models.latent import LatentDiffusion
from udpbench.world import renderer

# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "option"), EVERY)
def test_yaml_builds_and_is_versioned(node, elsewhere, group, option):
    thing = build(node(group, option), elsewhere, short=None)
    assert type(thing.version) is int
    assert thing.version >= 1
    assert "version" not in vars(thing)
    if group in ("protect", "attack", "task"):
        assert thing.needs <= NEEDS.keys()
    first = (CONF / group / f"{option}.yaml").read_text().splitlines()[0]
    assert first.startswith("# "), "the first line of a YAML says what it is"


def leaves(node: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in OmegaConf.to_container(node).items():
        if isinstance(value, dict):
            yield from leaves(node[key], f"{prefix}{key}.")
        elif not str(key).startswith("_"):
            yield f"{prefix}{key}", value


def others(value: Any) -> list[Any]:
    """Other values of the same kind; of the kinds it could be, where it is null."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, list):
        return [[*value, value[0] * 2] if value else ["zzz"]]
    return [3, "elsewhere"] if value is None else ["elsewhere"] if isinstance(value, str) else [value + 1]


def tree(thing: Any) -> Any:
    """All that an object holds, as plain values."""
    if hasattr(thing, "__dict__") and (type(thing).__module__.startswith("udpbench") or is_dataclass(thing)):
        return {k: tree(v) for k, v in sorted(vars(thing).items())}
    return str(thing) if isinstance(thing, Path) else thing


@pytest.mark.parametrize(("group", "option"), EVERY)
def test_every_setting_of_the_yaml_reaches_the_object(node, elsewhere, group, option):
    """Another value makes another object, or is refused in one line: no setting is read and dropped."""
    base = tree(build(node(group, option), elsewhere, short=None))

    def matters(key: str, value: Any) -> bool:
        conf = node(group, option)
        OmegaConf.update(conf, key, value)
        try:
            return tree(build(conf, elsewhere, short=None)) != base
        except InstantiationException as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            return isinstance(cause, ValueError) and "\n" not in str(cause)

    for key, value in leaves(node(group, option)):
        assert any(matters(key, other) for other in others(value)), key


@pytest.mark.parametrize(("group", "option"), EVERY)
def test_a_misspelt_setting_is_refused(node, elsewhere, group, option):
    conf = node(group, option)
    conf["no_such_setting"] = 1
    with pytest.raises(InstantiationException, match="no_such_setting|takes no arguments"):
        build(conf, elsewhere)


@pytest.fixture(scope="module")
def embedded() -> Iterator[LatentDiffusion]:
    """The embedded model, loaded once: no method may change it."""
    model = LatentDiffusion("pkg:micro", "micro")
    before = {name: weight.clone() for name, weight in weights_of(model)}
    yield model
    for name, weight in weights_of(model):
        assert torch.equal(weight, before[name]), f"a method changed {name}"


def weights_of(model: LatentDiffusion) -> list[tuple[str, torch.Tensor]]:
    parts = ("vae", "unet", "text_encoder")
    return [(f"{part}.{name}", w) for part in parts for name, w in getattr(model.pipe, part).state_dict().items()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "option"),
    [case for case in EVERY if case[0] in ("protect", "attack") and case[1] not in COMPUTES_NOTHING],
)
def test_methods_run_on_the_embedded_model(node, elsewhere, embedded, pixels, upscaler, group, option):
    """Its pictures are larger and its latents have eight channels, not the four of Stable Diffusion and the tiny one."""
    budget, run = Linf(8), Run(seed=0)
    thing = build(node(group, option), elsewhere, short=FEWEST)
    x = renderer.render(renderer.draw(2, torch.Generator().manual_seed(0), renderer.subject(0)), embedded.size)
    owner = make_owner(list(x), ["0000.png", "0001.png"])
    if group == "attack":
        if "purify" not in thing.hooks:
            pytest.skip("leaves the pictures as they are")
        made = thing.purify(owner.images, owner.names, owner.prompts, purifier(thing, embedded, pixels, upscaler), run)
    else:
        owner.like = [y + 4 / 255 for y in x]
        made = thing.protect(owner, budget, embedded if thing.needs else None, run)
    assert torch.stack(made).shape == x.shape
    most = 0.5 if option in ("noisy_upscale", "super_resolution") else 0.2  # an upscaler of random weights
    assert 0 < float((torch.stack(made) - x).abs().mean()) < most


CHECKED = [(g, o) for g, o in EVERY if g in ("attack", "metric")]


@pytest.mark.parametrize(("group", "option"), CHECKED)
def test_missing_weights_are_told_in_one_line_before_any_work(node, elsewhere, tmp_path, monkeypatch, group, option):
    """With an empty torch hub: whoever needs a file from there says which and where to put it; nobody else complains."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    conf = node(group, option)
    needs_file = (
        any(key.endswith("weights") and value is None for key, value in leaves(conf))
        and conf.get("perceptual") != "lite1"
    )
    thing = build(conf, elsewhere, short=None)
    if not needs_file:
        if hasattr(thing, "check"):
            thing.check()
        return
    with pytest.raises(ValueError, match="weights are missing; put https://") as error:
        thing.check()
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


# -- tasks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", quick("task"))
def test_task_trains_and_generates(node, elsewhere, model, pixels, tmp_path, option):
    conf = node("task", option)
    if "lr" in conf:
        conf["lr"] = max(conf["lr"], 1e-3)  # so that the few steps here can be seen
    task = build(conf, elsewhere)
    if not task.trains:
        pytest.skip("edits")
    model = pixels if "pixel" in task.needs else model
    for name in ("class", "model", "made", "again", "pretrained"):
        (tmp_path / name).mkdir()
    run, prompts = Run(), ["a photo of a sks ring", "a photo of a sks ring on sand"]
    prior = None
    if task.prior_weight:
        prior = tmp_path / "class"
        task.class_pictures(prior, model, run, Thief(class_prompt="a photo of a ring"))
        assert len(images.list_images(prior)) == task.prior_images
    task.train(elsewhere, tmp_path / "model", model, run, Thief(class_images=prior))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == sorted(
        f"step_{task.steps_at(c)}" for c in task.curve
    )
    tuned = tmp_path / "model" / f"step_{task.steps_at(1.0)}"
    task.generate(tuned, tmp_path / "made", model, run, Thief(prompts=prompts))
    task.generate(tuned, tmp_path / "again", model, Run(), Thief(prompts=prompts))
    task.generate(None, tmp_path / "pretrained", model, Run(), Thief(prompts=prompts))
    rows = images.read_metadata(tmp_path / "made")
    assert (
        [p.name for p in images.list_images(tmp_path / "made")]
        == list(rows)
        == [f"{i:05d}.png" for i in range(task.pictures)]
    )
    said = [""] if "pixel" in task.needs else prompts
    assert [row["text"] for row in rows.values()] == [said[i % len(said)] for i in range(task.pictures)]
    for name in rows:
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert any((tmp_path / "made" / n).read_bytes() != (tmp_path / "pretrained" / n).read_bytes() for n in rows)
    assert task.generated_count(7) == len(rows)
    json.dumps([task.training_key(), task.sampling_key()])


class Killed(Log):
    """Ends the training after so many steps, as Ctrl-C would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def scalar(self, name: str, value: torch.Tensor | float, step: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("option", quick("task"))
def test_a_training_that_was_killed_goes_on_to_the_same_weights(node, elsewhere, model, pixels, tmp_path, option):
    conf = node("task", option)
    if "lr" not in conf:
        pytest.skip("edits")
    conf["steps"], conf["save_every"], conf["prior_weight" if "prior_weight" in conf else "warmup"] = 6, 2, 0
    task = build(conf, elsewhere, keep={"steps", "save_every"})
    model = pixels if "pixel" in task.needs else model
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    task.train(elsewhere, tmp_path / "whole", model, Run())
    with pytest.raises(KeyboardInterrupt):
        task.train(elsewhere, tmp_path / "killed", model, Run(log=Killed(5)))
    assert (tmp_path / "killed" / "checkpoint.pt").exists()
    steps: list[int] = []
    counting = Log()
    counting.scalar = lambda name, value, step: steps.append(step)  # type: ignore[method-assign]
    task.train(elsewhere, tmp_path / "killed", model, Run(log=counting))
    assert steps == [4, 5]
    whole, killed = (sorted(p for p in (tmp_path / name).rglob("*") if p.is_file()) for name in ("whole", "killed"))
    assert [p.relative_to(tmp_path / "whole") for p in whole] == [p.relative_to(tmp_path / "killed") for p in killed]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(whole, killed, strict=True))


@pytest.mark.parametrize("option", quick("task"))
def test_task_edits(node, elsewhere, model, tmp_path, option):
    task = build(node("task", option), elsewhere)
    if task.trains:
        pytest.skip("trains")
    names = [path.name for path in images.list_images(elsewhere)]
    images.write_masks(tmp_path / "masks", names, torch.ones(4, 1, 16, 16))
    for out, draw in (("made", "first"), ("again", "first"), ("other", "second")):
        (tmp_path / out).mkdir()
        thief = Thief(class_prompt="a photo of a ring", masks=tmp_path / "masks")
        task.edit(elsewhere, tmp_path / out, model, Run(), thief, draw)
    rows = images.read_metadata(tmp_path / "made")
    assert [p.name for p in images.list_images(tmp_path / "made")] == sorted(rows)
    assert len(rows) == task.generated_count(len(names)) == len(names) * len(task.prompts) * task.samples
    assert {row["text"] for row in rows.values()} == {p.replace("{class}", "a photo of a ring") for p in task.prompts}
    made, again, other = (images.read_folder(tmp_path / out) for out in ("made", "again", "other"))
    assert all(torch.equal(made[k], again[k]) for k in rows)
    assert any(not torch.equal(made[k], other[k]) for k in rows)
    json.dumps(task.sampling_key())


# -- metrics, data, budgets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", options("metric"))
def test_metric_says_what_it_is(node, elsewhere, option):
    metric = build(node("metric", option), elsewhere, short=None)
    assert metric.against in ("reference", "train_clean", "input", "truth", "clean_arm")
    assert metric.scores
    assert set(metric.scores.values()) <= {"up", "down"}
    assert metric.minimum >= 1


def test_metrics_do_not_share_score_names(node, elsewhere):
    """Two YAMLs of one score are the same measure at another size of the pictures, never two measures under one name."""
    owners: dict[str, set[type]] = {}
    for option in options("metric"):
        metric = build(node("metric", option), elsewhere, short=None)
        for score in metric.scores:
            owners.setdefault(score, set()).add(type(metric))
    assert all(len(types) == 1 for types in owners.values()), owners


@pytest.mark.parametrize("option", options("data"))
def test_data_writes_the_folder_that_every_stage_reads(node, elsewhere, tmp_path, option):
    data = build(node("data", option), elsewhere)
    data.write(tmp_path, Run())
    facts = read_data_facts(tmp_path)
    assert set(facts) >= {"instance_prompt", "class_prompt", "prompts", "truth", "name"}
    assert facts["prompts"]
    told = facts["instance_prompt"] != ""  # a data set may do without words, but then altogether
    assert told == (facts["class_prompt"] != facts["instance_prompt"])
    for part in ("train", "reference", "validation", "heldout"):
        found = images.list_images(tmp_path / part) if (tmp_path / part).is_dir() else []
        assert len(found) == data.sizes.get(part, 0), part
    rows = images.read_metadata(tmp_path / "train")
    assert [p.name for p in images.list_images(tmp_path / "train")] == sorted(rows)
    assert all((row["text"] != "") == told for row in rows.values())
    assert bool(data.truth) == (facts["truth"] is not None)


@pytest.mark.parametrize("option", options("budget"))
def test_budget_has_a_size_and_a_name(node, elsewhere, option):
    budget = build(node("budget", option), elsewhere)
    assert budget.eps == (16 if option == "perceptual" else 8)
    assert budget.name.endswith(f"_{budget.eps:g}")
    clean = torch.full((1, 3, 8, 8), 0.5)
    far = budget.project(clean + 0.5, clean)
    assert measure(clean, far)[budget.facts.get("inner", budget.kind)] <= budget.eps * (1 + 1e-9)
    assert math.isclose(measure(clean, far)["rms"], budget.eps, rel_tol=0.1)
