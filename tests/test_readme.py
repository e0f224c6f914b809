"""The README keeps its promises: its code runs, its list is the one the configuration makes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from udpbench.commands import list as catalog
from udpbench.core.budget import measure
from udpbench.results import record, table

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def blocks(language: str) -> list[str]:
    """The fenced blocks of the README in ``language`` ("" for those that name none), in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def write_example(folder: Path) -> None:
    """The two code blocks of "Adding a protection", written where their first lines say."""
    for block in (*blocks("python"), *blocks("yaml")):
        first, rest = block.split("\n", 1)
        path = folder / first.removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rest)


@pytest.mark.slow
def test_the_example_protection_runs_as_shown(tmp_path, tiny):
    write_example(tmp_path)
    command = next(line for line in blocks("")[-1].splitlines() if "stripes" in line)
    assert "hydra.searchpath=[file://mine/conf]" in command
    small = [
        "model=local",
        f"model.path={tiny}",
        "model.dtype=fp32",
        "data.size=16",
        "data.reference=0",
        "data.heldout=0",
    ]
    small += ["task.steps=1", "task.pictures=2", "task.sample_steps=1", "track=none", "attack=jpeg", "arms=[protected]"]
    done = subprocess.run(
        [sys.executable, "-m", "udpbench", "hydra.searchpath=[file://mine/conf]", "protect=stripes", *small],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"mine{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "stripes" in done.stdout


def test_the_list_of_methods_is_up_to_date(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text(README.read_text())
    catalog.update(copy)
    assert copy.read_text() == README.read_text(), "say: python -m udpbench.commands.list README.md"


def test_every_option_says_what_it_is():
    for group in catalog.GROUPS:
        for path in (ROOT / "conf" / group).glob("*.yaml"):
            assert catalog.describe(path)[0], f"{path} needs a comment at its top"


def test_a_file_without_marks_is_refused(tmp_path):
    file = tmp_path / "x.md"
    file.write_text("nothing")
    with pytest.raises(ValueError, match="has no"):
        catalog.update(file)


def test_the_table_is_that_of_the_record():
    (found,) = record.read_files(ROOT / "experiments" / "make_run" / "records").values()
    shown = README.read_text().split("<!-- run:begin -->")[1].split("```")[1]
    assert [line.rstrip() for line in table.plain(found).strip().splitlines()] == shown.strip().splitlines()


@pytest.mark.slow
def test_the_notebook_runs():
    """Its code, cell by cell, with fewer steps."""
    cells = json.loads((ROOT / "notebooks" / "quickstart.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for long, short in (
        ("rounds=2, model_steps=5, image_steps=10", "rounds=1, model_steps=1, image_steps=2"),
        ("iterations=50", "iterations=2"),
    ):
        assert long in code
        code = code.replace(long, short)
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["purified"]) == 6
    assert all(measure(a, b)["linf"] <= 8 for a, b in zip(names["clean"], names["protected"], strict=True))
