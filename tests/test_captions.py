"""Captions as people have them: kohya's text files, ImageFolder's tables; what they become, and what is told of others."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from drawn import draws
from hypothesis import example, given
from hypothesis import strategies as st

from udpbench.core import images
from udpbench.core.captions import read_captions
from udpbench.data.folder import Folder
from udpbench.interfaces import Log, Run

NAMES = ("a.png", "b.jpg", "ç é.webp")
PROMPT = "a photo of a {token} ring"
SAID = {"a.png": "a sks ring on ice, at dawn", "b.jpg": 'une "bague" à Nîmes', "ç é.webp": "一只狗"}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of three pictures."""
    rng = torch.Generator().manual_seed(0)
    for name in NAMES:
        path = tmp_path / "rings" / name
        path.parent.mkdir(exist_ok=True)
        images.to_pil(torch.rand(3, 8, 8, generator=rng)).save(path)
    return tmp_path / "rings"


def as_txt(said: dict[str, str]) -> dict[str, str]:
    return {f"{Path(name).stem}.txt": text + "\n" for name, text in said.items()}


def as_csv(said: dict[str, str], column: str = "text") -> dict[str, str]:
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerows([("file_name", "width", column), *((name, 8, text) for name, text in said.items())])
    return {"metadata.csv": out.getvalue()}


def as_jsonl(said: dict[str, str], column: str = "text", ensure_ascii: bool = False) -> dict[str, str]:
    rows = [{"file_name": name, "width": 8, column: text} for name, text in said.items()]
    return {"metadata.jsonl": "".join(json.dumps(row, ensure_ascii=ensure_ascii) + "\n" for row in rows)}


FORMS = {
    "txt": as_txt,
    "caption": lambda said: {name.replace(".txt", ".caption"): text for name, text in as_txt(said).items()},
    **{f"csv {column}": lambda said, c=column: as_csv(said, c) for column in ("text", "caption", "prompt")},
    **{f"jsonl {column}": lambda said, c=column: as_jsonl(said, c) for column in ("text", "caption", "prompt")},
}


def put(folder: Path, files: dict[str, str], encoding: str = "utf-8") -> None:
    for name, text in files.items():
        (folder / name).write_text(text, encoding=encoding)


def trained_on(folder: Path, out: Path, log: Log | None = None, **settings) -> dict[str, str]:
    """The captions that the data stage writes."""
    Folder(path=folder, **settings).write(out, Run(log=log or Log()))
    return {name: row["text"] for name, row in images.read_metadata(out / "train").items()}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("form", FORMS)
def test_every_convention_is_read_whatever_the_order_of_its_rows(folder, tmp_path, form, encoding):
    put(folder, FORMS[form](dict(reversed(SAID.items()))), encoding)
    wanted = {"a.png": SAID["a.png"], "b.png": SAID["b.jpg"], "ç é.png": SAID["ç é.webp"]}
    assert trained_on(folder, tmp_path / "out", prompt=PROMPT) == wanted


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_caption_of_a_table_is_none(folder, tmp_path, name, text):
    form = as_csv if name.endswith("csv") else as_jsonl
    put(folder, form(SAID | {"b.jpg": text}))
    assert trained_on(folder, tmp_path / "out", prompt=PROMPT)["b.png"] == "a photo of a sks ring"
    with pytest.raises(ValueError, match=r"b\.jpg has no caption; give prompt"):
        Folder(path=folder).check()


def test_line_breaks_around_a_caption_of_a_table_are_no_part_of_it(folder, tmp_path):
    put(folder, as_jsonl({"a.png": "\n my ring \r\n"}))
    assert trained_on(folder, tmp_path / "out", prompt=PROMPT)["a.png"] == "my ring"


def test_a_text_file_may_have_the_whole_name_of_its_picture_and_a_table_any_case(folder, tmp_path):
    images.to_pil(torch.rand(3, 8, 8)).save(folder / "a.b.png")
    put(folder, {"a.b.png.txt": "both suffixes", "b.jpg.CAPTION": "another"})
    got = trained_on(folder, tmp_path / "out", prompt=PROMPT)
    assert (got["a.b.png"], got["b.png"]) == ("both suffixes", "another")
    for name in ("a.b.png.txt", "b.jpg.CAPTION"):
        (folder / name).unlink()
    for files, name in ((as_jsonl(SAID), "Metadata.JSONL"), (as_csv(SAID), "METADATA.csv")):
        put(folder, {name: next(iter(files.values()))})
        assert read_captions(folder, Folder(path=folder, prompt=PROMPT).files()) == SAID
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"a.txt": "x", "b.txt": "x"}, ""),
        ({"a.png.txt": "x", ".hidden.txt": "x", "notes.md": "x"}, ""),
        ({"Metadata.JSONL": '{"file_name": "a.png", "text": "x"}'}, ""),
        ({"a.b.txt": "x"}, "a.b.txt"),
        ({"3.txt": "x", "4.CAPTION": "x", "a.txt": "x"}, "3.txt, 4.CAPTION"),
        ({"metadata.json": "[]"}, "metadata.json"),
        ({"metadata.txt": "x", "metadata.yaml": "x"}, "metadata.txt, metadata.yaml"),
        ({f"{i}.txt": "x" for i in range(7)}, "0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more"),
    ],
)
def test_captions_that_belong_to_no_picture_are_named_in_one_line(folder, tmp_path, files, named):
    class Saying(Log):
        def __init__(self) -> None:
            self.said: list[str] = []

        def say(self, text: str) -> None:
            self.said.append(text)

    log = Saying()
    put(folder, files)
    trained_on(folder, tmp_path / "out", log, prompt=PROMPT)
    lines = [line for line in log.said if line.startswith("not read as captions: ")]
    wanted = f"not read as captions: {named} in {folder}; captions are those in NAME.txt or NAME.caption of a picture"
    assert len(lines) == bool(named)
    assert all(line.startswith(wanted) for line in lines)


def test_captions_are_part_of_what_the_data_is(folder):
    keys = [str(Folder(path=folder, prompt=PROMPT).identity())]
    for text in ("x", "y"):
        put(folder, {"a.txt": text})
        keys.append(str(Folder(path=folder, prompt=PROMPT).identity()))
    assert len(set(keys)) == 3


def test_a_mixture_of_captions_and_prompt_is_said_in_one_line(folder, tmp_path):
    class Saying(Log):
        said: list[str] = []

        def say(self, text: str) -> None:
            self.said.append(text)

    put(folder, as_txt({"b.jpg": "my {token} ring"}))
    got = trained_on(folder, tmp_path / "one", Saying(), prompt=PROMPT, token="zwx")
    instance = "a photo of a zwx ring"
    assert got == {"a.png": instance, "b.png": "my zwx ring", "ç é.png": instance}
    assert Saying.said == ["1 of 3 pictures have captions of their own; that of the others is data.prompt"]
    put(folder, as_txt(SAID))
    trained_on(folder, tmp_path / "two", Saying(), prompt=PROMPT)
    assert len(Saying.said) == 1


WRONG = [
    ({"metadata.jsonl": '{"file_name": "a.png", "text": ["a", "b"]}'}, 'metadata.jsonl line 1 column text must be a text, it is ["a", "b"]'),
    ({"metadata.jsonl": '\n{"file_name": "a.png", "text": 3}'}, "metadata.jsonl line 2 column text must be a text, it is 3"),
    ({"metadata.jsonl": '{"file_name": "a.png", "label": 3}'}, "metadata.jsonl has no column text, caption or prompt; it has label"),
    ({"metadata.jsonl": ""}, "metadata.jsonl has no column text, caption or prompt; it is empty"),
    ({"metadata.jsonl": '[{"file_name": "a.png"}]'}, 'metadata.jsonl line 1 must be a JSON object with a "file_name"; it is [{'),
    ({"metadata.jsonl": '{"file_name": 3, "text": "x"}'}, 'metadata.jsonl line 1 must be a JSON object with a "file_name"; it is {'),
    ({"metadata.jsonl": "[" * 100_000}, "metadata.jsonl line 1 must be a JSON object"),
    ({"metadata.jsonl": '{"file_name": "a.png", "text": "\\ud800"}'}, 'metadata.jsonl line 1 column text holds half a character: "\\ud800"'),
    ({"metadata.jsonl": '{"file_name": "a.png", "text": "x"}\n{"file_name": "b.jpg", "prompt": "y"}'}, "line 2 has its caption in column prompt, others have it in text; use one column"),
    ({"metadata.csv": "file_name,text\na.png,on ice, at dawn\n"}, "metadata.csv line 2 has 3 columns, the first line 2; put texts with a comma into quotes"),
    ({"metadata.csv": 'file_name,text\na.png,"on ice" at dawn\n'}, "metadata.csv line 2 is not CSV: ',' expected after '\"'"),
    ({"metadata.csv": "file_name;text\na.png;x\n"}, "metadata.csv line 1 must be the columns' names, each once, with file_name; it is file_name;text"),
    ({"metadata.csv": "file_name,text,text\na.png,x,y\n"}, "metadata.csv line 1 must be the columns' names, each once"),
    ({"metadata.csv": "file_name,text\na.jpg,x\n"}, "metadata.csv line 2 names a.jpg, but there is no such picture"),
    ({"metadata.csv": "file_name,text\na.png,x\na.png,y\n"}, "metadata.csv line 3 names a.png a second time"),
    ({"metadata.csv": "file_name,text\n", "metadata.jsonl": ""}, "metadata.jsonl and metadata.csv hold captions; keep one"),
    ({"metadata.csv": "file_name,text\n", "a.txt": "x"}, "metadata.csv and a.txt hold captions; keep one"),
    ({"a.caption": "x", "a.txt": "x"}, "a.caption and a.txt hold captions; keep one"),
    ({"a.txt": "one\ntwo\n"}, "a.txt has 2 lines; a caption is one line"),
    ({"metadata.jsonl": '{"file_name": "a.png", "text": "one\\ntwo"}'}, "metadata.jsonl line 1 column text has 2 lines; a caption is one line"),
    ({"metadata.csv": 'file_name,text\na.png,"one\ntwo"\n'}, "metadata.csv line 3 column text has 2 lines; a caption is one line"),
    ({"a.png.txt": "x", "a.txt": "x"}, "a.png.txt and a.txt hold captions; keep one"),
    ({"Metadata.CSV": "file_name,text\n", "metadata.csv": "file_name,text\n"}, "hold captions; keep one"),
    ({"a.txt": " \n"}, "a.txt has 0 lines; a caption is one line"),
    ({"a.txt": "x\0"}, "a.txt is not UTF-8 text (it holds zero bytes); save it as UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "told"), WRONG, ids=[told[-40:] for _, told in WRONG])
def test_what_is_no_caption_is_told_in_one_line_that_names_it(folder, files, told):
    put(folder, files)
    with pytest.raises(ValueError, match="captions: ") as error:
        Folder(path=folder, prompt=PROMPT).check()
    (line,) = str(error.value).splitlines()
    assert told in line


@pytest.mark.parametrize(("encoding", "found"), [("utf-16", "UTF-16"), ("latin-1", "byte 50 is none")])
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "a.txt"])
def test_other_encodings_are_told(folder, name, encoding, found):
    (folder / name).write_bytes(f"{'x' * 50}é".encode(encoding))
    with pytest.raises(ValueError, match=f"{name} is not UTF-8 \\({found}\\); save it as UTF-8"):
        Folder(path=folder, prompt=PROMPT).check()


# -- anything that a file may hold -------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(str.strip)
PATHS = [Path(name) for name in NAMES]


@draws(100)
@given(st.dictionaries(st.sampled_from(NAMES), TEXTS, min_size=1), st.sampled_from(sorted(FORMS)))
def test_any_caption_is_read_as_it_was_written(said, form):
    with TemporaryDirectory() as folder:
        put(Path(folder), FORMS[form](said))
        assert read_captions(Path(folder), PATHS) == {name: text.strip() for name, text in said.items()}


JUNK = st.lists(
    st.sampled_from(
        ["file_name", "text", "a.png", ",", '"', "\n", "{", "}", "[", "]", ":", "\\ud800", "\r", "\0", "\ufeff", "1", "é", " ", "null"]
    ),
    max_size=25,
).map(lambda parts: "".join(parts).encode())  # fmt: skip


@draws(100)
@given(
    st.one_of(st.binary(max_size=60), JUNK), st.sampled_from(["metadata.jsonl", "metadata.csv", "a.txt", "b.caption"])
)
@example(b'"\r"', "metadata.csv")  # a line break within quotes
def test_any_file_is_captions_or_one_line(content, name):
    with TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        try:
            found = read_captions(Path(folder), PATHS)
        except ValueError as error:
            said, found = str(error), {}
            assert "\n" not in said, said
            assert f"{folder}/{name}" in said, said
        assert all(name in NAMES and text.encode() is not None for name, text in found.items())


# -- what else a folder says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "general"),
    [
        ("a photo of a {token} dog", "a photo of a dog"),
        ("a {token} dog's portrait, smiling.", "a dog's portrait, smiling."),
        ("一只{token}狗", "一只 狗"),
        ("a photo of {token}", None),
        ("a photo of a {token}, a dog", None),
        ("a photo of a {token}.", None),
        ("{token}", None),
        ("({token}) !", None),
        ("a {token} dog beside {token}", None),
        ("a photo of {token} in the snow", None),
        ("a photo of {token}'s garden", None),
    ],
)
def test_the_class_prompt_is_the_prompt_without_the_token_if_a_noun_may_follow(prompt, general):
    assert Folder(path="x", prompt=prompt)._instance_and_class()[1] == general
    assert Folder(path="x", prompt=prompt, class_prompt="a dog")._instance_and_class()[1] == "a dog"


@pytest.mark.parametrize(
    ("path", "subject"),
    [
        ("/faces/n000050/set_A", "n000050/set_A"),
        ("/faces/n000050/set_A/", "n000050/set_A"),
        ("/home/me/rex", "rex"),
        ("/home/me/rex2", "rex2"),
        ("/home/rex/photos/train", "rex/photos/train"),
        ("/home/rex/Images-2", "rex/Images-2"),
        ("/faces/12", "faces/12"),
        ("/data", "data"),
    ],
)
def test_a_folder_whose_name_says_nothing_is_called_by_its_parent_s_too(path, subject):
    made = Folder(path=path, prompt=PROMPT)
    assert made.subject == subject
    assert Folder(path=path, prompt=PROMPT, subject="Rex").subject == "Rex"


def test_a_link_has_a_name_of_its_own(tmp_path):
    (tmp_path / "n1" / "set_A").mkdir(parents=True)
    (tmp_path / "person1").symlink_to("n1/set_A")
    assert Folder(path=tmp_path / "person1", prompt=PROMPT).subject == "person1"


def test_training_pictures_among_the_references_are_counted(folder, tmp_path):
    """By what they show at the size they are trained at, whatever they are called."""
    others = tmp_path / "others"
    others.mkdir()
    (others / "again.png").write_bytes((folder / "a.png").read_bytes())
    images.write_png(others / "new.png", torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(9)))
    for reference, shared in ((others, {"reference": 1}), (folder, {"reference": 3}), (None, {})):
        out = tmp_path / str(len(shared) and shared["reference"])
        Folder(path=folder, size=6, prompt=PROMPT, reference=reference).write(out, Run())
        assert json.loads((out / "data.json").read_text())["shared"] == shared
