"""The Python API: the command line's store, keys and errors; lists of tensors in, lists of tensors out."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from shared import composed, on, small

import udpbench
from udpbench.benchmark.build import build
from udpbench.benchmark.check import checked_graph
from udpbench.core.budget import measure
from udpbench.core.errors import ConfigError
from udpbench.core.images import as_saved, read_folder, write_png
from udpbench.results.record import read_records

pytestmark = pytest.mark.slow  # every test composes a configuration or starts a process

ROOT = Path(__file__).parent.parent
CELL = [
    "protect=noise",
    "arms=[clean,protected]",
    "task.steps=1",
    "task.sample_steps=1",
    "data.reference=0",
    "data.heldout=0",
]


@pytest.fixture
def local(tiny, tmp_path, monkeypatch) -> list[str]:
    """Overrides for work on the tiny pipeline, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return [*on(tiny), "runtime.device=cpu", "runtime.threads=1"]


def test_importing_it_is_light_and_it_names_what_it_has():
    code = "import sys, udpbench; print([m for m in ('torch', 'numpy', 'rich', 'hydra') if m in sys.modules], udpbench.__all__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"[] {udpbench.__all__}\n"
    assert all(callable(getattr(udpbench, name)) and getattr(udpbench, name).__doc__ for name in udpbench.__all__)
    assert list(inspect.signature(udpbench.protect).parameters) == ["source", "out", "overrides", "prompt", "choices"]


def test_the_package_of_the_protections_keeps_its_name():
    import udpbench.protect.noise
    from udpbench.protect import noise

    assert udpbench.protect.noise is noise
    assert callable(udpbench.protect)


def test_a_cell_has_the_key_and_the_record_of_the_command_line(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [word for word in [*small(tiny), *CELL] if not word.startswith(("arms=", "protect="))]
    found = udpbench.run(*words, protect="noise", arms=["clean", "protected"], seed=1)
    assert list(found["arms"]) == ["clean", "protected"]
    assert found["cell"]["seed"] == 1
    cfg = composed(tiny, *CELL, "seed=1")
    graph = checked_graph(build(cfg, cfg.hydra.runtime.choices))
    (path,) = (tmp_path / "outputs/records").glob("*.json")
    assert path.stem.endswith(graph.key)
    assert udpbench.load_records("outputs/records") == read_records(tmp_path / "outputs/records") == [found]
    assert "hydra" not in found["config"]
    assert capsys.readouterr().out == ""
    again = udpbench.run(*words, protect="noise", arms=["clean", "protected"], seed=1)
    assert all(stage["cached"] for stage in again["stages"])


def test_what_is_wrong_is_one_error_with_all_lines(local):
    with pytest.raises(ConfigError) as error:
        udpbench.run(*local, "budget.eps=300", seed=-1)
    assert len(str(error.value).splitlines()) == 2
    with pytest.raises(ConfigError, match="no protect 'nosuch'"):
        udpbench.run(protect="nosuch")
    with pytest.raises(ConfigError, match="run works in the process that calls it; allowed are auto and 1, given 2"):
        udpbench.run("runtime.workers=2")
    with pytest.raises(ConfigError, match="there is no folder .*nowhere"):
        udpbench.protect("nowhere", None, *local, protect="noise")
    with pytest.raises(ConfigError, match="unknown psnrr"):
        udpbench.score([torch.zeros(3, 16, 16)], [torch.zeros(3, 16, 16)], ["psnrr"])
    with pytest.raises(ConfigError, match="the list is empty"):
        udpbench.purify([], None, *local)
    with pytest.raises(ConfigError, match="3 x height x width"):
        udpbench.protect([torch.zeros(16, 16)], None, *local, protect="noise")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (torch.ones(1, 3, 16, 16, dtype=torch.uint8), "picture 0 holds values of type torch.uint8"),
        (
            [torch.zeros(3, 16, 16), torch.full((3, 16, 16), 255.0)],
            "picture 1 holds values from 255 to 255; pictures are",
        ),
        ([torch.full((3, 16, 16), -1.0)], "picture 0 holds values from -1 to -1"),
        ([torch.zeros(3, 16, 16).numpy()], "picture 0 is of type ndarray; give a folder, or CHW float tensors"),
        (["a.png", "b.png"], "picture 0 is of type str; give a folder"),
        (7, "given int; give a folder"),
    ],
)
@pytest.mark.parametrize("function", [udpbench.protect, udpbench.purify, lambda x: udpbench.score(x, x)])
def test_pictures_that_would_be_clamped_or_are_none_are_told(function, given, told):
    with pytest.raises(ConfigError) as error:
        function(given)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"images: {told}")


def test_a_generator_is_a_list(tmp_path):
    given = torch.rand(2, 3, 8, 8)
    folder = udpbench._folder((x for x in given), tmp_path)
    assert all(torch.equal(x, as_saved(y)) for x, y in zip(read_folder(folder).values(), given, strict=True))


def test_folders_in_folders_out_and_tensors_in_tensors_out_share_the_work(local, pictures, tmp_path):
    made = udpbench.protect(
        pictures, None, *local, protect="advdm", **{"protect.steps": 2}, prompt="my cat's (red) ball"
    )
    assert [x.shape for x in made] == [x.shape for x in pictures]
    assert all(torch.equal(x, as_saved(x)) and x.dtype == torch.float32 for x in made)
    assert all(0 < float((x - y).abs().max()) <= 8 / 255 + 1e-6 for x, y in zip(made, pictures, strict=True))
    for i, x in enumerate(pictures):
        write_png(tmp_path / "pictures" / f"{i:04d}.png", x)
    before = sorted((tmp_path / "outputs/store/protect").iterdir())
    out = udpbench.protect(
        tmp_path / "pictures", "out", *local, "protect.steps=2", protect="advdm", prompt="my cat's (red) ball"
    )
    assert str(out) == "out"
    assert all(torch.equal(x, y) for x, y in zip(read_folder(out).values(), made, strict=True))
    assert sorted((tmp_path / "outputs/store/protect").iterdir()) == before, "found done"


def test_purified_and_scored(local, pictures):
    purified = udpbench.purify(pictures, None, *local, attack="jpeg", **{"attack.quality": 50})
    assert not torch.equal(purified[0], pictures[0])
    found = udpbench.score(purified, pictures, ["psnr", "kd_efflite0"])
    assert 10 < found["scores"]["psnr"]["value"] < 60
    assert "at least 50 a side" in found["absent"]["kd_efflite0"]


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (None, "null"),
        (True, "true"),
        (1e-05, "1e-05"),
        ([1, "a"], "[1,'a']"),
        ({"a": "b c"}, "{a:'b c'}"),
        ("it's", r"'it\'s'"),
    ],
)
def test_values_as_the_command_line_has_them(value, word):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert udpbench._word(value) == word
    assert OverridesParser.create().parse_override(f"key={word}").value() == value


@pytest.mark.slow
def test_the_notebook_runs_and_uses_nothing_else(tmp_path, monkeypatch):
    """Its code, cell by cell, with fewer steps."""
    cells = json.loads((ROOT / "notebooks" / "quickstart.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for long, short in (
        (
            '"task.steps=100", "task.pictures=32"',
            '"task.steps=1", "task.pictures=20", "task.sample_steps=1", "protect.rounds=1"',
        ),
        ('"protect.steps": 20', '"protect.steps": 1'),
        ('"attack.iterations": 50', '"attack.iterations": 1'),
        ('attack="impress")\nrecord', 'attack="jpeg")\nrecord'),
    ):
        assert long in code
        code = code.replace(long, short)
    assert {line for line in code.splitlines() if "import" in line} == {"import torch", "import udpbench"}
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["purified"]) == 4
    assert all(measure(a, b)["linf"] <= 8 for a, b in zip(names["clean"], names["protected"], strict=True))
    assert list(names["record"]["arms"]) == ["pretrained", "clean", "protected", "purified"]
