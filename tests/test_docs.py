"""The templates of the docs are whole: each is written to a folder and run on the tiny model."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image
from shared import composed

from udpbench.benchmark.arms import ARMS
from udpbench.benchmark.run import run
from udpbench.commands.plan import plan_cells
from udpbench.commands.preparing import prepare

pytestmark = pytest.mark.slow  # every test composes a configuration or starts a process

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"```(?:python|yaml)\n# file: mine/(\S+)\n(.*?)```", re.DOTALL)
# page -> overrides under which its options run in seconds, and the kinds of stages that must be among those done
PAGES = {
    "protections": ("arms=[clean,protected]", "protect"),
    "attacks": ("arms=[clean_attacked]", "generate"),
    "tasks": ("arms=[clean]", "train"),
    "metrics": ("arms=[protected]", "score"),
    "data": ("arms=[clean]", "data"),
}
FAST = ["protect=noise", "task.steps=2", "task.sample_steps=2", "data.train=4", "metrics.primary=[]"]
SHORT = {"early_steps": ["protect.steps=2"]}  # further overrides of an option


def templates(page: str) -> dict[str, str]:
    """File below ``mine/`` -> its text."""
    found = dict(BLOCK.findall((DOCS / f"{page}.md").read_text()))
    assert found, page
    return found


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Page -> its templates written below a folder that is on the path; returns the folder."""
    before = set(sys.modules)

    def write(page: str) -> Path:
        for name, text in templates(page).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        return tmp_path

    yield write
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def options(page: str) -> list[tuple[str, str]]:
    """(group, option) of every YAML of a page."""
    return [(Path(f).parent.name, Path(f).stem) for f in templates(page) if f.startswith("conf/")]


@pytest.mark.parametrize(("page", "group", "option"), [(p, *o) for p in PAGES for o in options(p)])
def test_a_template_runs(mine, tiny, tmp_path, page, group, option):
    arms, kind = PAGES[page]
    folder = mine(page)
    chosen = {
        "metric": f"+metric@perturbation.bundle.mine={option}",
        "data": f"data={option}",
    }.get(group, f"{group}={option}")
    words = [w for w in FAST if not (w.startswith("protect=") and group == "protect")]
    if group == "data":
        words.append("data.reference=4")
    store = f"runtime.store={tmp_path / 'store'}"
    cfg = composed(
        tiny, f"hydra.searchpath=[file://{folder / 'conf'}]", *words, *SHORT.get(option, []), arms, chosen, store
    )
    ready = prepare(cfg)
    done = run(ready.graph, ready.store)
    named = {stage.name for stage in ready.graph.stages if stage.key in done}
    assert kind in named


def test_a_model_s_template_names_a_hub_repository(mine, tiny, tmp_path):
    folder = mine("models")
    cfg = composed(tiny, f"hydra.searchpath=[file://{folder / 'conf'}]", "model@surrogate=mine")
    assert prepare(cfg).cell.surrogate.component.identity()["hub"] == "owner/name"


def commands(page: str) -> list[list[str]]:
    """The words behind ``python -m udpbench`` of every command of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)
    return [shlex.split(block.replace("\\\n", " "))[3:] for block in blocks]


@pytest.mark.parametrize("words", commands("published"), ids=["dreambooth", "inpaint"])
def test_commands_beside_published_numbers_can_be_planned(words, tmp_path):
    """With folders in place of DIR, DIR2 and MASKS, and some commit, on a machine that may lack the weights of metrics."""
    names = {name: str(tmp_path / name) for name in ("DIR", "DIR2", "MASKS")}
    for name, folder in names.items():
        Path(folder).mkdir()
        Image.new("L" if name == "MASKS" else "RGB", (512, 512), "white").save(Path(folder) / "a.png")
    places = re.compile(rf"(?<==)(?:{'|'.join(names)}|COMMIT)$")
    given = [places.sub(lambda found: names.get(found[0], "0" * 40), word) for word in words]
    cells = plan_cells([word for word in given if word != "-m"], multirun="-m" in given)
    assert len(cells) == (4 if "-m" in given else 1)
    assert not [error for cell in cells for error in cell.errors if "weights are missing" not in error]


def test_every_arm_is_explained():
    text = (DOCS / "reading.md").read_text()
    for name, kind in ARMS.items():
        assert f"`{name}`" in text
        assert kind.description in text
