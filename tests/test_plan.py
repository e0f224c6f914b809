"""The plan: what would be computed, counted in closed form; what it would take, by arithmetic on finished stages."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import Container, DictConfig, Node, OmegaConf
from PIL import Image
from rich.console import Console
from shared import small

from udpbench.benchmark.check import checked_graph
from udpbench.benchmark.estimate import Estimate, History
from udpbench.benchmark.facts import FACTS
from udpbench.benchmark.stage import Stage
from udpbench.benchmark.store import Store
from udpbench.commands import plan
from udpbench.commands import run as command
from udpbench.commands.composing import read_files_once
from udpbench.core.package import CONF
from udpbench.results import tally
from udpbench.results.tally import Planned, count

GRID = ["-m", "protect=noise", "attack=none,jpeg", "arms=[pretrained,clean,protected,purified]"]


def publish(root: Path, stage: Stage, seconds: float, size: int = 1000, device: str = "cpu") -> Path:
    """A finished stage as far as a plan can see: its facts, and ``size`` bytes beside them."""
    folder = root / stage.name / stage.key
    folder.mkdir(parents=True)
    facts = json.dumps({"seconds": seconds, "device": device, "settings": dict(stage.settings)})
    (folder / FACTS).write_text(facts)
    (folder / "work").write_bytes(bytes(size - len(facts)))
    return folder


@pytest.fixture
def planned(tiny, tmp_path, monkeypatch, capsys):
    """Words of the command line -> status, numbers, what was shown, what was said; nothing may have been written."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, model: bool = True):
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # a command leaves it at 1
        before = sorted(tmp_path.rglob("*"))
        base = [*small(tiny), "runtime.device=cpu", f"runtime.out={tmp_path / 'out'}"] if model else []
        file = tmp_path.parent / f"{tmp_path.name}.json"
        monkeypatch.setattr(sys, "argv", ["plan", *base, *words, "--json", str(file)])
        with pytest.raises(SystemExit) as end:
            plan.main()
        assert sorted(tmp_path.rglob("*")) == before
        numbers = json.loads(file.read_text()) if file.exists() else {}
        file.unlink(missing_ok=True)
        return end.value.code, numbers, *capsys.readouterr()

    return run


# -- counts ------------------------------------------------------------------------------------------------------------


def kinds(numbers, of: str) -> dict[str, int]:
    return {kind: tally[of] for kind, tally in numbers["kinds"].items() if kind != "score"}


def test_the_counts_of_a_grid(planned, cell, tiny, tmp_path):
    status, numbers, shown, _ = planned(*GRID)
    assert status == 0
    assert [c["cell"] for c in numbers["cells"]] == ["attack=none", "attack=jpeg"]
    assert kinds(numbers, "wanted") == {"data": 2, "protect": 2, "attack": 1, "train": 5, "generate": 7}
    assert kinds(numbers, "unique") == {"data": 1, "protect": 1, "attack": 1, "train": 3, "generate": 4}
    made = checked_graph(cell()).cell
    m, c = len(made.metrics), len(made.perturbation_metrics)
    assert numbers["kinds"]["score"]["unique"] == 4 * m + 2 * c
    assert numbers["kinds"]["score"]["wanted"] == 7 * m + 3 * c
    first, second = numbers["cells"]
    assert first["unique"] == first["wanted"] == 1 + 1 + 2 + 3 + 3 * m + c
    assert second["unique"] == 1 + 1 + 1 + m + c, "what the first cell makes is not counted again"
    for of in ("unique", "cached", "todo", "wanted"):
        total = numbers["total"][of]
        assert sum(x[of] for x in numbers["cells"]) == sum(x[of] for x in numbers["kinds"].values()) == total
    assert numbers["total"]["unknown"] == numbers["total"]["todo"] == numbers["total"]["unique"]
    assert f"2 cells, {numbers['total']['unique']} of {numbers['total']['unique']} stages to do\n" in shown
    assert f"? no measurement on cpu ({numbers['total']['todo']}): data clean, " in shown


def test_what_is_finished_is_cached_and_what_it_was_made_of_is_not_asked_for(planned, monkeypatch, tmp_path):
    (first, second) = gather(planned, monkeypatch)
    trained = {path for path, stage in first.stages.items() if stage.name == "train"}
    for path, stage in first.stages.items():
        if path not in trained:  # weights take room: somebody removed them
            publish(tmp_path / "out" / "store", stage, 1.0)
    _, numbers, _, _ = planned(*GRID)
    one, two = numbers["cells"]
    assert one["todo"] == 0
    assert one["cached"] == one["unique"] == len(first.stages)
    assert two["cached"] == 0
    assert two["todo"] == two["unique"] == len(set(second.stages) - set(first.stages))
    assert numbers["kinds"]["train"] | {"wanted": 5, "unique": 3, "cached": 2, "todo": 1} == numbers["kinds"]["train"]


def gather(planned, monkeypatch) -> list[Planned]:
    """The cells of ``GRID`` as they are counted."""
    found = []
    keep = tally.count
    with monkeypatch.context() as patch:
        patch.setattr(tally, "count", lambda cells: found.extend(cells) or keep(cells))
        planned(*GRID)
    return found


def test_a_single_cell_is_shown_in_words(planned):
    status, numbers, shown, said = planned("protect=noise", "attack=jpeg", "arms=[pretrained]")
    assert status == 0
    assert numbers["cells"][0]["cell"].startswith("data=toyworld subject=0 protect=noise attack=jpeg")
    assert said == ""
    assert kinds(numbers, "wanted") == {"data": 1, "generate": 1}


@pytest.mark.slow
def test_what_a_cell_will_lack_is_told_before_it_starts(planned, tmp_path):
    for i in range(4):
        Image.new("RGB", (64, 48), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    words = ["data=folder", f"data.path={tmp_path}", "data.prompt='a {token} dog'", "data.size=null"]
    _, _, shown, _ = planned(*words, "protect=none", "arms=[clean]")
    text = " ".join(shown.split())
    assert "absent: kernel_distance: data folder has no reference pictures (data.reference)" in text
    assert "no primary score can be measured: data folder has no reference pictures (data.reference); " in text
    assert (
        "data folder: pictures have 48 px or more; they are protected and attacked at that size and reduced to the victim's 16 px"
        in text
    )
    _, _, shown, _ = planned("protect=none", "arms=[clean]")
    assert "training;" not in shown


@pytest.mark.slow
def test_glob_range_and_params_of_a_preset_are_hydras(planned):
    _, numbers, _, _ = planned("-m", "budget=glob(*)", "data.subject=range(0,2)", "protect=noise", "arms=[pretrained]")
    assert [c["cell"] for c in numbers["cells"]] == [
        f"budget={budget} data.subject={subject}" for budget in ("linf", "perceptual", "rms") for subject in range(2)
    ]
    words = ["-m", "experiment=controls", "attack.sigma=1", "arms=[pretrained]"]
    _, numbers, _, _ = planned(*words, "model=micro", model=False)
    assert [c["cell"] for c in numbers["cells"]] == ["data.subject=0", "data.subject=1"]


def test_a_launcher_changes_nothing_and_another_sweeper_is_refused(planned):
    words = ["hydra/launcher=local", "hydra.launcher.n_jobs=4", "arms=[pretrained]", "seed=0,1"]
    status, numbers, _, _ = planned("-m", *words)
    assert status == 0
    assert [c["cell"] for c in numbers["cells"]] == ["seed=0", "seed=1"]
    status, _, _, said = planned("-m", *words, "hydra.sweeper._target_=my.Optimiser")
    assert status == 2
    assert said == "error: plan: only hydra/sweeper=basic knows its cells before they have run\n"


# -- studies -----------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent
COMMANDS = [
    (script.parent.name, line.split()[3:])  # without "-m udpbench -m"
    for script in sorted(ROOT.glob("experiments/*/run.sh"))
    for line in subprocess.run(
        ["sh", str(script)], env={**os.environ, "PYTHON": "echo"}, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    # Not those that write pictures first, and those that need them.
    if line.startswith("-m udpbench -m ") and "attack=bridge" not in line.split()
]


@pytest.mark.slow
@pytest.mark.parametrize(("study", "words"), COMMANDS, ids=[f"{s}-{i}" for i, (s, _) in enumerate(COMMANDS)])
def test_every_command_of_a_study_can_be_planned(planned, study, words):
    assert words[0] == f"experiment={study}"
    preset = OmegaConf.load(ROOT / "conf" / "experiment" / f"{study}.yaml")
    swept = OmegaConf.select(preset, "hydra.sweeper.params") or {}
    given = {word.partition("=")[0] for word in words}
    words = [*words, *(f"{key}={values}" for key, values in swept.items() if key not in given)]
    # Of subjects and seeds one: the same cell of another number. Of other long lists both ends.
    words = [re.sub(r"^(data\.subject|seed)=(?:range\()?(\d+),[\d,]+\)?$", r"\1=\2", word) for word in words]
    words = [re.sub(r"^([^=\[]+=[^,\[]+),.*,([^,\]]+)$", r"\1,\2", word) for word in words]
    status, numbers, _, said = planned("-m", *words, model=False)
    assert status == 0, said
    assert numbers["total"]["unique"] > 0


# -- estimates ---------------------------------------------------------------------------------------------------------


def stage(name="train", seed=0, model="a", steps=6, target="T", parent="p", **more) -> Stage:
    settings = {"task": "t", "part": {"settings": {"_target_": target, "steps": steps}}, "victim": {"name": model}}
    return Stage(
        name, settings | more, lambda *_: None, {"images": Stage("data", {"x": parent}, lambda *_: None)}, seed
    )


def test_the_median_of_the_same_settings_before_that_of_the_method_before_that_of_the_kind(tmp_path):
    for seed, (seconds, size) in enumerate([(1, 1000), (2, 3000), (9, 2000), (100, 90000)]):
        publish(tmp_path, stage(seed=seed), seconds, size)
    publish(tmp_path, stage(steps=7), 50, 4000)
    publish(tmp_path, stage(target="U"), 1000, 5000)
    history = History(tmp_path, "cpu")
    same = history.estimate(stage(seed=7, parent="q", budget={"settings": {"_target_": "Rms"}}))
    assert same is not None
    assert (same.seconds, same.bytes, same.near, len(same.rests_on)) == (5.5, 2500, "settings", 4)
    method = history.estimate(stage(steps=8))
    assert method is not None
    assert (method.seconds, method.near, len(method.rests_on)) == (9, "method", 5)
    kind = history.estimate(stage(target="V"))
    assert kind is not None
    assert (kind.seconds, kind.near, len(kind.rests_on)) == (29.5, "kind", 6)


def test_another_model_device_or_kind_is_no_measurement(tmp_path):
    publish(tmp_path, stage(), 1.0)
    publish(tmp_path, stage(seed=1), 7.0, device="NVIDIA H100")
    history = History(tmp_path, "cpu")
    assert history.estimate(stage(model="b")) is None
    assert history.estimate(stage(name="generate")) is None
    assert History(tmp_path, "NVIDIA A100").estimate(stage()) is None
    known = history.estimate(stage(seed=2))
    assert known is not None
    assert known.seconds == 1.0


def test_facts_that_lack_something_measure_nothing(tmp_path):
    publish(tmp_path, stage(), 1.0)
    facts = publish(tmp_path, stage(seed=1), 9.0) / FACTS
    facts.write_text(json.dumps({"seconds": 9.0, "settings": dict(stage().settings)}))
    known = History(tmp_path, "cpu").estimate(stage(seed=2))
    assert known is not None
    assert known.seconds == 1.0


def test_work_that_was_found_done_is_not_measured_twice(tmp_path):
    folder = publish(tmp_path, stage(), 1.0)
    publish(tmp_path, stage(seed=1), 3.0)
    for i in range(5):
        (folder.parent / f"link{i}").symlink_to(folder.name)
    known = History(tmp_path, "cpu").estimate(stage(seed=2))
    assert known is not None
    assert (known.seconds, len(known.rests_on)) == (2.0, 2)


def test_totals_add_up_and_unknowns_are_named(tmp_path):
    def known(seconds: float, near: str, *folders: str) -> Estimate:
        return Estimate(seconds, 2e6, near, frozenset(map(Path, folders)))

    shared = {Path("a"): stage("data"), Path("b"): stage("train")}
    estimates = {Path("a"): known(3, "settings", "x", "y"), Path("b"): known(60, "method", "y", "z")}
    one = Planned("seed=0", "cpu", shared, estimates)
    two = Planned("seed=1", "cpu", shared | {Path("c"): stage("protect", parent="q")}, {**estimates, Path("c"): None})
    made = count([one, two])
    rows = [[2, 2, 0, 2, 1, 0, 63.0, 4e6, 3], [3, 1, 0, 1, 0, 1, 0, 0, 0]]
    assert [cell.row() for cell in made.by_cell] == [dict(zip(tally.COUNTS, row)) for row in rows]
    assert tally.as_json(made)["total"] == dict(zip(tally.COUNTS, (5, 3, 0, 3, 1, 1, 63.0, 4e6, 3)))
    assert [counts.measurements for counts in made.by_kind.values()] == [2, 2, 0], (
        "y is one measurement, of whatever it is used for"
    )
    assert (made.rough, made.unknown) == (["train"], ["protect"])
    assert tally.summary(made) == [
        "2 cells, 3 of 3 stages to do: 1:03 one after another and 4.0 MB for 2 of them, by medians of 3 finished stages on cpu",
        "~ by other settings or methods of the kind, not scaled (1): train",
        "? no measurement on cpu (1): protect",
    ]
    lines = tally.summary(count([replace(one, family="sd")]))
    assert "estimated" in lines[2]
    assert lines[4].startswith("  24 GB: encoder 5 (8), encoder and UNet 3 (7), encoder and decoder 2 (5);")
    rows = [line.split() for line in drawn(made).splitlines()]
    assert ["seed=0", "2", "2", "0", "2", "~1:03", "~4.0", "MB", "3"] in rows
    assert ["seed=1", "3", "1", "0", "1", "?", "?", "0"] in rows
    assert ["total", "5", "3", "0", "3", "~1:03", "+", "?", "~4.0", "MB", "+", "?", "3"] in rows


def test_what_several_cells_need_is_listed_and_few_cells_make_it():
    data, one, two = stage("data"), stage(parent="one"), stage(parent="two")
    own = [stage("generate", seed=i) for i in range(4)]
    needs = [[data, one], [data, two], [data, one, two], [data]]
    stages = [{Path(f"{id(s)}"): s for s in (*mine, own[i])} for i, mine in enumerate(needs)]
    cells = [Planned(f"seed={i}", "cpu", mine, dict.fromkeys(mine)) for i, mine in enumerate(stages)]
    found = tally.shared(cells)
    assert [str(s.name) for s in found.stages.values()] == ["data", "train", "train"], "parents first, none of one cell"
    assert [[c.words[-1] for c in mine] for mine in found.needed_by.values()] == [list("0123"), list("02"), list("12")]
    assert [cell.words for cell in found.first] == ["seed=2"]
    assert tally.shared_json(found)["first"] == ["seed=2"]
    assert tally.shared_summary(found, 4) == [
        "3 stages are needed by more than one cell, 3 of them to do; 1 of 4 cells, run first, make all of them:",
        "  seed=2",
    ]
    for cell in cells[2:]:
        cell.todo.clear()  # done: the others' stages are made by them alone
    cells[0].todo.pop(Path(f"{id(data)}"))
    cells[1].todo.pop(Path(f"{id(data)}"))
    found = tally.shared(cells)
    assert [cell.words for cell in found.first] == ["seed=0", "seed=1"]
    done = tally.shared([Planned("seed=0", "cpu", stages[2]), Planned("seed=1", "cpu", stages[2])])
    assert tally.shared_summary(done, 2) == ["4 stages are needed by more than one cell, 0 of them to do"]


def test_only_what_is_shared_is_shown_if_that_is_asked_for(planned):
    status, numbers, shown, _ = planned(*GRID, "--shared")
    assert status == 0
    kinds = [row["kind"] for row in numbers["shared"] if row["kind"] != "score"]
    assert kinds == ["data", "generate", "train", "generate", "protect", "train", "generate"]
    assert all(row["cells"] == ["attack=none", "attack=jpeg"] for row in numbers["shared"])
    assert numbers["first"] == ["attack=none"]
    assert f"{len(numbers['shared'])} stages are needed by more than one cell, " in shown
    assert "  attack=none\n" in shown
    assert "total" not in shown


def drawn(made) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(tally.table(made))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_many_cells_are_cut_short_and_kinds_come_in_the_order_of_the_work():
    names = ("score", "unheard_of", "train", "data")
    cells = [Planned(f"seed={i}", "cpu", {Path(f"{i}"): stage(names[i % 4], seed=i)}) for i in range(25)]
    text = drawn(count(cells))
    assert "seed=19" in text
    assert "seed=20" not in text
    assert "... and 5 more" in text
    assert [text.index(f"\n  {name}") for name in ("data", "train", "score", "unheard_of")] == sorted(
        text.index(f"\n  {name}") for name in names
    )


def test_sizes_and_times():
    assert [tally.size(n) for n in (0, 12, 999, 1000, 35_400, 999_600, 1.25e6, 3.4e8, 2.5e9)] == [
        "0 B", "12 B", "999 B", "1.0 kB", "35 kB", "1.0 MB", "1.2 MB", "340 MB", "2.5 GB",
    ]  # fmt: skip
    assert [tally.time_text(s) for s in (0.1, 7, 3723)] == ["<0:01", "0:07", "1:02:03"]


@pytest.fixture
def no_key(monkeypatch, tmp_path_factory):
    """wandb knows nobody."""
    elsewhere = tmp_path_factory.mktemp("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(elsewhere / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(elsewhere))


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_key")
@pytest.mark.parametrize(
    "words",
    [
        ["protect=foo"], ["protect.foo=1"], ["no_equals_sign"], ["protect=udp,eudp"], ["budget.eps=0", "seed=-1"], ["protect=noise_rms"],
        ["runtime.device=tpu"], ["track=wandb", "track.mode=now"], ["track=wandb", "track.mode=online"],
        ["-m", "protect=udp,foo"], ["-m", "seed=0,1", "protect.foo=1"],
    ],
)  # fmt: skip
def test_a_wrong_command_gives_the_lines_and_the_status_of_the_run(planned, words, tiny, tmp_path, monkeypatch, capsys):
    status, _, shown, said = planned(*words)
    flags, words = [w for w in words if w == "-m"], [w for w in words if w != "-m"]  # Hydra wants them apart
    base = [*small(tiny), "runtime.device=cpu", f"runtime.out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["udpbench", *flags, *base, *words])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(Store, "do", lambda *_: pytest.fail("it ran"))
    with pytest.raises(SystemExit) as end:
        command.run()
    errors, of_the_run = (
        [line for line in text.splitlines() if line.startswith("error: ")] for text in (said, capsys.readouterr().err)
    )
    assert errors == of_the_run != []
    assert (status, shown) == (2, "")
    assert end.value.code == 2


def test_an_invalid_cell_of_a_grid_is_listed_and_the_others_are_planned(planned):
    status, numbers, shown, _ = planned("-m", "protect=noise,noise_rms", "seed=0,-1", "arms=[pretrained]")
    assert status == 1, "as the sweep would end"
    assert [len(c["errors"]) for c in numbers["cells"]] == [0, 1, 1, 1]
    assert numbers["cells"][0]["todo"] == numbers["total"]["todo"] > 0
    assert "invalid: protect=noise_rms seed=0: protect=noise_rms: say whose strength it shall match" in shown
    assert "invalid: protect=noise seed=-1: seed: must be a whole number >= 0, given -1" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["protect=noise", "seed=-1", "invalid"] in rows


@pytest.mark.slow
def test_help_is_quick_and_imports_no_torch():
    code = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules)); sys.argv = ['udpbench', 'plan', '--help'];"
        "import runpy; runpy.run_module('udpbench', run_name='__main__', alter_sys=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert "--multirun" in done.stdout
    modules = set(done.stdout.splitlines()[-1].split())
    assert "udpbench.commands.common" in modules
    assert not modules & {"torch", "numpy", "rich", "wandb"}


@pytest.mark.slow
def test_before_and_after_a_cell_was_run(planned, tiny, tmp_path, monkeypatch):
    grid = ["-m", "seed=0,1", "protect=noise", "arms=[pretrained]"]
    _, before, _, _ = planned(*grid)
    assert before["total"]["cached"] == 0
    words = [
        *small(tiny),
        "runtime.device=cpu",
        f"runtime.out={tmp_path / 'out'}",
        "protect=noise",
        "arms=[pretrained]",
    ]
    monkeypatch.setattr(sys, "argv", ["udpbench", *words, "seed=0"])
    command.run()
    _, after, shown, _ = planned(*grid)
    first, second = after["cells"]
    assert first["todo"] == 0
    assert first["cached"] == before["cells"][0]["todo"]
    assert second["todo"] == before["cells"][1]["todo"], "other seed, other pictures"
    assert after["total"]["unknown"] == after["total"]["rough"] == 0
    facts = [json.loads(path.read_text()) for path in (tmp_path / "out" / "store").glob("*/*/_stage.json")]
    spent = sum(f["seconds"] for f in facts if f["stage"] != "data")
    assert second["seconds"] == pytest.approx(spent), "one measurement of each stage: its own seconds"
    assert after["total"]["measurements"] == second["todo"] == len(facts) - 1


def nodes(node: Node, path: str = "") -> Iterator[tuple[Any, ...]]:
    """All that OmegaConf knows of a configuration, node by node."""
    about = {k: v for k, v in vars(node._metadata).items() if k != "resolver_cache"}
    inside = node._content if isinstance(node, Container) and not isinstance(node._content, str) else None
    yield path, type(node), {k: repr(v) for k, v in about.items()}, None if inside else repr(node._value())
    for key, child in inside.items() if isinstance(inside, dict) else enumerate(inside or ()):
        assert child._get_parent() is node
        yield from nodes(child, f"{path}.{key}")


@pytest.mark.slow
@pytest.mark.usefixtures("plain_hydra")
def test_a_grid_that_is_put_together_once_is_composed_as_any_other(monkeypatch):
    """Twice, as a run does it: before the first cell begins, and when a cell begins."""
    words = [
        "protect=eudp,advdm_released",
        "attack=none,jpeg",
        "model=micro",
        "seed=0,7",
        "+task.own={a: 1}",
        "runtime.batch=8",
    ]
    together, compose = [], ConfigLoaderImpl._compose_config_from_defaults_list

    def counted(self: Any, **what: Any) -> DictConfig:
        together.append(what)
        return compose(self, **what)

    monkeypatch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", counted)

    def composed(once: bool) -> list[list[Any]]:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            if once:
                read_files_once()
            master = loader.load_configuration("config", words, RunMode.MULTIRUN)
            return [list(nodes(loader.load_sweep_config(master, job))) for job in plan.grid(master) * 2]

    assert composed(False) == composed(True)
    assert len(together) == (1 + 16) + 4, "the grid's own and every cell twice; once for each choice of options"


@pytest.mark.slow
@pytest.mark.usefixtures("plain_hydra")
def test_the_files_of_a_grid_are_read_once(monkeypatch):
    read, load = [], ConfigRepository.load_config
    monkeypatch.setattr(ConfigRepository, "load_config", lambda self, path: read.append(path) or load(self, path))
    plan.plan_cells(["protect=noise", "seed=0,1,2"], True)
    assert len(read) == len(set(read)) > 20
