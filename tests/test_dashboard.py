"""What a tracker is shown of a finished cell: every score, the primary ones as charts, numbers to compare runs by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from factory import SCORES, make_record
from PIL import Image

from udpbench.tracking import dashboard
from udpbench.tracking.track_jsonl import Jsonl
from udpbench.tracking.track_wandb import Wandb

pytestmark = pytest.mark.slow  # every test composes a configuration or starts a process


@pytest.fixture
def record():
    found = make_record(settings={"task": {"steps": 150}})
    for arm in ("clean", "protected"):
        found["arms"][arm]["curve"] = {s: {"distance": 10 * float(s)} for s in ("0.5", "1", "2")}
    return found


@pytest.fixture
def shown(record, tmp_path):
    """What was shown of ``record``: the events by kind."""
    log = Jsonl()
    log.start("ab12", "group", {}, tmp_path)
    dashboard.mirror(record, Path("sheet.png"), log)
    log.finish("ok")
    events = [json.loads(line) for line in (tmp_path / "track.jsonl").read_text().splitlines()]
    return {kind: [e for e in events if e["event"] == kind] for kind in {e["event"] for e in events}}


def test_the_sheet_and_every_score_are_there(shown):
    assert [e["paths"] for e in shown["images"]] == [["sheet.png"]]
    scores, cells = shown["table"]
    assert len(scores["rows"]) == 3 * len(SCORES)  # two metrics and one that is absent
    (row,) = cells["rows"]
    assert cells["name"] == "cells"
    assert (row["protect"], row["seed"], row["effect/distance"], row["residual/distance"]) == ("eudp", 0, 30.0, 10.0)
    assert "effect/similarity" not in row  # not primary


def test_some_pictures_of_every_arm_are_shown(record, tmp_path):
    for kind in ("made", "given"):
        (tmp_path / kind).mkdir()
        for i in range(9):
            Image.new("RGB", (8, 8)).save(tmp_path / kind / f"{i}.png")
    record["arms"]["clean"]["images"] = str(tmp_path / "made")
    record["arms"]["protected"]["pictures"] = str(tmp_path / "given")
    found = {name: [path.name for path in paths] for name, paths in dashboard.pictures(record)}
    four = [f"{i}.png" for i in range(4)]
    assert found == {"pictures made/clean": four, "pictures given/protected": four}


def test_a_chart_of_the_arms_for_each_primary_score(shown):
    (chart,) = shown["bars"]
    assert chart["name"] == "distance by arm"
    assert chart["values"] == {arm: distance for arm, (distance, _) in SCORES.items()}


def test_scores_along_the_training_stand_at_their_steps(shown):
    points = [(e["name"], e["step"], e["value"]) for e in shown["scalar"]]
    assert sorted(points) == [
        (f"curve/{arm}/distance", step, value)
        for arm in ("clean", "protected")
        for step, value in ((75, 5.0), (150, 10.0), (300, 20.0))
    ]


def test_scores_of_a_task_without_steps_stand_at_percents_of_the_training(record):
    record["arms"] = {"clean": record["arms"]["clean"] | {"curve": {"0.5": {"distance": 3.0}}}}
    record["config"]["task"] = {}
    assert list(dashboard.along_training(record)) == [("curve/clean/distance", 3.0, 50)]


def test_no_curve_overwrites_a_number_that_runs_are_compared_by(record, tmp_path, monkeypatch):
    """wandb's summary holds the last value of every curve; what was set by hand is lost if a curve of that name follows."""
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home"))
    log = Wandb()
    log.start("ab12", "group", {}, tmp_path / "cell")
    Image.new("RGB", (8, 8)).save(tmp_path / "sheet.png")
    dashboard.mirror(record, tmp_path / "sheet.png", log)
    log.flush()
    found = dict(log.opened.summary)
    log.finish("ok")
    assert found["protected/distance"] == 70.0
    assert found["curve/protected/distance"] == 20.0


def test_runs_are_compared_by_effect_and_residual(shown):
    (event,) = shown["summary"]
    found = event["values"]
    assert found["protected/similarity"] == 0.40
    assert found["effect/distance"] == 70.0 - 40.0
    assert found["effect/similarity"] == pytest.approx(0.80 - 0.40)  # +: better protected
    assert found["residual/distance"] == 55.0 - 45.0


def test_nothing_is_derived_from_arms_that_are_not_there():
    found = dashboard.summary(make_record({"clean": (40.0, 0.8), "upper_bound": (20.0, 0.9)}))
    assert set(found) == {
        f"{arm}/{metric}" for arm in ("clean", "upper_bound") for metric in ("distance", "similarity")
    }
