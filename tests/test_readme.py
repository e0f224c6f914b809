"""The README keeps its promises: its code runs, its table is that of a record."""

import re
from pathlib import Path

import pytest
from factory import as_text
from forked import Command
from shared import on

from udpbench.results import record

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
    small = [*on(tiny), "data.size=16", "data.reference=0", "data.heldout=0"]
    small += ["task.steps=1", "task.pictures=2", "task.sample_steps=1", "track=none", "attack=jpeg", "arms=[protected]"]
    words = ["hydra.searchpath=[file://mine/conf]", "protect=stripes", *small]
    status, shown, said = Command(*words, cwd=tmp_path, path=(tmp_path / "mine",)).finish()
    assert status == 0, said
    assert "stripes" in shown


def test_the_table_is_that_of_the_record():
    (found,) = record.read_files(ROOT / "experiments" / "make_run" / "records").values()
    shown = README.read_text().split("<!-- run:begin -->")[1].split("```")[1]
    # Word by word: versions of rich differ by a column in how wide they make a table.
    assert [line.replace("─", "").split() for line in as_text(found).strip().splitlines()] == [
        line.replace("─", "").split() for line in shown.strip().splitlines()
    ]
