"""The embedded world: what may be known before, what a subject is, what words may say."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from udpbench.core import images, pixels
from udpbench.core.digest import files_digest
from udpbench.data.toyworld import ToyWorld
from udpbench.interfaces import Run
from udpbench.world import renderer
from udpbench.world.renderer import COLORS, EMBLEMS, SCENES, SHAPES, TEXTURES


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(seed=st.integers(0, 2**31), n=st.integers(1, 300))
@settings(max_examples=30)
def test_pretraining_never_draws_held_out_combinations(seed, n):
    s = renderer.draw(n, seeded(seed))
    assert len(s) == n
    assert (s.color != s.second).all()
    assert not any(renderer.held_out(*map(int, c)) for c in zip(s.shape, s.color, s.second, strict=True))


def test_pretraining_draws_everything_else():
    """All allowed combinations occur, about equally often; one combination in eight is held out."""
    allowed = {
        (s, a, b) for s in range(8) for a in range(8) for b in range(8) if a != b and not renderer.held_out(s, a, b)
    }
    assert len(allowed) / (8 * 8 * 7) == pytest.approx(7 / 8, abs=0.03)
    n = 100 * len(allowed)
    s = renderer.draw(n, seeded(0))
    _, counts = torch.stack([s.shape, s.color, s.second]).unique(dim=1, return_counts=True)
    assert len(counts) == len(allowed)
    chi_square = ((counts - 100) ** 2 / 100).sum()
    assert abs(chi_square - len(allowed)) < 6 * (2 * len(allowed)) ** 0.5
    for attribute, k in ((s.texture, len(TEXTURES)), (s.emblem, len(EMBLEMS)), (s.scene, len(SCENES))):
        assert (attribute.bincount(minlength=k) / n - 1 / k).abs().max() < 0.01


@pytest.mark.parametrize("index", [*range(10), *range(100, 140)])
def test_subjects_are_held_out_and_have_what_captions_cannot_say(index):
    subject = renderer.subject(index)
    assert renderer.held_out(subject.shape, subject.color, subject.second)
    assert subject.color != subject.second
    assert TEXTURES[subject.texture] != "plain"
    assert EMBLEMS[subject.emblem] != "none"
    assert subject == renderer.subject(index)
    s = renderer.draw(5, seeded(1), subject)
    for name in ("shape", "color", "second", "texture", "emblem"):
        assert (getattr(s, name) == getattr(subject, name)).all()


def test_subjects_differ():
    assert len({renderer.subject(k) for k in range(10)}) == 10
    assert len({renderer.subject(k).noun for k in range(100, 140)}) == len(SHAPES)


def test_a_subject_that_is_none_is_told():
    with pytest.raises(ValueError, match="subject: -1 is not a subject; allowed are 0"):
        renderer.subject(-1)


@pytest.mark.parametrize("size", [16, 33, 64, 100])
def test_pictures_of_any_size_are_the_same_scene(size):
    s = renderer.draw(6, seeded(2))
    picture = renderer.render(s, size)
    assert picture.shape == (6, 3, size, size)
    assert picture.dtype == torch.float32
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert torch.equal(picture, renderer.render(s, size))
    small, large = pixels.resize(picture, 16), pixels.resize(renderer.render(s, 128), 16)
    assert (small - large).abs().mean() < 0.05
    assert (small - large.roll(1, 0)).abs().mean() > 0.1


def test_same_seed_same_picture_and_each_on_its_own():
    one, two = (renderer.draw(4, seeded(7)) for _ in range(2))
    assert all(torch.equal(getattr(one, f.name), getattr(two, f.name)) for f in fields(one))
    whole = renderer.render(one, 32)
    parts = torch.cat([renderer.render(one.take(slice(i, i + 1)), 32) for i in range(4)])
    torch.testing.assert_close(whole, parts)
    assert not torch.equal(renderer.render(renderer.draw(4, seeded(8)), 32), whole)


STEP = {"light": 1.0, "phase": 1.0}  # radians


@pytest.mark.parametrize(
    "name",
    [
        "shape",
        "color",
        "second",
        "texture",
        "emblem",
        "scene",
        "x",
        "y",
        "scale",
        "angle",
        "light",
        "bright",
        "horizon",
        "phase",
    ],
)
def test_every_attribute_shows(name):
    """A picture changes visibly when one attribute does: nothing that is drawn is hidden."""
    s = renderer.draw(32, seeded(3))
    s = replace(s, texture=s.texture.clamp(min=1), emblem=s.emblem.clamp(min=1))
    if name == "phase":
        s = replace(s, scene=torch.full_like(s.scene, SCENES.index("on grass")))  # snow has no pattern that could move
    value = getattr(s, name)
    low, high = {"texture": (1, 4), "emblem": (1, 5), "scene": (0, 6)}.get(name, (0, 8))
    other = low + (value - low + 1) % (high - low) if value.dtype == torch.int64 else value + STEP.get(name, 0.1)
    change = (renderer.render(replace(s, **{name: other}), 64) - renderer.render(s, 64)).abs().flatten(1)
    assert (change.max(1).values > 0.02).all()


def test_captions_never_name_the_second_colour_or_the_emblem():
    s = renderer.draw(3000, seeded(4))
    said = renderer.captions(s, seeded(5))
    named = []
    for i, text in enumerate(said):
        words = text.removeprefix("a photo of a ")
        colours = [c for c in COLORS if c in words.split()]
        assert colours in ([], [COLORS[s.color[i]]])
        assert not any(e in words.split() for e in EMBLEMS)
        assert SHAPES[s.shape[i]] in words.split()
        named.append([bool(colours), TEXTURES[s.texture[i]] in words.split(), SCENES[s.scene[i]] in words])
    shares = torch.tensor(named).float().mean(0)
    assert (shares - 0.65).abs().max() < 0.03  # each nameable attribute is left out with probability 0.35
    assert all(
        "plain" in text for text, t in zip(renderer.captions(s, seeded(5), drop=0.0), s.texture, strict=True) if t == 0
    )


def test_no_word_means_two_things():
    words = [w for group in (SHAPES, COLORS, TEXTURES, EMBLEMS, SCENES) for name in group for w in {name}]
    assert len(words) == len(set(words))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    ToyWorld(subject=3, size=16, train=6, reference=60, validation=7, heldout=7).write(out, Run(seed=0))
    return out


def test_toyworld_folder(world):
    facts = json.loads((world / "data.json").read_text())
    for part, n in {"train": 6, "reference": 60, "validation": 7, "heldout": 7}.items():
        rows = images.read_metadata(world / part)
        assert [p.name for p in images.list_images(world / part)] == list(rows) == [f"{i:04d}.png" for i in range(n)]
    assert facts["truth"] == vars(renderer.subject(3))
    assert images.read(world / "train" / "0000.png").shape == (3, 16, 16)


def test_toyworld_prompts_name_token_noun_and_scene_only(world):
    facts, noun = json.loads((world / "data.json").read_text()), renderer.subject(3).noun
    assert facts["prompts"] == [f"a photo of a sks {noun} {scene}" for scene in SCENES]
    assert facts["class_prompt"] == f"a photo of a {noun}"
    assert facts["instance_prompt"] == f"a photo of a sks {noun}"
    assert {row["text"] for row in images.read_metadata(world / "train").values()} == {facts["instance_prompt"]}
    assert {row["text"] for row in images.read_metadata(world / "reference").values()} == set(facts["prompts"])


def test_toyworld_parts_share_no_picture(world):
    digests = [
        files_digest([p]).encode() + p.read_bytes()
        for part in ("train", "reference", "validation", "heldout")
        for p in images.list_images(world / part)
    ]
    assert len({p[16:] for p in digests}) == 6 + 60 + 7 + 7


def test_toyworld_does_not_depend_on_the_run(world, tmp_path):
    ToyWorld(subject=3, size=16, train=6, reference=2, validation=0, heldout=0).write(tmp_path, Run(seed=9, batch=1))
    for i in range(6):
        assert (tmp_path / "train" / f"{i:04d}.png").read_bytes() == (world / "train" / f"{i:04d}.png").read_bytes()


@pytest.mark.parametrize("wrong", [{"subject": -1}, {"size": 8}, {"train": 0}, {"reference": -1}])
def test_wrong_toyworld_is_told_in_one_line(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))) as error:
        ToyWorld(**{"subject": 0, **wrong})
    assert "\n" not in str(error.value)
