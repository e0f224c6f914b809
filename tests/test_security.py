"""What comes from others (pictures, captions, weights, model folders, YAML, records, stores) is data: it runs nothing, and reaches nothing outside its folder."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from drawn import one_line
from factory import make_record
from PIL import Image
from test_drawn_folders import bomb

from udpbench.benchmark.facts import FACTS
from udpbench.benchmark.stage import Stage
from udpbench.benchmark.store import Store
from udpbench.commands import rerun
from udpbench.commands.preparing import composed
from udpbench.commands.telling import WRONG_WORDS
from udpbench.core import images
from udpbench.data.folder import Folder
from udpbench.interfaces import Log, Run
from udpbench.models.headers import _shards, header
from udpbench.models.perceptual import load_distance
from udpbench.optim.fit import load_state, save_state
from udpbench.results import record
from udpbench.results.report.write import write_report

ROOT = Path(__file__).parent.parent


class Runs:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


# -- code --------------------------------------------------------------------------------------------------------------

UNCHECKED = {
    "pickle.load", "pickle.loads", "joblib.load", "dill.load", "pandas.read_pickle", "pd.read_pickle", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "torch.jit.load", "torch.hub.load", "os.system", "eval", "exec", "marshal.loads", "shelve.open",
}  # fmt: skip


@pytest.mark.parametrize("folder", ["udpbench", "experiments"])
def test_nothing_is_unpickled_unchecked_and_no_foreign_code_is_let_in(folder):
    looked = 0
    for file in (ROOT / folder).rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            name, given = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
            where = f"{file}:{call.lineno}: {name}"
            assert name not in UNCHECKED, where
            assert name != "torch.load" or given.get("weights_only") == "True", where
            assert given.get("allow_pickle", "False") == given.get("trust_remote_code", "False") == "False", where
            assert given.get("shell", "False") == "False", where
            looked += 1
    assert looked > 100


@pytest.mark.parametrize("how", ["a pickle", "torch's own format"])
def test_weights_and_states_that_hold_more_than_tensors_run_nothing(tmp_path, how):
    mark, file = tmp_path / "mark", tmp_path / "weights.pth"

    def spoil() -> None:
        if how == "a pickle":
            file.write_bytes(pickle.dumps(Runs(mark)))
        else:
            torch.save({"step": Runs(mark)}, file)

    spoil()
    with pytest.raises(ValueError, match="converted to safetensors|convert it to safetensors|cannot be read"):
        header(file)
    with pytest.raises(Exception, match=r".") as error:
        load_distance("lpips_alex", file, torch.device("cpu"))
    assert isinstance(error.value, (pickle.UnpicklingError, RuntimeError, ValueError))
    spoil()
    assert load_state(file, Log()) is None, "what cannot be read is begun anew"
    assert not mark.exists()


def test_a_state_that_memory_has_no_room_for_is_kept(tmp_path, monkeypatch):
    file = tmp_path / "state.ckpt"
    save_state(file, {"step": 3}, Run())

    def full(*args, **kwargs):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "load", full)
        with pytest.raises(RuntimeError, match="can't allocate"):
            load_state(file, Log())
    assert load_state(file, Log())["step"] == 3


@pytest.mark.slow
def test_a_yaml_of_somebody_s_makes_no_objects(tmp_path):
    (tmp_path / "protect").mkdir()
    mark = tmp_path / "mark"
    (tmp_path / "protect" / "theirs.yaml").write_text(f"steps: !!python/object/apply:os.mkdir [{mark}]\n")
    with pytest.raises(WRONG_WORDS) as error:
        composed([f"hydra.searchpath=[file://{tmp_path}]", "protect=theirs"])
    one_line(error.value)
    assert not mark.exists()


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_a_picture_that_would_fill_the_memory_is_refused_with_the_limit_and_its_setting(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    (tmp_path / "bomb.png").write_bytes(bomb(60_000))
    images.allow_pixels(200_000_000)
    for use in (lambda: images.read(tmp_path / "bomb.png"), Folder(path=tmp_path, prompt="a {token} dog").check):
        with pytest.raises(ValueError) as error:
            use()
        line = one_line(error.value)
        assert line.startswith(f"images: {tmp_path / 'bomb.png'}: ")
        assert "3600000000 pixels" in line
        assert "200000000 pixels" in line
        assert line.endswith("raise runtime.max_pixels")
    images.write_png(tmp_path / "bomb.png", torch.zeros(3, 20, 20))
    images.allow_pixels(399)
    with pytest.raises(ValueError, match="400 pixels"):
        images.read(tmp_path / "bomb.png")
    images.allow_pixels(400)
    assert images.read(tmp_path / "bomb.png").shape == (3, 20, 20)


@pytest.mark.slow
def test_the_limit_is_a_setting_of_runtime(monkeypatch):
    from udpbench.commands.preparing import open_store

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    open_store(composed(["runtime.max_pixels=5_000"]))
    assert Image.MAX_IMAGE_PIXELS == 2500
    with pytest.raises(ValueError, match="runtime.max_pixels: must be a whole number >= 1"):
        open_store(composed(["runtime.max_pixels=0"]))


@pytest.mark.parametrize("name", ["a\nb.png", "a\x1b]0;title\x07.png", "a\x9bb.png"])
def test_names_that_would_write_into_a_terminal_are_refused(tmp_path, name):
    images.write_png(tmp_path / name, torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="control characters; rename it") as error:
        Folder(path=tmp_path, prompt="a {token} dog").check()
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", str(error.value))


# -- paths -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "sub/a.png", "./a.png"])
@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv"])
def test_captions_name_pictures_of_their_own_folder_only(tmp_path, name, table):
    images.write_png(tmp_path / "mine" / "a.png", torch.zeros(3, 4, 4))
    images.write_png(tmp_path / "secret.png", torch.ones(3, 4, 4))
    row = json.dumps({"file_name": name, "text": "x"})
    (tmp_path / "mine" / table).write_text(f"{row}\n" if table.endswith("l") else f"file_name,text\n{name},x\n")
    with pytest.raises(ValueError, match=f"names {re.escape(name)}, but there is no such picture"):
        Folder(path=tmp_path / "mine", prompt="a {token} dog").check()


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "..", ""])
def test_the_index_of_weights_names_files_of_its_own_folder_only(tmp_path, name):
    index = tmp_path / "unet" / "index.json"
    index.parent.mkdir()
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
    shutil.copy(ROOT / "LICENSE", tmp_path / "other.safetensors")
    with pytest.raises(ValueError) as error:
        _shards(index)
    one_line(error.value)


def test_what_a_store_says_of_itself_leads_nowhere_outside(tmp_path):
    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        (out / "text").write_text("x")

    stage, outside = Stage("a", {}, work), tmp_path / "outside"
    (made,) = Store(tmp_path / "theirs").do(stage)
    shutil.copytree(made, outside)
    store = Store(tmp_path / "mine")
    for text in ("../outside", str(outside)):
        pointer = store.root / "content" / stage.key_on({})
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.write_text(text)
        assert store._twin(stage, pointer) is None, text
    (folder,) = store.do(stage)
    assert not folder.is_symlink()
    facts = json.loads((folder / FACTS).read_text())
    facts["files"] = {"../../../outside/text": facts["files"]["text"]}
    del facts["checksum"]
    from udpbench.benchmark.facts import write_facts

    write_facts(folder, facts)
    assert store.damage(stage) == "../../../outside/text is missing"


# -- records -----------------------------------------------------------------------------------------------------------

EVIL = ("subprocess.Popen", "os.system", "udpbench.core.provenance.subprocess.Popen", "udpbench.commands.store.main", "udpbench.nonesuch.Thing")  # fmt: skip


@pytest.mark.parametrize("target", EVIL)
def test_a_record_runs_no_code_of_its_own(tmp_path, target):
    mark = tmp_path / "mark"
    evil = {"_target_": target, "args": ["mkdir", str(mark)], "_args_": [f"mkdir {mark}"]}
    for config in (
        {"protect": evil},
        {"attack": {"_target_": "udpbench.attack.chain.Chain", "attacks": [{"a": evil}]}},
    ):
        with pytest.raises(ValueError, match="the record would run|which this version of udpbench lacks") as error:
            rerun._check_code(config, trust=False)
        one_line(error.value)
    assert not mark.exists()


def test_a_reference_in_a_record_is_text():
    from omegaconf import OmegaConf

    texts = ["${oc.env:HOME}", r"\${x}", r"a\\${b}", "plain", "${"]
    cfg = OmegaConf.create({"texts": rerun._literal(texts)})
    assert OmegaConf.to_container(cfg, resolve=True) == {"texts": texts}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema": 2, "cell": ' * 50_000])
def test_a_record_that_is_nested_without_end_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError) as error:
        record.read_records(tmp_path)
    assert one_line(error.value).startswith(str(tmp_path / "a.json"))


def test_names_in_records_have_no_control_characters(tmp_path):
    for spoiled in (make_record(protect="\x1b[2J"), make_record(label="a\nb")):
        with pytest.raises(ValueError, match="control characters"):
            record.check(spoiled, "r.json")
    odd = make_record()
    odd["arms"]["clean"]["metrics"]["\x1b[2J"] = odd["arms"]["clean"]["metrics"]["distance"]
    with pytest.raises(ValueError, match="control characters"):
        record.check(odd, "r.json")


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\" onload='alert(3)' </style> | **b** [a](javascript:x) \\input{/etc/passwd} $x$ & % # _ {{7*7}} {% raw %}"


LINKS = ("href", "src", "action", "formaction", "data", "xlink:href")  # attributes that a browser follows


class Tags(HTMLParser):
    """What a browser would make elements of."""

    def __init__(self) -> None:
        super().__init__()
        self.hostile: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = [f"{k}={v}" for k, v in attrs if k.startswith("on") or (k in LINKS and "javascript:" in str(v))]
        self.hostile += [tag, *values] if values else []


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """The report of records whose every text is hostile; one cell failed with such a traceback."""
    place = tmp_path_factory.mktemp("hostile")
    for seed in (0, 1):
        made = make_record(label=HOSTILE, seed=seed, **dict.fromkeys(("data", "subject", "protect", "attack", "task", "victim", "surrogate", "purifier"), HOSTILE))  # fmt: skip
        made["arms"]["clean"]["metrics"][HOSTILE] = made["arms"]["clean"]["metrics"]["distance"]
        made["arms"]["clean"]["absent"][f"{HOSTILE}2"] = HOSTILE
        made["provenance"] |= {"packages": {HOSTILE: HOSTILE}, "device": HOSTILE, "changed": [HOSTILE], "dirty": True}
        made["stages"][0]["device"] = HOSTILE
        record.write(place / "records" / f"{seed}.json", made)
    record.write(place / "records" / "failed.json", make_record(error=f"Traceback\n{HOSTILE}", seed=2, protect=HOSTILE))
    write_report([place / "records"], place / "report", HOSTILE, plots=False)
    return place / "report"


def test_whatever_a_record_says_is_text_in_the_page(hostile):
    page = (hostile / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert not tags.hostile
    for bad in ("<script>alert", "<img src=x", "</style> |"):
        assert bad not in page, bad
    assert "{{7*7}}" in page, "it was taken for a template"
    assert "alert(1)" in page, "it is shown"


def test_whatever_a_record_says_is_text_in_latex_and_markdown(hostile):
    latex = (hostile / "report.tex").read_text()
    assert r"\input{/etc" not in latex
    assert not re.search(r"(?<!\\)[%#_&]alert", latex)
    markdown = (hostile / "report.md").read_text()
    assert not re.search(r"(?<!\\)<(script|img|/style)", markdown)
    assert not re.search(r"(?<!\\)\[a\]\(javascript", markdown)  # nor a link
    rows = [line for line in markdown.splitlines() if line.startswith("| ") and "alert(1)" in line]
    assert rows
    assert all(row.endswith("|") for row in rows)
