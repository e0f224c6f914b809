"""Data folders from one photograph and from the user's own pictures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from udpbench import images
from udpbench.data.folder import Folder
from udpbench.data.photos import SUBJECTS, Photos
from udpbench.types import Run


def facts(out):
    return json.loads((out / "data.json").read_text())


@pytest.fixture
def pictures(tmp_path):
    """A folder as people have them: formats, modes and sizes mixed, and things that are no pictures."""
    folder = tmp_path / "my dog"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / "b.JPG", format="JPEG")
    Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(folder / "a grey.png")
    Image.fromarray(rng.integers(0, 256, (24, 12, 4), np.uint8)).save(folder / "c.webp")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "b.txt").write_text("a caption")
    (folder / "more").mkdir()
    return folder


PROMPT = "a photo of a {token} dog"


def test_photos_are_a_complete_data_folder_that_says_what_it_cannot_do(tmp_path):
    Photos(size=32, train=3, reference=4, validation=2)(tmp_path, Run())
    counts = {part: len(images.list_images(tmp_path / part)) for part in ("train", "reference", "validation")}
    assert counts == {"train": 3, "reference": 4, "validation": 2}
    rows = images.read_metadata(tmp_path / "train")
    assert rows == {f"{i:04d}.png": {"text": "a photo of a sks cat"} for i in range(3)}
    told = facts(tmp_path)
    assert (told["truth"], told["sets"]) == (None, False)
    assert (told["instance_prompt"], told["class_prompt"]) == ("a photo of a sks cat", "a photo of a cat")
    assert told["prompts"][:2] == ["a photo of a sks cat", "a photo of a sks cat on a table"]
    every = [x for part in counts for x in images.read_folder(tmp_path / part).values()]
    assert {tuple(x.shape) for x in every} == {(3, 32, 32)}
    assert all((a - b).abs().mean() > 0.01 for i, a in enumerate(every) for b in every[:i])  # all crops differ


def test_photos_do_not_depend_on_the_seed_or_on_how_many_are_asked_for(tmp_path):
    Photos(size=16, train=2, reference=0, validation=0)(tmp_path / "a", Run(seed=0))
    Photos(size=16, train=4, reference=0, validation=0)(tmp_path / "b", Run(seed=9))
    a, b = (images.read_folder(tmp_path / name / "train") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert len(b) == 4
    assert not (tmp_path / "a" / "reference").exists()


def test_every_photograph_is_there_and_has_its_own_identity():
    photos = [Photos(subject=name) for name in SUBJECTS]
    assert all(p._photo().shape[0] == 3 and 0 <= p._photo().min() <= p._photo().max() <= 1 for p in photos)
    assert len({p.identity()["photo"] for p in photos}) == len(SUBJECTS)
    assert Photos().identity() == Photos(size=8).identity()


@pytest.mark.parametrize("wrong", [{"subject": "dog"}, {"size": 0}, {"train": 0}, {"reference": -1}, {"prompts": []}])
def test_photos_refuse_wrong_settings(wrong):
    with pytest.raises(ValueError, match="data photos: "):
        Photos(**wrong)


def test_folder_keeps_names_sizes_and_pixels(tmp_path, pictures):
    out = tmp_path / "out"
    Folder(pictures, prompt=PROMPT)(out, Run())
    got = images.read_folder(out / "train")
    assert {name: tuple(x.shape[1:]) for name, x in got.items()} == {
        "a grey.png": (16, 16),
        "b.png": (20, 30),
        "c.png": (24, 12),
    }
    assert torch.equal(got["b.png"], images.read(pictures / "b.JPG"))
    assert images.read_metadata(out / "train") == {name: {"text": "a photo of a sks dog"} for name in got}
    told = facts(out)
    assert (told["name"], told["truth"], told["sets"]) == ("folder my dog", None, False)
    assert (told["instance_prompt"], told["class_prompt"]) == ("a photo of a sks dog", "a photo of a dog")
    assert not (out / "reference").exists()


def test_folder_crops_captions_and_references_if_told(tmp_path, pictures):
    images.write_metadata(pictures, {"b.JPG": {"text": "my dog runs"}})
    out = tmp_path / "out"
    prompts = ["a painting of {instance}", "a cat"]
    data = Folder(pictures, 8, "{token}", "a dog", reference=pictures, token="zwx", prompts=prompts)
    data(out, Run())
    assert all(x.shape == (3, 8, 8) for part in ("train", "reference") for x in images.read_folder(out / part).values())
    rows = images.read_metadata(out / "train")
    assert [rows[n]["text"] for n in ("a grey.png", "b.png", "c.png")] == ["zwx", "my dog runs", "zwx"]
    told = facts(out)
    assert (told["instance_prompt"], told["class_prompt"], told["sets"]) == ("zwx", "a dog", True)
    assert told["prompts"] == ["a painting of zwx", "a cat"]


def test_folder_without_prompt_takes_the_one_caption_there_is(tmp_path, pictures):
    rows = {p.name: {"text": "a photo of sks dog"} for p in images.list_images(pictures)}
    images.write_metadata(pictures, rows)
    Folder(pictures, class_prompt="a photo of a dog")(tmp_path / "out", Run())
    assert facts(tmp_path / "out")["instance_prompt"] == "a photo of sks dog"
    with pytest.raises(ValueError, match="give class_prompt"):
        Folder(pictures)(tmp_path / "other", Run())
    rows["b.JPG"] = {"text": "something else"}
    images.write_metadata(pictures, rows)
    with pytest.raises(ValueError, match=r"give prompt.* 2 different captions"):
        Folder(pictures, class_prompt="a dog")(tmp_path / "other", Run())


def test_folder_names_what_is_wrong_with_the_files(tmp_path, pictures):
    def broken(name, content, reason):
        path = pictures / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=reason) as error:
            Folder(pictures, prompt=PROMPT)(tmp_path / "out", Run())
        assert name in str(error.value)
        assert "\n" not in str(error.value)
        path.unlink()

    whole = (pictures / "a grey.png").read_bytes()
    broken("d.png", b"", "is empty")
    broken("e.png", whole[:60], "truncated or broken")
    broken("f.png", b"text", "not an image")
    broken("film.mp4", b"x", "not a picture")
    broken("a grey.gif", whole, "would both become a grey.png")
    images.write_metadata(pictures, {"none.png": {"text": "x"}})
    with pytest.raises(ValueError, match=r"metadata\.jsonl names none\.png"):
        Folder(pictures, prompt=PROMPT)(tmp_path / "out", Run())
    (pictures / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match=r"a grey.png has no caption; give prompt"):
        Folder(pictures)(tmp_path / "out", Run())
    with pytest.raises(ValueError, match="there is no folder"):
        Folder(tmp_path / "none", prompt=PROMPT).identity()
    with pytest.raises(ValueError, match="no picture in"):
        Folder(pictures / "more", prompt=PROMPT).identity()


def test_folder_identity_is_of_all_that_is_read(tmp_path, pictures):
    def identity(**more):
        return Folder(pictures, prompt=PROMPT, **more).identity()

    first = identity()
    assert identity(reference=pictures)["pictures"] == first["pictures"]
    assert "reference" in identity(reference=pictures)
    assert Folder(pictures.rename(tmp_path / "moved"), prompt=PROMPT).identity() == first
    pictures = tmp_path / "moved"
    (pictures / "b.txt").write_text("changed, but never read")
    assert identity() == first
    images.write_metadata(pictures, {"c.webp": {"text": "x"}})
    second = identity()
    (pictures / "c.webp").write_bytes((pictures / "b.JPG").read_bytes())
    assert len({str(x) for x in (first, second, identity())}) == 3


@pytest.mark.parametrize(
    "wrong", [{"size": 0, "prompt": PROMPT}, {"prompt": "a dog"}, {"prompt": PROMPT, "prompts": []}]
)
def test_folder_refuses_wrong_settings(wrong):
    with pytest.raises(ValueError, match="data folder: "):
        Folder("somewhere", **wrong)
