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
from udpbench.results import record
from udpbench.results.submission import PACKAGES, PARTS, objections


def submitted(**cell: Any) -> Any:
    """A record without objections."""
    made: Any = make_record(**cell)
    made["stages"][0]["commit"] = "0123456789abcdef"
    for arm, scores in made["arms"].items():
        scores["key"] = f"key-{arm}"
        made["stages"].append({**made["stages"][0], "name": f"generate {arm}", "key": scores["key"]})
    made["provenance"] |= {"packages": dict.fromkeys(PACKAGES, "1.0"), "device": "cpu: x"}
    made["provenance"]["parts"] = {name: {"version": 1} for name in PARTS}
    for name in ROLES:
        made["provenance"]["parts"][name]["identity"] = {"unet": "00ff"}
    return made


def test_a_whole_record_of_a_clean_commit_has_none():
    assert objections(submitted()) == []


@pytest.mark.parametrize("experiment", ["make_run", "cifar10"])
def test_records_that_cells_wrote_have_none(experiment):
    folder = Path(__file__).parents[1] / "experiments" / experiment
    made = {path.name: record.read(path) for path in folder.rglob("*-s*.json")}
    assert made
    assert {name: lines for name, one in made.items() if (lines := objections(one))} == {}


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
    "label 'embedded world (64 px)' does not go with facts.embedded False": at("facts", "embedded", value=False),
    "label 'sd15' does not go with facts.embedded True": at("label", value="sd15"),
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
