"""Pictures made by one process and scored by another, and what two commands at once may not share."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from cells import Notes, measured, once
from shared import composed

from udpbench.benchmark.store import Store
from udpbench.commands import executing, preparing
from udpbench.core.errors import ConfigError
from udpbench.results.record import read_records

pytestmark = pytest.mark.slow

CELL = (
    "protect=noise", "arms=[clean,protected]", "data.train=2", "data.reference=4", "data.validation=0", "data.heldout=0", "task.steps=2",
    "task.pictures=4", "task.sample_steps=1", "metrics.bundle.kernel_distance.minimum=4", "runtime.device=cpu", "runtime.workers=1",
)  # fmt: skip


def test_pictures_made_at_one_place_and_scored_at_another_make_the_record_of_one_go(tiny, tmp_path):
    def cell(out: str, stages: str = "all"):
        return composed(tiny, *CELL, f"runtime.out={tmp_path / out}", f"runtime.stages={stages}")

    whole = once(cell("one"))
    with pytest.raises(ConfigError, match="runtime.stages=scores: 6 stages are not done yet, first data clean; "
                       "the same command with runtime.stages=pictures does them"):  # fmt: skip
        once(cell("two", "scores"))
    assert once(cell("two", "pictures")) is None
    assert not (tmp_path / "two" / "records").exists()
    assert not (tmp_path / "two" / "store" / "score").exists()
    assert (store := Store(tmp_path / "two" / "store")).kept >= {
        path.name for path in (store.root / "generate").iterdir()
    }
    scored = once(cell("two", "scores"))
    assert {s["name"].split()[0] for s in scored["stages"] if not s["cached"]} == {"score"}
    assert measured(scored) == measured(whole)
    assert not store.kept
    assert [r["status"] for r in read_records(tmp_path / "two" / "records")] == ["ok"]


def test_that_no_primary_score_can_be_measured_is_said_before_the_work_and_once(tiny, tmp_path):
    said = []
    for _ in range(2):
        notes = Notes()
        once(
            composed(tiny, *CELL, "data.reference=0", "metrics.primary=[kd_efflite0]", f"runtime.out={tmp_path}"), notes
        )
        said.append([line for line in notes.said if "no primary score" in line])
    assert [len(lines) for lines in said] == [1, 0]
    assert "no reference pictures (data.reference)" in said[0][0]


def test_sweeps_that_start_in_the_same_second_share_no_folder():
    one, two = (preparing.composed([]).hydra for _ in range(2))
    for kind in ("run", "sweep"):
        mine, other = (config[kind].dir.rpartition("-")[2] for config in (one, two))
        assert mine != other
        assert len(mine) == 8
    assert one.callbacks.sweep.id != two.callbacks.sweep.id


def test_a_record_that_cannot_be_read_now_is_not_written_over(tiny, tmp_path, monkeypatch):
    cfg = composed(tiny, *CELL, f"runtime.out={tmp_path}")
    first = once(cfg)
    (path,) = (tmp_path / "records").glob("*.json")
    read = Path.read_text

    def broken(self, *args, **kwargs):
        if self == path:
            raise OSError(errno.EIO, "Input/output error")
        return read(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", broken)
    assert not executing._may_overwrite(path)
    once(cfg)
    monkeypatch.undo()
    assert [measured(record) for record in read_records(tmp_path / "records")] == [measured(first)] * 2
    path.write_text("{")
    assert executing._may_overwrite(path)
