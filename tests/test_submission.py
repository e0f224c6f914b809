"""What a record must say to stand beside those of other people."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factory import make_record

from udpbench.benchmark.cell import ROLES
from udpbench.commands import report
from udpbench.results import declared, record
from udpbench.results.report.write import write_report
from udpbench.results.submission import PACKAGES, PARTS, objections

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
WRITTEN = record.read(next((EXPERIMENTS / "make_run" / "records").glob("*.json")))  # by a cell of eudp against impress


def submitted(**cell: Any) -> Any:
    """A record without objections."""
    made: Any = make_record(settings=copy.deepcopy(WRITTEN["config"]), **cell)
    made["stages"][0]["commit"] = "0123456789abcdef"
    for arm, scores in made["arms"].items():
        scores["key"] = f"key-{arm}"
        made["stages"].append({**made["stages"][0], "name": f"generate {arm}", "key": scores["key"]})
    made["provenance"] |= {"packages": dict.fromkeys(PACKAGES, "1.0"), "device": "cpu: x"}
    made["provenance"]["parts"] = {name: {"version": 1} for name in PARTS}
    for name in ROLES:
        identity = WRITTEN["provenance"]["parts"][name]["identity"]
        made["provenance"]["parts"][name]["identity"] = copy.deepcopy(identity)
    return made


def test_a_whole_record_of_a_clean_commit_has_none():
    assert objections(submitted()) == []


@pytest.mark.parametrize("experiment", ["make_run", "cifar10"])
def test_records_that_cells_wrote_have_none(experiment):
    made = {path.name: record.read(path) for path in (EXPERIMENTS / experiment).rglob("*-s*.json")}
    assert made
    assert {name: lines for name, one in made.items() if (lines := objections(one))} == {}


@pytest.mark.slow
def test_nothing_that_cells_wrote_contradicts_itself():
    made = {path: record.read(path) for path in EXPERIMENTS.glob("*/*/*-s*.json")}
    known = {path: one for path, one in made.items() if one["provenance"].get("parts") and one["status"] == "ok"}
    assert len(known) > 500
    assert {path.name: lines for path, one in known.items() if (lines := [*declared.contradictions(one)])} == {}


def at(*place: str, value: Any) -> Callable[[Any], None]:
    def spoil(made: Any) -> None:
        for name in place[:-1]:
            made = made[name]
        if value is KeyError:
            del made[place[-1]]
        else:
            made[place[-1]] = value

    return spoil


SPOILED = {
    "provenance names no commit": at("provenance", "commit", value=None),
    "the code was not as in its commit": at("provenance", "dirty", value=True),
    "the code was not as in its commit, or that is not known": at("provenance", "dirty", value=KeyError),
    "stages were done by code that is in no commit: generate clean": lambda made: made["stages"][2].update(commit="0123-dirty"),
    "stages were done by code that is in no commit: protect eudp": lambda made: made["stages"][0].update(commit=None),
    "provenance does not name torch, diffusers, transformers, numpy, pillow": at("provenance", "packages", value={}),
    "provenance does not name device": at("provenance", "device", value=""),
    "provenance does not say the versions of data, budget": at("provenance", "parts", value=KeyError),
    "provenance does not say the versions of victim": at("provenance", "parts", "victim", value=3),
    "provenance has no digests of the weights of victim": at("provenance", "parts", "victim", "identity", value={}),
    "made by code that udpbench does not have (mine.Own)": at("config", "protect", value={"inner": [{"_target_": "mine.Own"}]}),
    "facts say embedded False, the configuration True": at("facts", "embedded", value=False),
    "label 'sd15': of victim micro it is 'embedded world (64 px)'": at("label", value="sd15"),
    "facts say preset released, the configuration matched": at("facts", "preset", value="released"),
    "facts say preset matched, the configuration released": at("config", "protect", "preset", value="released"),
    "facts say edits True, the configuration False": at("facts", "edits", value=True),
    "facts say protected_fraction 0.5, the configuration 1.0": at("facts", "protected_fraction", value=0.5),
    "cell.protect is mist, the configuration's is eudp": at("cell", "protect", value="mist"),
    "cell.protect is eudp, the configuration's is of class PhotoGuard": at(
        "config", "protect", value={"_target_": "udpbench.protect.photoguard.PhotoGuard", "steps": 100}
    ),
    "cell.attack is impress, the configuration's is jpeg_75": at(
        "config", "attack", value={"_target_": "udpbench.attack.jpeg.Jpeg", "quality": 75}
    ),
    "cell.task is mine, which is no option of conf/task: add it first": at("cell", "task", value="mine"),
    "cell.task is dreambooth_lora, the configuration's is of class DreamBooth": at("cell", "task", value="dreambooth_lora"),
    "victim sd15: its path is that of micro": at("cell", "victim", value="sd15"),
    "victim micro: its path is that of micro_b": at("config", "model", "path", value="pkg:micro_b"),
    "cell.victim is micro_pixel, the configuration's is of class LatentDiffusion": lambda made: (
        made["cell"].update(victim="micro_pixel"),
        made["config"]["model"].update(path="pkg:micro_pixel"),
    ),
    "victim micro: its path is that of elsewhere": at("config", "model", "path", value="pkg:../../elsewhere"),
    "victim micro has the weights of micro, which come with the package": at("config", "model", "path", value="a/copy"),
    "victim micro: unet has other digests than": at("provenance", "parts", "victim", "identity", "unet", value="00ff"),
    "config.protect is none that this version builds (eudp: stepz is no setting": at("config", "protect", "stepz", value=3),
    "config.protect is none that this version builds (udpbench.core.provenance.subprocess.run is no component": at(
        "config", "protect", value={"_target_": "udpbench.core.provenance.subprocess.run", "args": ["false"]}
    ),
    "config.protect is none that this version builds (udpbench.core.atomic.atomic_text is no component": at(
        "config", "protect", value={"_target_": "udpbench.core.atomic.atomic_text", "path": "x", "text": "y"}
    ),
    "config.task is none that this version builds (given None)": at("config", "task", value=None),
    "metric kd_efflite0: better_protected is down, of the metric up": lambda made: made["arms"]["clean"]["metrics"].update(
        kd_efflite0={"value": 1.0, "n": 50, "better_protected": "down", "primary": True}
    ),
    "it has no arm noise": at("arms", "noise", value=KeyError),
    "it has no arm purified": at("arms", "purified", value=KeyError),
    "linf of noise was not measured": at("perturbation", "noise", "linf", value=KeyError),
    "linf of protected, noise was not measured": at("perturbation", value={}),
    "arm clean rests on a stage that the record does not list": at("arms", "clean", "key", value="other"),
    "facts say budget eps 4, the configuration 8": at("facts", "budget", "eps", value=4.0),
    "budget exceeded: protected measures linf 9/255": at("perturbation", "protected", "linf", value=9.0),
}  # fmt: skip


@pytest.mark.parametrize("told", SPOILED)
def test_what_is_missing_or_wrong_is_a_line(told):
    made = submitted()
    SPOILED[told](made)
    lines = objections(record.check(copy.deepcopy(made), "r.json"))
    assert any(line.startswith(told) for line in lines), lines


@pytest.mark.parametrize("group", ["data", "protect", "attack", "task", "model"])
def test_every_option_has_a_class_that_records_are_compared_with(group):
    options = sorted(path.stem for path in (declared.CONF / group).glob("*.yaml"))
    assert len(options) > 5
    assert [option for option in options if not declared._is_component(str(declared._class_of(group, option)))] == []
    assert declared._class_of(group, "nothing_known") is None
    assert declared._class_of(group, f"../{group}/{options[0]}") is None


def two_labs(tmp_path: Path, *made: Any) -> list[Path]:
    paths = [tmp_path / f"lab{i}" / "r.json" for i in range(len(made))]
    for path, one in zip(paths, made, strict=True):
        record.write(path, one)
    return paths


def board_of(tmp_path: Path) -> tuple[list[str], str]:
    """What is said of the records left out of the leaderboard of all labs, and the report."""
    refused: list[str] = []
    write_report([tmp_path], tmp_path / "out", plots=False, refused=refused, checked=True)
    return refused, (tmp_path / "out" / "report.md").read_text()


def test_two_results_of_one_cell_stand_in_no_leaderboard(tmp_path: Path):
    other = submitted()
    other["arms"]["protected"]["metrics"]["distance"]["value"] = 700.0
    paths = two_labs(tmp_path, submitted(), other, submitted(seed=1))
    refused, text = board_of(tmp_path)
    said = f"protected distance is 70 in {paths[0]} and 700 in {paths[1]}, records of one cell"
    assert refused == [f"{path}: {said}" for path in paths[:2]]
    assert "1 finished cells" in text


def test_of_two_versions_of_a_cell_the_newer_stands_in_the_leaderboard(tmp_path: Path):
    older, newer = submitted(), submitted()
    for one, version in ((older, 1), (newer, 2)):
        one["provenance"]["parts"]["task"]["version"] = version
        for part in one["arms"].values():
            part["key"] += f"-{version}"
        for stage in one["stages"][1:]:
            stage["key"] += f"-{version}"
    newer["arms"]["protected"]["metrics"]["distance"]["value"] = 77.0
    paths = two_labs(tmp_path, newer, older, submitted(seed=1))
    refused, text = board_of(tmp_path)
    (line,) = refused
    assert line.startswith(f"{paths[1]}: {paths[0]} and {paths[1]} are the same cell with different keys")
    assert line.endswith(f"({paths[1]} is older: task 1, then 2)")
    assert "2 finished cells" in text
    assert "+33.5 [" in text, "37 of the newer and 30 of the other seed"


def test_of_two_cells_of_other_keys_that_nothing_orders_neither_stands_in_the_leaderboard(tmp_path: Path):
    other = submitted()
    other["arms"]["clean"]["key"] = other["stages"][0]["key"]
    paths = two_labs(tmp_path, submitted(), other, submitted(seed=1))
    refused, text = board_of(tmp_path)
    assert [line.split(": ")[0] for line in refused] == list(map(str, paths[:2]))
    assert "1 finished cells" in text


def test_a_failed_cell_is_no_submission():
    assert objections(make_record(error="no")) == ["the cell failed"]


def test_the_leaderboard_is_of_checked_records_and_the_others_are_named(tmp_path: Path, capsys):
    for name, made in (("ada", submitted()), ("bob", submitted(seed=1)), ("eve", make_record(seed=2))):
        record.write(tmp_path / name / "r.json", made)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "r.json").write_text('{"schema": 2}')
    out = tmp_path / "board"
    assert report.main([str(tmp_path), "--check", "--no-plots", "--out", str(out)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert all(line.endswith("; it is left out") for line in said)
    assert {Path(line.split(": ")[1]).parent.name for line in said} == {"eve", "broken"}
    assert "2 finished cells" in (out / "report.md").read_text()
    only = tmp_path / "eve"
    assert report.main([str(only), "--check", "--no-plots", "--out", str(out)]) == 2
    assert "done by code that is in no commit" in capsys.readouterr().err
    record.write(tmp_path / "broken" / "s.json", make_record(seed=3))
    assert report.main([str(only), str(only.with_name("broken")), "--check", "--no-plots", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert {Path(line.split(": ")[1]) for line in said.splitlines()} == {
        only / "r.json",
        *only.with_name("broken").glob("?.json"),
    }, "all are named, where none is left"


def test_the_record_of_a_cell_says_versions_and_digests(tmp_path: Path):
    """What the factory makes up is what cells write; see test_rerun for one."""
    made = json.loads(json.dumps(submitted()))
    assert record.check(made, "r.json") == submitted()


def test_a_perceptual_budget_is_compared_with_the_bound_inside_and_its_distance():
    made = submitted()
    facts = {
        "kind": "perceptual",
        "eps": 16.0,
        "inner": "linf",
        "distance": 0.4,
        "network": "lite1",
        "score": "dist_lite1",
    }
    made["facts"]["budget"] = facts
    made["config"]["budget"] = {"distance": 0.4, "inner": {"eps": 16.0}}
    assert not [line for line in objections(made) if line.startswith("facts")]
    made["config"]["budget"]["distance"] = 0.2
    assert "facts say budget distance 0.4, the configuration 0.2" in objections(made)
