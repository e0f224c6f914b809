"""Styles of the embedded world: filters, the data set that shows one, the judge that tells them apart."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from experiments.embedded_models import build, measure, pictures
from udpbench.core import images, pixels
from udpbench.core.errors import ConfigError
from udpbench.data.toyworld_style import MOST, ToyWorldStyle, different_objects
from udpbench.interfaces import Run
from udpbench.metrics import style_judge
from udpbench.metrics.judge import JudgeMetric
from udpbench.models.latent import LatentDiffusion
from udpbench.models.micro import judge
from udpbench.models.micro.judge import make_judge
from udpbench.world import renderer, styles
from udpbench.world.renderer import COLORS, SCENES, SHAPES, TEXTURES

EVERY = range(len(styles.STYLES))
NAMES = [*styles.STYLES]


def scenes(n: int = 8, **fixed: torch.Tensor) -> renderer.Scenery:
    """``n`` pictures of the pretraining world, all shapes and scenes in turn."""
    s = renderer.draw(n, torch.Generator().manual_seed(11))
    return replace(s, shape=torch.arange(n) % len(SHAPES), scene=torch.arange(n) % len(SCENES), **fixed)


def rendered(size: int = 64) -> torch.Tensor:
    return renderer.render(scenes(), size)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().mean())


# -- filters -----------------------------------------------------------------------------------------------------------


def test_there_are_enough_of_them_for_development_and_for_tests():
    assert len(styles.STYLES) >= 6
    assert styles.DEVELOPMENT == (0, 1)


@pytest.mark.parametrize("style", EVERY, ids=NAMES)
@pytest.mark.parametrize("size", [(16, 16), (33, 33), (64, 64), (48, 80), (1, 3)], ids=str)
def test_a_style_keeps_shape_range_and_each_picture_for_itself(style, size):
    x = pixels.resize(rendered(), size)
    before = x.clone()
    made = styles.stylise(x, style)
    assert made.shape == x.shape
    assert made.dtype == torch.float32
    assert made.isfinite().all()
    assert made.min() >= 0
    assert made.max() <= 1
    assert torch.equal(made, styles.stylise(x, style))
    assert torch.equal(x, before)
    alone = torch.cat([styles.stylise(x[i : i + 1], style) for i in range(len(x))])
    torch.testing.assert_close(alone, made, atol=1e-5, rtol=0)


def test_mixed_precision_around_it_changes_nothing():
    x = rendered(32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = [styles.stylise(x, k) for k in EVERY]
    assert all(torch.equal(made, styles.stylise(x, k)) for k, made in enumerate(inside))


@pytest.mark.parametrize("style", EVERY, ids=NAMES)
def test_a_style_looks_the_same_at_every_size(style):
    small, large = (pixels.resize(styles.stylise(rendered(size), style), 32) for size in (64, 128))
    assert distance(small, large) < 0.03
    assert distance(small, large.roll(1, 0)) > 0.1


def test_styles_differ_from_one_another_and_from_none():
    x = rendered()
    looks = [x, *(styles.stylise(x, k) for k in EVERY)]
    apart = [distance(a, b) for i, a in enumerate(looks) for b in looks[:i]]
    assert min(apart) > 0.10
    stats = [torch.cat([a.mean((0, 2, 3)), a.std((0, 2, 3)), a.diff(dim=-1).abs().mean((0, 2, 3))]) for a in looks]
    assert min(distance(a, b) for i, a in enumerate(stats) for b in stats[:i]) > 0.01


@pytest.mark.slow
def test_styles_survive_the_embedded_autoencoder():
    """After the round trip each picture is nearer to its own style than to any other, and the styles are still apart."""
    model, x = LatentDiffusion("pkg:micro", "micro"), rendered()
    looks = [x, *(styles.stylise(x, k) for k in EVERY)]
    with torch.inference_mode():
        back = [model.round_trip(look).clamp(0, 1) for look in looks]
    for i, got in enumerate(back):
        own, others = distance(got, looks[i]), [distance(got, look) for j, look in enumerate(looks) if j != i]
        assert own < 0.7 * min(others), i
        assert all(distance(got, other) > 0.08 for other in back[:i])


@pytest.mark.parametrize("style", EVERY, ids=NAMES)
def test_shape_and_scene_stay_visible(style):
    """Two pictures that differ in nothing but the object's shape, or nothing but the scene, differ in the style, too."""
    s = replace(scenes(), scene=torch.zeros(8, dtype=torch.int64), shape=torch.zeros(8, dtype=torch.int64))
    s = replace(s, **{k: getattr(s, k)[:1].expand(8) for k in vars(s)})
    shapes, places = replace(s, shape=torch.arange(8)), replace(s, scene=torch.arange(8) % len(SCENES))
    for varied, n in ((shapes, len(SHAPES)), (places, len(SCENES))):
        looks = styles.stylise(renderer.render(varied), style)[:n]
        for i in range(n):
            for j in range(i):
                change = (looks[i] - looks[j]).abs().amax(0)
                assert (change > 0.08).float().mean() > 0.05, (i, j)


def test_no_style_has_a_name_that_the_caption_language_knows(tmp_path):
    words = build.tokenizer(tmp_path).get_vocab()
    assert not {f"{name}</w>" for name in NAMES} & set(words)


@pytest.mark.parametrize("wrong", [-1, len(styles.STYLES), "duotone", 0.5, None])
def test_a_style_that_is_none_is_told_in_one_line(wrong):
    with pytest.raises(
        ValueError, match=r"style: .* is not a style; allowed are 0-1 \(development\) and 2-7 \(tests\)"
    ):
        styles.stylise(torch.zeros(1, 3, 16, 16), wrong)


# -- the data set ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("style")
    ToyWorldStyle(style=1, size=16, train=12, reference=60, validation=7, heldout=8).write(out, Run(seed=0))
    return out


def facts(out):
    return json.loads((out / "data.json").read_text())


def test_the_data_set_is_complete(world):
    for part, n in {"train": 12, "reference": 60, "validation": 7, "heldout": 8}.items():
        rows = images.read_metadata(world / part)
        assert [p.name for p in images.list_images(world / part)] == list(rows) == [f"{i:04d}.png" for i in range(n)]
    assert images.read(world / "train" / "0000.png").shape == (3, 16, 16)
    assert len(list((world / "masks").iterdir())) == 12
    assert len({p.read_bytes() for part in ("train", "reference") for p in images.list_images(world / part)}) == 72


def test_training_captions_say_all_that_words_can_and_prompts_noun_and_scene(world):
    told, texts = facts(world), [row["text"] for row in images.read_metadata(world / "train").values()]
    for text in texts:
        color, texture, noun, *scene = text.removeprefix("a photo of a sks ").split()
        assert color in COLORS
        assert texture in TEXTURES
        assert noun in SHAPES
        assert " ".join(scene) in SCENES
    assert len(set(texts)) == 12
    assert len(told["prompts"]) == len(set(told["prompts"])) == len(SHAPES) * len(SCENES)
    assert told["prompts"][9] == "a photo of a sks box on sand"
    assert {row["text"] for row in images.read_metadata(world / "reference").values()} <= set(told["prompts"])
    assert (told["instance_prompt"], told["class_prompt"]) == ("a photo of a sks", "a photo")
    assert not any(word in json.dumps(told["prompts"]) for word in (*NAMES, *COLORS, *TEXTURES))


def test_the_truth_is_the_style_and_what_each_prompt_asks_for(world):
    truth = facts(world)["truth"]
    assert truth["style"] == 1
    assert list(truth["content"]) == sorted(facts(world)["prompts"])
    for text, asked in truth["content"].items():
        assert SHAPES[asked["shape"]] in text.split()
        assert SCENES[asked["scene"]] in text


def test_training_pictures_are_of_different_objects_that_pretraining_knows():
    s = different_objects(MOST, torch.Generator().manual_seed(3))
    assert len(s) == MOST
    assert len(set(zip(s.shape.tolist(), s.color.tolist(), s.texture.tolist(), strict=True))) == MOST
    assert not any(renderer.held_out(*map(int, c)) for c in zip(s.shape, s.color, s.second, strict=True))


def test_the_data_set_does_not_depend_on_the_run_and_shows_the_style(world, tmp_path):
    few = {"size": 16, "reference": 0, "validation": 0, "heldout": 0}
    ToyWorldStyle(style=1, **few).write(tmp_path / "same", Run(seed=9, batch=1))
    ToyWorldStyle(style=0, **few).write(tmp_path / "other", Run())
    for i in range(12):
        name = f"train/{i:04d}.png"
        assert (tmp_path / "same" / name).read_bytes() == (world / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (world / name).read_bytes()
    assert ToyWorldStyle(style=5).subject == 5


@pytest.mark.parametrize(
    "wrong", [{"style": -1}, {"style": 8}, {"size": 8}, {"train": 0}, {"train": 129}, {"heldout": -1}]
)
def test_a_wrong_style_data_set_is_told_in_one_line(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))) as error:
        ToyWorldStyle(**{"style": 0, **wrong})
    assert "\n" not in str(error.value)


# -- the judge ---------------------------------------------------------------------------------------------------------


HEADS = {
    "shape": len(renderer.SHAPES),
    "color": len(renderer.COLORS),
    "second": len(renderer.COLORS),
    "texture": len(renderer.TEXTURES),
    "emblem": len(renderer.EMBLEMS),
    "scene": len(renderer.SCENES),
}
STYLE_HEADS = {
    "style": len(styles.STYLES) + 1,
    "shape": HEADS["shape"],
    "scene": HEADS["scene"],
}  # the last style: none


class Fake:
    """A judge that reads the first pixel: its red level is the picture's number."""

    def __init__(self, style, shape, scene) -> None:
        self.told = {"style": torch.tensor(style), "shape": torch.tensor(shape), "scene": torch.tensor(scene)}

    def classify(self, x):
        number = (x[:, 0, 0, 0] * 255).round().long()
        return {k: v[number] for k, v in self.told.items()}


def scored(tmp_path, monkeypatch, prompts, fake) -> dict[str, float]:
    monkeypatch.setattr(judge, "load_judge", lambda name, device: fake)
    got, data = tmp_path / "got", tmp_path / "data"
    got.mkdir()
    data.mkdir()
    for i in range(len(fake.told["style"])):
        images.write_png(got / f"{i}.png", torch.full((3, 64, 64), i / 255))
    images.write_metadata(got, {f"{i}.png": {"text": text} for i, text in enumerate(prompts)})
    content = {"a ball on grass": {"shape": 0, "scene": 0}, "a box at night": {"shape": 1, "scene": 3}}
    (data / "data.json").write_text(json.dumps({"truth": {"style": 2, "content": content}}))
    return style_judge.StyleJudge()(got, data, Run(batch=2))


def test_style_and_content_are_counted_apart_and_unsure_is_wrong(tmp_path, monkeypatch):
    fake = Fake(style=[2, 2, 0, -1, 2], shape=[0, 1, 0, -1, 0], scene=[0, 0, 0, -1, 3])
    prompts = ["a ball on grass", "a box at night", "a ball on grass", "a box at night", "a box at night"]
    scores = scored(tmp_path, monkeypatch, prompts, fake)
    assert scores == {"style_acc": 3 / 5, "content_acc": 2 / 5}, "in float64: differences of counts are equal or not"


def test_pictures_of_no_prompt_have_a_style_and_no_content(tmp_path, monkeypatch):
    assert scored(tmp_path, monkeypatch, [], Fake([2, 2], [0, 0], [0, 0])) == {"style_acc": 1.0}


def test_missing_weights_are_told_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "WEIGHTS", tmp_path / "none")
    with pytest.raises(ValueError, match=r"style_judge: weights are missing in .*none; train them: python -m"):
        style_judge.StyleJudge().check()
    style_judge.StyleJudge().identity()  # the key can be asked for all the same


def test_each_judge_is_absent_where_the_truth_is_of_the_other_kind(cell, monkeypatch):
    monkeypatch.setattr(style_judge.StyleJudge, "check", lambda self: None)
    made = cell("data=toyworld_style", "metrics=style")
    assert {"style_judge", "similarity"} <= set(made.metrics)
    assert made.names["subject"] == "0"
    absent = cell("data=toyworld_style", "metrics=micro").absent
    assert absent["judge"] == "judges a subject, data toyworld_style shows a style"
    absent = cell("metrics=style").absent
    assert absent["style_judge"] == "judges a style, data toyworld shows a subject"
    with pytest.raises(ConfigError, match="metric s: data toyworld_many has no truth that a judge could know"):
        cell("data=toyworld_many", "+metric@metrics.extra.s=style_judge")
    assert JudgeMetric.truth != style_judge.StyleJudge.truth


def test_heads_beside_the_weights_are_those_of_the_world():
    x = torch.rand(2, 3, 64, 64)
    for name, heads in (("judge", HEADS), ("style_judge", STYLE_HEADS)):
        told = make_judge(name)(x)
        assert {k: v.shape[1] for k, v in told.items() if k != "real"} == heads
        assert told["real"].shape == (2,)
    assert sum(p.numel() for p in make_judge("style_judge").parameters()) * 2 < 1e6  # bytes in half precision


def test_training_pictures_come_in_every_style_and_in_none():
    x = rendered().repeat(8, 1, 1, 1)
    made, style = pictures.in_styles(x, torch.Generator().manual_seed(0))
    assert set(style.tolist()) == {*EVERY, len(EVERY)}
    for i, k in enumerate(style.tolist()):
        expected = styles.stylise(x[i : i + 1], k)[0] if k in EVERY else x[i]
        torch.testing.assert_close(made[i], expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_measurement_counts_what_the_judge_says():
    """A judge that always says "style 0, ball, on grass": one class in each head is right."""

    def classify(x):
        return {k: torch.zeros(len(x), dtype=torch.int64) for k in STYLE_HEADS}

    fake = SimpleNamespace(eval=lambda: None, classify=classify)
    found = measure.measure_style_judge(fake, n=3)
    assert found["acc_style"] == pytest.approx(1 / STYLE_HEADS["style"])
    assert 0 < found["acc_content"] < found["acc_scene"] < 0.3
    assert found["acc_worst_style"] == found["garbage_unsure"] == found["world_unsure"] == 0


def test_the_embedded_judge_of_styles_is_as_good_as_promised():
    found = json.loads((build.WEIGHTS / "measured.json").read_text())["micro"]
    assert found["style_judge"]["acc_style"] >= 0.98
    assert found["style_judge"]["acc_content"] >= 0.95
    assert found["style_judge_after_round_trip"]["acc_style"] >= 0.93
    assert found["style_judge"]["garbage_unsure"] >= 0.9
