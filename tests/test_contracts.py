"""What every component must do. The YAMLs in conf/ are listed: a new one is tested without an edit here.

Everything runs with few steps on the tiny random pipeline, methods on the embedded model, too; how well they work is not shown here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONF, make_owner, options, quick, write_cifar10
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tiny import save_tiny_pixel

from udpbench.core import images
from udpbench.core.budget import RMS, Linf, measure
from udpbench.core.folders import read_facts
from udpbench.interfaces import NEEDS, Log, Run, Thief
from udpbench.models.latent import LatentDiffusion
from udpbench.models.pixel import PixelDiffusion
from udpbench.protect.noise import Noise
from udpbench.world import renderer

# Settings by name, wherever a component has them: few steps, small pictures, no file that is not here.
SHORT = {
    "rounds": 1, "model_steps": 1, "clean_steps": 1, "search_rounds": 2, "text_steps": 2, "image_steps": 16, "iterations": 4,
    "steps": 2, "sample_steps": 2, "batch": 2, "pictures": 3, "prior_images": 2, "t": 4, "depth": 2, "size": 16, "train": 4,
    "reference": 6, "validation": 3, "heldout": 2,
}  # fmt: skip
OFFLINE = {
    "perceptual": "lite1",
    "dtype": "fp32",
    "gradient_checkpointing": False,
    "mask": "centre",
}  # and fast on a CPU
# Of the methods that need more to be seen: small steps without a random start; a random model's loss that hardly pulls.
LONGER = {
    "SDS": {"steps": 8},
    "BlurGuard": {"blur_steps": 10, "image_steps": 60},
    "UEMask": {"steps": 12, "step_size": None, "l1_weight": 0.0},
}
COMPUTES_NOTHING = {"none", "folder"}
# The methods that are the same under every seed.
DRAWS_NOTHING = {*COMPUTES_NOTHING, "dct_shield", "dct_shield_released"}
SAME_IF_SHORT = [{"pid", "pid_released"}]  # they differ in their number of steps, at a budget of 8 in nothing else
ONE_NETWORK = {"diffvax", "diffvax_released"}  # the methods that map equal pictures to equal ones


@pytest.fixture(scope="session")
def folder(pictures, tmp_path_factory) -> Path:
    """Pictures made elsewhere, one for each of ``pictures``."""
    out = tmp_path_factory.mktemp("elsewhere")
    for i, x in enumerate(pictures):
        images.write_png(out / f"{i:04d}.png", 1 - x)
    images.write_metadata(out, {f"{i:04d}.png": {"text": "a photo of a sks ring"} for i in range(len(pictures))})
    return write_cifar10(out)


@pytest.fixture(scope="session")
def pixels(tmp_path_factory) -> PixelDiffusion:
    return PixelDiffusion(str(save_tiny_pixel(tmp_path_factory.mktemp("pixel") / "ddpm")), "pixels")


def build(conf: DictConfig, folder: Path, short: bool = True, keep: Collection[str] = ()) -> Any:
    """The component of a conf; what is missing (???) is supplied; ``keep`` is not shortened."""
    for part in layers(conf):
        longer = LONGER.get(part["_target_"].rpartition(".")[2], {})
        for key in part:
            if OmegaConf.is_missing(part, key):
                part[key] = str(folder)
            elif short and key in longer and key not in keep:
                part[key] = longer[key]
            elif short and key in SHORT and key not in keep and isinstance(part[key], int):
                part[key] = SHORT[key]
            elif short and key in OFFLINE:
                part[key] = OFFLINE[key]
            elif part["_target_"].endswith("data.folder.Folder") and key == "class_prompt" and part[key] is None:
                part[key] = "a photo of a ring"
    return instantiate(conf, _convert_="all")


def purifier(thing: Any, model: Any, pixels: Any) -> Any:
    """The model that an attack takes, if any."""
    return (pixels if "pixel" in thing.needs else model) if thing.needs else None


def layers(conf: DictConfig) -> list[DictConfig]:
    """The conf of a component, and those of the components it is made of."""
    parts = [conf["inner"]] if "inner" in conf else list(conf["members"].values()) if "members" in conf else []
    return [conf, *(layer for part in parts for layer in layers(part))]


GROUPS = ("protect", "attack", "task", "metric", "data", "budget")
EVERY = [(group, option) for group in GROUPS for option in options(group)]


# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "option"), EVERY)
def test_yaml_builds_and_is_versioned(node, folder, group, option):
    thing = build(node(group, option), folder, short=False)
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
def test_every_setting_of_the_yaml_reaches_the_object(node, folder, group, option):
    """Another value makes another object, or is refused in one line: no setting is read and dropped."""
    base = tree(build(node(group, option), folder, short=False))

    def matters(key: str, value: Any) -> bool:
        conf = node(group, option)
        OmegaConf.update(conf, key, value)
        try:
            return tree(build(conf, folder, short=False)) != base
        except InstantiationException as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            return isinstance(cause, ValueError) and "\n" not in str(cause)

    for key, value in leaves(node(group, option)):
        assert any(matters(key, other) for other in others(value)), key


@pytest.mark.parametrize(("group", "option"), EVERY)
def test_a_misspelt_setting_is_refused(node, folder, group, option):
    conf = node(group, option)
    conf["no_such_setting"] = 1
    with pytest.raises(InstantiationException, match="no_such_setting|takes no arguments"):
        build(conf, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "option"),
    [case for case in EVERY if case[0] in ("protect", "attack") and case[1] not in COMPUTES_NOTHING],
)
def test_methods_run_on_the_embedded_model(node, folder, pixels, group, option):
    """Its pictures are larger and its latents have eight channels, not the four of Stable Diffusion and the tiny one."""
    model, budget, run = LatentDiffusion("pkg:micro", "micro"), Linf(8), Run(seed=0)
    thing = build(node(group, option), folder)
    x = renderer.render(renderer.draw(2, torch.Generator().manual_seed(0), renderer.subject(0)), model.size)
    owner = make_owner(list(x), ["0000.png", "0001.png"])
    if group == "attack":
        if "purify" not in thing.hooks:
            pytest.skip("leaves the pictures as they are")
        made = thing.purify(owner.images, owner.names, owner.prompts, purifier(thing, model, pixels), run)
    else:
        owner.like = [y + 4 / 255 for y in x]
        made = thing.protect(owner, budget, model if thing.needs else None, run)
    assert torch.stack(made).shape == x.shape
    assert 0 < float((torch.stack(made) - x).abs().mean()) < 0.2


# -- protections -------------------------------------------------------------------------------------------------------

PROTECT = options("protect")


@pytest.fixture(scope="session")
def protect(node, folder, model, pictures):
    """(option, budget, seed, which pictures) -> the pictures it makes; each computed once."""
    made: dict[Any, list[torch.Tensor]] = {}

    def do(option: str, budget=None, seed: int = 0, which=(0, 1, 2, 3), **settings) -> list[torch.Tensor]:
        budget = budget or Linf(8)
        key = (option, budget.name, seed, which, tuple(settings.items()))
        if key not in made:
            conf = node("protect", option)
            for part in layers(conf):
                for name in settings.keys() & part.keys():
                    part[name] = settings[name]
            thing = build(conf, folder, keep=settings)
            owner = make_owner([pictures[i] for i in which], [f"{i:04d}.png" for i in which])
            if thing.matches_strength:
                owner.like = Noise(kind="uniform").protect(owner, budget, None, Run(seed=99))
            made[key] = thing.protect(owner, budget, model if thing.needs else None, Run(seed=seed))
        return made[key]

    return do


@pytest.mark.parametrize("option", quick("protect"))
def test_protection_gives_pictures_of_the_same_shape_in_range(protect, pictures, option):
    made = protect(option)
    assert [x.shape for x in made] == [x.shape for x in pictures]
    for x in made:
        assert x.dtype == torch.float32
        assert x.isfinite().all()
        assert x.min() >= 0
        assert x.max() <= 1
        assert not x.requires_grad


@pytest.mark.parametrize("option", quick("protect"))
@pytest.mark.parametrize("budget", [Linf(8), RMS(4)], ids=lambda b: b.name)
def test_protection_keeps_and_uses_its_budget_on_the_saved_picture(
    protect, node, folder, pictures, tmp_path, option, budget
):
    thing = build(node("protect", option), folder)
    for i, (clean, x) in enumerate(zip(pictures, protect(option, budget), strict=True)):
        images.write_png(tmp_path / f"{i}.png", x)
        measured = measure(clean, images.read(tmp_path / f"{i}.png"))
        if thing.keeps_budget:
            assert measured[budget.kind] <= budget.eps * (1 + 1e-9)
        if option != "none":
            assert measured["rms"] >= 0.25 * budget.eps


@pytest.mark.parametrize("option", quick("protect"))
def test_protection_differs_from_clean_and_from_every_other(protect, pictures, option):
    mine = images.to_uint8(torch.stack(protect(option)))
    assert torch.equal(mine, images.to_uint8(torch.stack(pictures))) == (option == "none")
    for other in PROTECT:
        if other != option and {option, other} not in SAME_IF_SHORT:
            assert (mine != images.to_uint8(torch.stack(protect(other)))).float().mean() > 0.05, other


@pytest.mark.parametrize("option", quick("protect"))
def test_protection_is_that_of_its_seed(node, folder, model, pictures, protect, option):
    thing = build(node("protect", option), folder)
    owner = make_owner(pictures)
    if thing.matches_strength:
        owner.like = Noise(kind="uniform").protect(owner, Linf(8), None, Run(seed=99))
    torch.manual_seed(1 + torch.initial_seed() % 1000)  # the global generator must not matter
    again = torch.stack(thing.protect(owner, Linf(8), model if thing.needs else None, Run(seed=0)))
    assert torch.equal(again, torch.stack(protect(option)))
    assert torch.equal(again, torch.stack(protect(option, seed=1))) == (option in DRAWS_NOTHING)
    assert torch.equal(torch.stack(owner.images), torch.stack(pictures)), "the owner's pictures were changed in place"


@pytest.mark.parametrize("option", quick("protect"))
def test_draws_belong_to_the_picture(protect, node, folder, monkeypatch, option):
    """Alone, a picture gets the samples it gets in a batch; and, unless pictures are coupled by design, the same output."""
    drawn: list[list[tuple]] = []
    real = LatentDiffusion.loss

    def loss(self, z, cond, t, noise, unet=None):
        drawn[-1].extend((int(step), *x.flatten()[:8].tolist()) for step, x in zip(t, noise, strict=True))
        return real(self, z, cond, t, noise, unet)

    monkeypatch.setattr(LatentDiffusion, "loss", loss)
    drawn.append([])
    untrained = {"model_steps": 0, "clean_steps": 0}
    together = protect(option, which=(1, 2, 3), **untrained)
    for k, i in enumerate((1, 2, 3)):
        drawn.append([])
        (alone,) = protect(option, which=(i,), **untrained)
        assert set(drawn[-1]) <= set(drawn[0])
        assert len(set(drawn[-1])) == len(set(drawn[0])) // 3  # one sample may serve several passes
        if not build(node("protect", option), folder).couples_images:
            torch.testing.assert_close(alone, together[k], atol=1e-5, rtol=0)


@pytest.mark.parametrize("option", quick("protect"))
def test_pictures_do_not_share_draws(node, folder, model, pictures, option):
    """The same picture and prompt under two names is changed in two ways, if anything is drawn."""
    thing = build(node("protect", option), folder)
    owner = make_owner([pictures[0]] * 2)
    owner.prompts = [owner.prompts[0]] * 2
    if thing.matches_strength:
        owner.like = Noise(kind="uniform").protect(make_owner([pictures[0]]), Linf(8), None, Run()) * 2
    one, two = thing.protect(owner, Linf(8), model if thing.needs else None, Run())
    if option not in DRAWS_NOTHING | ONE_NETWORK:
        assert not torch.equal(one, two)
    elif option != "folder":
        assert torch.equal(one, two)


# -- attacks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", quick("attack"))
def test_attack_gives_pictures_of_the_same_shape_in_range(node, folder, model, pixels, pictures, option):
    thing = build(node("attack", option), folder)
    given = [*pictures[:2], torch.cat([pictures[2], pictures[2]], 2)[:, :14, :29]]
    if option == "folder":
        given = pictures[:3]
    labels = [f"{i:04d}.png" for i in range(3)]
    torch.manual_seed(1)  # the global generator must not matter
    made = thing.purify(given, labels, [""] * 3, purifier(thing, model, pixels), Run())
    torch.manual_seed(2)
    again = thing.purify(given, labels, [""] * 3, purifier(thing, model, pixels), Run())
    assert [x.shape for x in made] == [x.shape for x in given]
    for x, clean, same in zip(made, given, again, strict=True):
        assert x.dtype == torch.float32
        assert x.isfinite().all()
        assert x.min() >= 0
        assert x.max() <= 1
        assert not x.requires_grad
        assert torch.equal(x, same)
        if option != "quantize_palette":  # so small pictures have no more colours than its palette
            assert torch.equal(x, clean) == ("purify" not in thing.hooks)


@pytest.mark.parametrize("option", quick("attack"))
def test_attack_treats_each_picture_on_its_own(node, folder, model, pixels, pictures, option):
    thing = build(node("attack", option), folder)
    labels = [f"{i:04d}.png" for i in range(4)]
    mine = purifier(thing, model, pixels)
    whole = thing.purify(pictures, labels, [""] * 4, mine, Run())
    (alone,) = thing.purify(pictures[2:3], labels[2:3], [""], mine, Run(batch=1, grad_batch=1))
    torch.testing.assert_close(alone, whole[2], atol=1e-4, rtol=0)


CHECKED = [(g, o) for g, o in EVERY if g in ("attack", "metric")]


@pytest.mark.parametrize(("group", "option"), CHECKED)
def test_missing_weights_are_told_in_one_line_before_any_work(node, folder, tmp_path, monkeypatch, group, option):
    """With an empty torch hub: whoever needs a file from there says which and where to put it; nobody else complains."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    conf = node(group, option)
    needs_file = (
        any(key.endswith("weights") and value is None for key, value in leaves(conf))
        and conf.get("perceptual") != "lite1"
    )
    thing = build(conf, folder, short=False)
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
def test_task_trains_and_generates(node, folder, model, pixels, tmp_path, option):
    conf = node("task", option)
    if "lr" in conf:
        conf["lr"] = max(conf["lr"], 1e-3)  # so that the few steps here can be seen
    task = build(conf, folder)
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
    task.train(folder, tmp_path / "model", model, run, Thief(class_images=prior))
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
    assert task.made(7) == len(rows)
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
def test_a_training_that_was_killed_goes_on_to_the_same_weights(node, folder, model, pixels, tmp_path, option):
    conf = node("task", option)
    if "lr" not in conf:
        pytest.skip("edits")
    conf["steps"], conf["save_every"], conf["prior_weight" if "prior_weight" in conf else "warmup"] = 6, 2, 0
    task = build(conf, folder, keep={"steps", "save_every"})
    model = pixels if "pixel" in task.needs else model
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    task.train(folder, tmp_path / "whole", model, Run())
    with pytest.raises(KeyboardInterrupt):
        task.train(folder, tmp_path / "killed", model, Run(log=Killed(5)))
    assert (tmp_path / "killed" / "checkpoint.pt").exists()
    steps: list[int] = []
    counting = Log()
    counting.scalar = lambda name, value, step: steps.append(step)  # type: ignore[method-assign]
    task.train(folder, tmp_path / "killed", model, Run(log=counting))
    assert steps == [4, 5]
    whole, killed = (sorted(p for p in (tmp_path / name).rglob("*") if p.is_file()) for name in ("whole", "killed"))
    assert [p.relative_to(tmp_path / "whole") for p in whole] == [p.relative_to(tmp_path / "killed") for p in killed]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(whole, killed, strict=True))


@pytest.mark.parametrize("option", quick("task"))
def test_task_edits(node, folder, model, tmp_path, option):
    task = build(node("task", option), folder)
    if task.trains:
        pytest.skip("trains")
    names = [path.name for path in images.list_images(folder)]
    images.write_masks(tmp_path / "masks", names, torch.ones(4, 1, 16, 16))
    for out, draw in (("made", "first"), ("again", "first"), ("other", "second")):
        (tmp_path / out).mkdir()
        thief = Thief(class_prompt="a photo of a ring", masks=tmp_path / "masks")
        task.edit(folder, tmp_path / out, model, Run(), thief, draw)
    rows = images.read_metadata(tmp_path / "made")
    assert [p.name for p in images.list_images(tmp_path / "made")] == sorted(rows)
    assert len(rows) == task.made(len(names)) == len(names) * len(task.prompts) * task.samples
    assert {row["text"] for row in rows.values()} == {p.replace("{class}", "a photo of a ring") for p in task.prompts}
    made, again, other = (images.read_folder(tmp_path / out) for out in ("made", "again", "other"))
    assert all(torch.equal(made[k], again[k]) for k in rows)
    assert any(not torch.equal(made[k], other[k]) for k in rows)
    json.dumps(task.sampling_key())


# -- metrics, data, budgets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", options("metric"))
def test_metric_says_what_it_is(node, folder, option):
    metric = build(node("metric", option), folder, short=False)
    assert metric.against in ("reference", "train_clean", "input", "truth", "clean_arm")
    assert metric.scores
    assert set(metric.scores.values()) <= {"up", "down"}
    assert metric.minimum >= 1


def test_metrics_do_not_share_score_names(node, folder):
    """Two YAMLs of one score are the same measure at another size of the pictures, never two measures under one name."""
    owners: dict[str, set[type]] = {}
    for option in options("metric"):
        metric = build(node("metric", option), folder, short=False)
        for score in metric.scores:
            owners.setdefault(score, set()).add(type(metric))
    assert all(len(types) == 1 for types in owners.values()), owners


@pytest.mark.parametrize("option", options("data"))
def test_data_writes_the_folder_that_every_stage_reads(node, folder, tmp_path, option):
    data = build(node("data", option), folder)
    data.write(tmp_path, Run())
    facts = read_facts(tmp_path)
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
def test_budget_has_a_size_and_a_name(node, folder, option):
    budget = build(node("budget", option), folder)
    assert budget.eps == (16 if option == "perceptual" else 8)
    assert budget.name.endswith(f"_{budget.eps:g}")
    clean = torch.full((1, 3, 8, 8), 0.5)
    far = budget.project(clean + 0.5, clean)
    assert measure(clean, far)[budget.facts.get("inner", budget.kind)] <= budget.eps * (1 + 1e-9)
    assert math.isclose(measure(clean, far)["rms"], budget.eps, rel_tol=0.1)
