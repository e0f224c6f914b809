"""Data folders from one photograph, from the user's own pictures, from the whole embedded world and from CIFAR-10."""

import io
import json
import pickle
import shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from shared import cifar10_pictures, write_cifar10
from torchvision.datasets import CIFAR10

from udpbench.attack import folder as attack_folder
from udpbench.core import images
from udpbench.data.cifar10 import CLASSES, Cifar10
from udpbench.data.folder import Folder
from udpbench.data.photos import SUBJECTS, Photos
from udpbench.data.toyworld_many import ToyWorldMany
from udpbench.interfaces import Run
from udpbench.protect import folder as protect_folder


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
    (folder / "notes.txt").write_text("no caption")
    (folder / "more").mkdir()
    return folder


PROMPT = "a photo of a {token} dog"


def test_photos_are_a_complete_data_folder_that_says_what_it_cannot_do(tmp_path):
    Photos(size=32, train=3, reference=4, validation=2).write(tmp_path, Run())
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
    Photos(size=16, train=2, reference=0, validation=0).write(tmp_path / "a", Run(seed=0))
    Photos(size=16, train=4, reference=0, validation=0).write(tmp_path / "b", Run(seed=9))
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
    Folder(path=pictures, prompt=PROMPT, geometry="native").write(out, Run())
    got = images.read_folder(out / "train")
    assert {name: tuple(x.shape[1:]) for name, x in got.items()} == {
        "a grey.png": (16, 16),
        "b.png": (20, 30),
        "c.png": (24, 12),
    }
    assert torch.equal(got["b.png"], images.read(pictures / "b.JPG"))
    assert images.read_metadata(out / "train") == {name: {"text": "a photo of a sks dog"} for name in got}
    told = facts(out)
    assert (told["name"], told["truth"], told["sets"], told["geometry"]) == ("folder my dog", None, False, "native")
    assert (told["instance_prompt"], told["class_prompt"]) == ("a photo of a sks dog", "a photo of a dog")
    assert not (out / "reference").exists()


def test_a_folder_has_one_geometry_for_all_its_pictures(tmp_path, pictures):
    sides = {"a grey.png": (16, 16), "b.png": (20, 20), "c.png": (12, 12)}
    for name, size, geometry, want in (
        ("square", None, "square", sides),
        ("native", 10, "native", {"a grey.png": (10, 10), "b.png": (10, 15), "c.png": (20, 10)}),
    ):
        data = Folder(path=pictures, reference=pictures, prompt=PROMPT, geometry=geometry, size=size)
        data.write(tmp_path / name, Run())
        for part in ("train", "reference"):
            found = images.read_folder(tmp_path / name / part)
            assert {name: tuple(x.shape[1:]) for name, x in found.items()} == want
        assert facts(tmp_path / name)["geometry"] == geometry
        assert data.shortest_side() == min(min(size) for size in want.values())
        assert data.known_sizes() == want, "known before anything is written"
    middle = images.read(tmp_path / "square" / "train" / "b.png")
    assert torch.equal(middle, images.read(pictures / "b.JPG")[:, :, 5:25])


def test_pictures_protected_elsewhere_must_have_the_sizes_of_the_data_s_before_anything_is_done(tmp_path, pictures):
    """``udpbench protect`` writes them at their own sizes, a cell makes squares unless it is told otherwise."""
    Folder(path=pictures, prompt=PROMPT, geometry="native").write(tmp_path / "native", Run())
    made = tmp_path / "native" / "train"
    for check in (protect_folder.Folder(path=made), attack_folder.Folder(path=made, clean=made)):
        check.check_data(Folder(path=pictures, prompt=PROMPT, geometry="native"))
        with pytest.raises(ValueError, match=r"b.png is 20 x 30 \(height x width\), it must be 20 x 20 as b.png is"):
            check.check_data(Folder(path=pictures, prompt=PROMPT))
    (made / "b.png").unlink()
    with pytest.raises(ValueError, match=r"must have exactly one picture for b.png \(any suffix\), it has 0"):
        protect_folder.Folder(path=made).check_data(Folder(path=pictures, prompt=PROMPT, geometry="native"))


def test_what_cannot_be_opened_is_told_by_check(pictures):
    (pictures / "e.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    with pytest.raises(ValueError, match=r"e\.png is not an image that can be read here"):
        Folder(path=pictures, prompt=PROMPT).check()


def test_folder_crops_captions_and_references_if_told(tmp_path, pictures):
    images.write_metadata(pictures, {"b.JPG": {"text": "my dog runs"}})
    out = tmp_path / "out"
    prompts = ["a painting of {instance}", "a cat"]
    data = Folder(
        path=pictures, size=8, prompt="{token}", class_prompt="a dog", reference=pictures, token="zwx", prompts=prompts
    )
    data.write(out, Run())
    assert all(x.shape == (3, 8, 8) for part in ("train", "reference") for x in images.read_folder(out / part).values())
    rows = images.read_metadata(out / "train")
    assert [rows[n]["text"] for n in ("a grey.png", "b.png", "c.png")] == ["zwx", "my dog runs", "zwx"]
    told = facts(out)
    assert (told["instance_prompt"], told["class_prompt"], told["sets"]) == ("zwx", "a dog", True)
    assert told["prompts"] == ["a painting of zwx", "a cat"]


def test_prompts_of_a_folder_are_the_captions_of_its_references(pictures, tmp_path):
    """As style mimicry is judged: the same things again. Without captions there, the usual four."""
    others = tmp_path / "others"
    shutil.copytree(pictures, others)
    plain = Folder(path=pictures, size=8, prompt="a painting by {token}", reference=others)
    assert plain.asked()[1] == "{instance} on a table"
    names = [path.name for path in images.list_images(others)]
    images.write_metadata(others, {name: {"text": f"a boat {i % 2} by sks"} for i, name in enumerate(names)})
    told = Folder(path=pictures, size=8, prompt="a painting by {token}", reference=others)
    assert told.asked() == ["a boat 0 by sks", "a boat 1 by sks"]
    told.write(tmp_path / "made", Run())
    assert json.loads((tmp_path / "made" / "data.json").read_text())["prompts"] == told.asked()
    assert told.own_captions() == told.asked(), "they may be cut, as captions are"
    before = told.identity()
    images.write_metadata(others, {name: {"text": "a horse"} for name in names[1:]})
    assert told.identity() != before
    with pytest.raises(ValueError, match="no caption for some pictures; add them, or give prompts"):
        Folder(path=pictures, size=8, prompt="a painting by {token}", reference=others).asked()
    assert Folder(
        path=pictures, size=8, prompt="{token}", class_prompt="x", reference=others, prompts=["a"]
    ).asked() == ["a"]


def test_folder_without_prompt_takes_the_one_caption_there_is(tmp_path, pictures):
    rows = {p.name: {"text": "a photo of sks dog"} for p in images.list_images(pictures)}
    images.write_metadata(pictures, rows)
    Folder(path=pictures, class_prompt="a photo of a dog").write(tmp_path / "out", Run())
    assert facts(tmp_path / "out")["instance_prompt"] == "a photo of sks dog"
    assert Folder(path=pictures).facts().class_prompt is None, "nothing says which word is the subject's"
    rows["b.JPG"] = {"text": "something else"}
    images.write_metadata(pictures, rows)
    with pytest.raises(ValueError, match=r"give prompt.* 2 different captions"):
        Folder(path=pictures, class_prompt="a dog").write(tmp_path / "other", Run())


def test_folder_names_what_is_wrong_with_the_files(tmp_path, pictures):
    def broken(name, content, reason):
        path = pictures / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=reason) as error:
            Folder(path=pictures, prompt=PROMPT).write(tmp_path / "out", Run())
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
    with pytest.raises(ValueError, match=r"metadata\.jsonl line 1 names none\.png"):
        Folder(path=pictures, prompt=PROMPT).write(tmp_path / "out", Run())
    (pictures / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match=r"a grey.png has no caption; give prompt"):
        Folder(path=pictures).write(tmp_path / "out", Run())
    with pytest.raises(ValueError, match="there is no folder"):
        Folder(path=tmp_path / "none", prompt=PROMPT).identity()
    with pytest.raises(ValueError, match="no picture in"):
        Folder(path=pictures / "more", prompt=PROMPT).identity()


def test_a_folder_has_held_out_and_validation_pictures_if_told(tmp_path, pictures):
    folders = {}
    for part in ("reference", "heldout", "validation"):
        for i in range(2):
            images.write_png(tmp_path / part / f"{i}.png", torch.full((3, 8, 8), (1 + i + 2 * len(folders)) / 8))
        folders[part] = tmp_path / part
    data = Folder(path=pictures, prompt=PROMPT, size=8, **folders)
    data.check()
    assert data.sizes == {"train": 3, "reference": 2, "heldout": 2, "validation": 2}
    data.write(tmp_path / "out", Run())
    for part, folder in folders.items():
        assert torch.equal(images.read_folder(tmp_path / "out" / part)["1.png"], images.read_folder(folder)["1.png"]), (
            part
        )
    assert {*folders} <= {*data.identity()}
    assert {*folders} <= {*Folder.places}, "their digests are in the key, their places are not"


@pytest.mark.parametrize(("one", "other"), [("reference", "heldout"), ("heldout", "validation")])
def test_sets_of_a_folder_that_are_compared_share_no_picture(tmp_path, pictures, one, other):
    for part in (one, other):
        images.write_png(tmp_path / part / f"{part}.png", torch.zeros(3, 8, 8))
    data = Folder(path=pictures, prompt=PROMPT, **{one: tmp_path / one, other: tmp_path / other})
    with pytest.raises(
        ValueError, match=f"{other} has .*{other}.png, which is .*{one}.png of {one}; they must not over"
    ):
        data.check()
    same = Folder(path=pictures, prompt=PROMPT, **{one: tmp_path / one, other: tmp_path / one})
    with pytest.raises(ValueError, match="must not overlap"):
        same.check()


def test_folder_identity_is_of_all_that_is_read(tmp_path, pictures):
    def identity(**more):
        return Folder(path=pictures, prompt=PROMPT, **more).identity()

    first = identity()
    assert identity(reference=pictures)["pictures"] == first["pictures"]
    assert "reference" in identity(reference=pictures)
    assert Folder(path=pictures.rename(tmp_path / "moved"), prompt=PROMPT).identity() == first
    pictures = tmp_path / "moved"
    (pictures / "notes.txt").write_text("changed, but never read")
    assert identity() == first
    images.write_metadata(pictures, {"c.webp": {"text": "x"}})
    second = identity()
    (pictures / "c.webp").write_bytes((pictures / "b.JPG").read_bytes())
    assert len({str(x) for x in (first, second, identity())}) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0, "prompt": PROMPT},
        {"prompt": "a dog"},
        {"prompt": PROMPT, "prompts": []},
        {"prompt": PROMPT, "geometry": "round"},
    ],
)
def test_folder_refuses_wrong_settings(wrong):
    with pytest.raises(ValueError, match="data folder: "):
        Folder(path="somewhere", **wrong)


# -- the whole embedded world ------------------------------------------------------------------------------------------


def test_many_are_different_pictures_without_words(tmp_path):
    counts = {"train": 300, "reference": 5, "validation": 0, "heldout": 4}
    data = ToyWorldMany(size=16, **counts)
    data.write(tmp_path, Run(seed=3))
    assert (data.sizes, data.subject) == ({**counts, "extra_clean": 0}, "")
    assert not (tmp_path / "validation").exists()
    found = [p for part in ("train", "reference", "heldout") for p in images.list_images(tmp_path / part)]
    assert len({p.read_bytes() for p in found}) == len(found) == 309
    rows = images.read_metadata(tmp_path / "train")
    assert (
        [p.name for p in images.list_images(tmp_path / "train")] == list(rows) == [f"{i:05d}.png" for i in range(300)]
    )
    told = facts(tmp_path)
    assert {row["text"] for row in rows.values()} == {told["instance_prompt"], told["class_prompt"]} == {""}
    assert (told["prompts"], told["truth"], told["sets"]) == ([""], None, True)


def test_many_do_not_depend_on_the_run(tmp_path):
    for name, seed in (("a", 0), ("b", 9)):
        ToyWorldMany(size=16, train=3, reference=0, validation=0, heldout=0).write(
            tmp_path / name, Run(seed=seed, batch=1)
        )
    a, b = (images.read_folder(tmp_path / name / "train") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_many_of_two_draws_share_no_picture(tmp_path):
    counts = {"train": 20, "reference": 20, "validation": 0, "heldout": 0}
    for draw in (0, 1):
        data = ToyWorldMany(size=16, draw=draw, **counts)
        data.write(tmp_path / str(draw), Run())
        assert data.subject == ("draw_1" if draw else "")
    found = [p.read_bytes() for p in images.list_images(tmp_path / "0" / "train")]
    found += [p.read_bytes() for part in ("train", "reference") for p in images.list_images(tmp_path / "1" / part)]
    assert len(set(found)) == 60


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"draw": -1}, "draw must be >= 0, given -1"),
        ({"size": 8}, "size must be >= 16, given 8"),
        ({"train": 0}, "train must be >= 1, given 0"),
        ({"reference": -1}, "reference must be >= 0, given -1"),
    ],
)
def test_many_refuse_wrong_settings(wrong, line):
    with pytest.raises(ValueError, match=f"data toyworld_many: {line}"):
        ToyWorldMany(**wrong)


# -- CIFAR-10 ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def batches(tmp_path, monkeypatch) -> Path:
    """Random pictures in torchvision's layout, whose reader takes any checksum."""
    files = {"train_list": [["data_batch_1", None], ["data_batch_2", None]], "test_list": [["test_batch", None]]}
    for name, value in files.items():
        monkeypatch.setattr(CIFAR10, name, value)
    monkeypatch.setitem(CIFAR10.meta, "md5", None)
    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (train, pixels), (test, test_pixels) = cifar10_pictures((4, 2))
    parts = {"data_batch_1": (train[:20], pixels[:20]), "data_batch_2": (train[20:], pixels[20:])}
    for name, (labels, x) in {**parts, "test_batch": (test, test_pixels)}.items():
        batch = {"data": x.transpose(0, 3, 1, 2).reshape(-1, 3072), "labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CLASSES)}))
    return folder.parent


def split(k: int) -> tuple[np.ndarray, torch.Tensor]:
    """(labels, pictures NCHW uint8) of the training (0) or the test split (1)."""
    labels, pixels = cifar10_pictures((4, 2))[k]
    return labels, torch.from_numpy(pixels).permute(0, 3, 1, 2)


def test_cifar10_takes_the_classes_in_turn_and_no_picture_twice(tmp_path, batches):
    out = tmp_path / "out"
    Cifar10(root=batches, classes=["dog", "cat"], train=4, reference=2, validation=1, heldout=2).write(out, Run(seed=5))
    (labels, pictures), (test_labels, test_pictures) = split(0), split(1)
    cats, dogs = (pictures[labels == CLASSES.index(name)] for name in ("cat", "dog"))
    test_cats, test_dogs = (test_pictures[test_labels == CLASSES.index(name)] for name in ("cat", "dog"))
    expected = {
        ("train", "validation"): [cats[0], dogs[0], cats[1], dogs[1], cats[2]],
        ("reference", "heldout"): [test_cats[0], test_dogs[0], test_cats[1], test_dogs[1]],
    }
    for parts, wanted in expected.items():
        got = [images.to_uint8(x) for part in parts for x in images.read_folder(out / part).values()]
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    told = facts(out)
    assert (told["name"], told["prompts"], told["truth"], told["sets"]) == ("CIFAR-10 cat+dog", [""], None, True)
    assert {row["text"] for row in images.read_metadata(out / "train").values()} == {""}


def test_cifar10_counts_by_class_if_told_and_the_rest_of_the_test_split_is_the_reference():
    whole = Cifar10(root="x", train=100, reference=None)
    assert whole.sizes == {"train": 100, "reference": 9000, "validation": 0, "heldout": 1000}
    assert whole.subject == ""
    with pytest.raises(ValueError, match="the test split has 1000 pictures of cat, heldout takes 2000"):
        Cifar10(root="x", classes=["cat"], train=100, heldout=2000, reference=None)
    some = Cifar10(root="x", classes=["cat", "dog", "ship"], train=100, heldout=5, validation=1, per_class=True)
    assert some.sizes == {"train": 300, "reference": 3000, "validation": 3, "heldout": 15}
    assert some.subject == "cat+dog+ship"


@pytest.fixture
def small():
    return {"train": 20, "reference": 10, "heldout": 10}


def parquet(place, monkeypatch):
    """The same pictures in Hugging Face's layout; pandas is made to read them without pyarrow."""
    import pandas

    tables, folder = {}, place / "plain_text"
    folder.mkdir(parents=True)
    for name, (labels, pictures) in zip(("train", "test"), cifar10_pictures((4, 2)), strict=True):
        rows = []
        for x in pictures:
            stream = io.BytesIO()
            Image.fromarray(x).save(stream, format="PNG")
            rows.append({"bytes": stream.getvalue(), "path": None})
        file = folder / f"{name}-00000-of-00001.parquet"
        file.write_bytes(pickle.dumps(rows))
        tables[file] = pandas.DataFrame({"img": rows, "label": labels})
    monkeypatch.setattr(pandas, "read_parquet", tables.__getitem__)
    return place


def test_cifar10_is_the_same_in_every_layout(tmp_path, monkeypatch, small, batches):
    layouts = {
        "plain": batches,
        "inside": batches / "cifar-10-batches-py",
        "parquet": parquet(tmp_path / "hub", monkeypatch),
        "tar": write_cifar10(tmp_path / "by_class"),
    }
    for name, place in layouts.items():
        Cifar10(root=place, **small).write(tmp_path / name, Run())
    for part in ("train", "reference", "heldout"):
        first, *others = (images.read_folder(tmp_path / name / part) for name in layouts)
        assert all(first.keys() == other.keys() for other in others)
        assert all(torch.equal(x, other[name]) for name, x in first.items() for other in others)
    assert facts(tmp_path / "tar")["name"] == "CIFAR-10 (JPEG)"


def test_cifar10_identity_is_of_the_files_and_not_of_their_place(tmp_path, batches):
    first = Cifar10(root=batches).identity()
    assert Cifar10(root=batches.rename(tmp_path / "b")).identity() == first
    (tmp_path / "b" / "cifar-10-batches-py" / "test_batch").write_bytes(b"other")
    assert Cifar10(root=tmp_path / "b").identity() != first
    assert set(Cifar10.places) == {"root", "download"}


def test_a_download_that_fails_is_told_in_one_line(tmp_path, monkeypatch):
    def fail(self, *args, **settings):
        raise URLError("no\nnetwork")

    monkeypatch.setattr(CIFAR10, "__init__", fail)
    with pytest.raises(
        ValueError, match=r"^data cifar10: https://\S+ cannot be downloaded to \S+: <urlopen error no network>$"
    ):
        Cifar10(root=tmp_path, download=True).identity()


def test_cifar10_says_what_to_download_and_does_not(tmp_path, monkeypatch):
    asked = []
    with pytest.raises(
        ValueError, match=r"no CIFAR-10 in .*none; unpack https://\S+\.tar\.gz \(md5 c58f3010\w+\) there"
    ) as error:
        Cifar10(root=tmp_path / "none").identity()
    assert "\n" not in str(error.value)
    monkeypatch.setattr(CIFAR10, "__init__", lambda self, root, download: asked.append(write_cifar10(Path(root))))
    Cifar10(root=tmp_path / "new", download=True).identity()
    Cifar10(root=tmp_path / "new", download=True).identity()
    assert asked == [tmp_path / "new"]


def test_cifar10_names_what_is_wrong_with_the_files(tmp_path, small, batches, monkeypatch):
    with pytest.raises(ValueError, match="6 pictures of airplane are asked of the train split, it has 4"):
        Cifar10(root=batches, train=60, reference=10, heldout=0).write(tmp_path / "few", Run())
    with pytest.raises(ValueError, match="3 pictures of cat are asked of the test split, it has 2"):
        Cifar10(root=batches, classes=["cat"], train=1, reference=3, heldout=0).write(tmp_path / "out", Run())
    file = batches / "cifar-10-batches-py" / "data_batch_1"
    for content in (b"", pickle.dumps([1])):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="cifar-10-batches-py cannot be read: ") as error:
            Cifar10(root=batches, **small).write(tmp_path / "broken", Run())
        assert "\n" not in str(error.value)


def test_cifar10_does_not_unpickle_files_of_another_checksum(tmp_path, small, batches, monkeypatch):
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", "0" * 32], ["data_batch_2", None]])
    monkeypatch.setattr("pickle.load", lambda *arguments, **settings: pytest.fail("it was unpickled"))
    with pytest.raises(ValueError, match="cifar-10-batches-py cannot be read: Dataset not found or corrupted"):
        Cifar10(root=batches, **small).write(tmp_path / "broken", Run())


@pytest.mark.parametrize(
    "wrong",
    [{"classes": ["wolf"]}, {"classes": "cat"}, {"classes": []}, {"train": 0}, {"reference": -1}, {"heldout": -1}],
)
def test_cifar10_refuses_wrong_settings(wrong):
    with pytest.raises(ValueError, match="data cifar10: "):
        Cifar10(root="somewhere", **wrong)
