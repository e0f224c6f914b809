"""A cell again from its record: the same numbers, or what differs; new metrics without new trainings."""

from __future__ import annotations

import copy
import json
import shutil
import signal
from pathlib import Path

import pytest
from cells import measured, once
from factory import make_record, shifted
from omegaconf import OmegaConf
from shared import composed

from udpbench.commands import rerun
from udpbench.commands import store as store_command
from udpbench.core.errors import Stopped
from udpbench.results import record
from udpbench.results.agreement import changed, compared, other_keys

CELL = (
    "protect=noise", "arms=[clean,protected]", "data.train=2", "data.reference=4", "data.validation=0", "data.heldout=0", "task.steps=3",
    "task.pictures=4", "task.sample_steps=2", "metrics.bundle.kernel_distance.minimum=4", "runtime.device=cpu", "runtime.workers=1", "seed=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory) -> Path:
    """Where a cell was run; with settings that are no defaults."""
    out = tmp_path_factory.mktemp("done")
    cfg = copy.deepcopy(composed(tiny, *CELL))
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.update(cfg, "runtime.out", str(out))
    once(cfg)
    return out


@pytest.fixture
def run(done, capsys, monkeypatch):
    """Words after the record -> status, what was shown, what was said."""
    (path,) = (done / "records").glob("*.json")

    def run(*words: str, of: Path = path) -> tuple[int, str, str]:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        given = [] if any(word.startswith("runtime.out=") for word in words) else [f"runtime.out={done}"]
        try:
            status = rerun.main([str(of), *given, "runtime.device=cpu", "runtime.workers=1", *words])
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    run.record = path
    return run


@pytest.mark.slow
def test_a_cell_computed_anew_from_its_record_agrees(run, tmp_path):
    status, shown, said = run("--store", str(tmp_path / "new"), f"runtime.out={tmp_path / 'out'}")
    assert status == 0, shown + said
    assert shown.startswith("made as the record was: same code, machine and settings\n")
    assert "nothing was computed" not in shown
    assert "agrees: of " in shown
    assert shown.rstrip().endswith(" equal")
    (again,) = record.read_records(tmp_path / "out" / "reruns")
    (first,) = record.read_records(run.record.parent)
    assert measured(again)[:4] == measured(first)[:4]
    assert {stage["key"] for stage in again["stages"]} == {stage["key"] for stage in first["stages"]}
    assert set(again["provenance"]["parts"]["victim"]) == {"version", "identity"}
    assert again["cell"]["seed"] == 3
    assert not any(stage["cached"] for stage in again["stages"])


@pytest.mark.slow
def test_a_signal_ends_it_where_it_can_be_resumed(run, monkeypatch):
    def execute(ready, *_, **__):
        signal.raise_signal(signal.SIGUSR1)
        assert ready.store.stop.is_set()
        raise Stopped

    monkeypatch.setattr("udpbench.commands.executing.execute", execute)
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        status, _, said = run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert status == 128 + signal.SIGUSR1
    assert "SIGUSR1: interrupted; the same command goes on where this one stopped" in said


@pytest.mark.slow
def test_what_is_finished_is_found_and_said(run):
    status, shown, said = run()
    assert status == 0
    assert "; 0 stages to do" in said
    assert "nothing was computed: every stage was found finished; --store DIR" in shown


@pytest.mark.slow
def test_numbers_that_cannot_be_had_again_do_not_agree(run, tmp_path):
    spoiled = json.loads(run.record.read_text())
    spoiled["arms"]["protected"]["metrics"]["kd_efflite0"]["value"] += 1
    spoiled["provenance"]["packages"]["torch"] = "1.0"
    spoiled["provenance"]["parts"]["protect"]["version"] = 0
    (tmp_path / "spoiled.json").write_text(json.dumps(spoiled))
    status, shown, _ = run(of=tmp_path / "spoiled.json")
    assert status == 1
    assert '  package torch: "1.0" in the record, ' in shown
    assert "  protect.version: 0 in the record, " in shown
    assert "does not agree: of " in shown
    assert " 1 no seed SD to compare with" in shown


@pytest.mark.slow
def test_words_change_settings_and_options_and_nothing_else(run):
    (old,) = record.read_records(run.record.parent)
    cfg, choices = rerun.rebuilt(old, ["seed=5", "attack=jpeg", "budget.eps=4", "runtime.batch=7", "~task.curve"])
    made = OmegaConf.to_container(cfg, resolve=True)
    assert (made["seed"], made["budget"]["eps"], made["runtime"]["batch"]) == (5, 4, 7)
    assert made["attack"]["_target_"].endswith("Jpeg")
    assert choices["attack"] == "jpeg"
    assert "curve" not in made["task"]
    assert made["data"] == old["config"]["data"]
    assert made["track"]["_target_"].endswith("Nothing")
    for words, told in ((["task.nonesuch=1"], "error: no setting 'task.nonesuch'; allowed are "), (["experiment=udp"], "more than one part"), (["protect=nonesuch"], "nonesuch")):  # fmt: skip
        status, _, said = run(*words)
        assert (status, said.count("\n")) == (2, 1), said
        assert said.startswith("error: ")
        assert told in said
    status, _, said = run(of=run.record.parent / "missing.json")
    assert status == 2
    assert "there is no file" in said


@pytest.mark.slow
def test_a_new_metric_scores_the_pictures_that_were_kept_and_trains_nothing(run, done, tmp_path, capsys):
    """Also where the trained weights of finished cells were removed and everything unneeded, too."""
    shutil.copytree(done, tmp_path / "out", symlinks=True, ignore=shutil.ignore_patterns("reruns"))
    there = f"runtime.out={tmp_path / 'out'}"
    assert store_command.main(["rm", "--weights", "--yes", there]) == 0
    assert store_command.main(["gc", "--days", "0", "--yes", there]) == 0
    assert not list((tmp_path / "out" / "store" / "train").iterdir())
    capsys.readouterr()
    (tmp_path / "out" / "store" / "train").rmdir()
    words = ["+metric@metrics.extra.similarity=similarity_efflite0", "metrics.extra.similarity.features.blur_sigma=2"]
    words.insert(0, "~metrics.bundle.similarity")
    status, shown, said = run(*words, there)
    assert status == 1, "the same scores of smoother pictures are others: " + shown + said
    (again,) = record.read_records(tmp_path / "out" / "reruns")
    kinds = {stage["name"].split()[0] for stage in again["stages"] if not stage["cached"]}
    assert kinds == {"score"}
    assert not (tmp_path / "out" / "store" / "train").exists()
    assert "sim_train_efflite0" in again["arms"]["protected"]["metrics"]


# -- two records -------------------------------------------------------------------------------------------------------


def test_scores_are_compared_with_how_far_seeds_of_clean_victims_lie_apart():
    """SD of 40, 42, 44 is 2, with 2 degrees of freedom: two seeds lie up to 4.303 * sqrt(2) * 2 apart."""
    here = {"data": {"train": 12, "path": "here"}}
    old, others = make_record(settings=here), []
    for seed in (1, 2):
        others.append(make_record(shifted(2.0 * seed), seed=seed, settings={"data": {"train": 12, "path": f"{seed}"}}))
    further = make_record(shifted(100.0), seed=3, label="another model")
    fewer = make_record(shifted(50.0), seed=4, settings={"data": {"train": 6}})
    new = make_record(shifted(0.0, protected=12.1, purified=-12.2, noise=1e-9))
    del new["arms"]["noise"]["metrics"]["similarity"]
    new["arms"]["clean"]["metrics"]["further"] = new["arms"]["clean"]["metrics"]["distance"]
    found = {(row.arm, row.metric): row for row in compared(old, new, [*others, further, fewer])}
    assert {round(row.spread or 0, 3) for row in found.values() if row.metric == "distance"} == {12.17}
    verdicts = {key: row.verdict for key, row in found.items()}
    assert verdicts["clean", "distance"] == verdicts["noise", "distance"] == "equal"
    assert verdicts["protected", "distance"] == "as two seeds"
    assert verdicts["purified", "distance"] == "further than two seeds"
    assert verdicts["noise", "similarity"] == "missing now"
    assert verdicts["clean", "further"] == "new"
    alone = {(row.arm, row.metric): row.verdict for row in compared(old, new)}
    assert alone["protected", "distance"] == "no seed SD to compare with"


def test_clean_victims_of_other_weights_or_pictures_say_nothing_of_seeds():
    """The names of models and data in folders are the same for all of them: ``local``, ``folder``."""

    def made(seed: int, **identities: dict[str, str]) -> record.Record:
        found = make_record(shifted(2.0 * seed), seed=seed, data="folder", victim="local")
        found["provenance"]["parts"] = {name: {"version": 1, "identity": of} for name, of in identities.items()}
        return found

    mine, other = {"unet": "12ab"}, {"unet": "34cd"}
    old, new = made(0, victim=mine, data={"pictures": "a"}), make_record(shifted(1.0))

    def spread(*others: record.Record) -> float | None:
        (row,) = [row for row in compared(old, new, others) if (row.arm, row.metric) == ("clean", "distance")]
        return row.spread

    assert spread(made(1, victim=mine, data={"pictures": "a"}))
    assert spread(made(1, data={"pictures": "a"})), "an older record does not say it"
    assert spread(made(1)), "of both"
    assert spread(made(1, victim=other, data={"pictures": "a"})) is None
    assert spread(made(1, victim=mine, data={"pictures": "b"})) is None


@pytest.mark.slow
def test_what_was_moved_is_told_with_the_setting_that_says_where_it_is(run, tmp_path):
    spoiled = json.loads(run.record.read_text())
    spoiled["config"]["data"] = {
        "_target_": "udpbench.data.folder.Folder", "path": "/once/here", "reference": "/once/here/more",
        "prompt": "a {token} dog", "size": 16,
    }  # fmt: skip
    (tmp_path / "moved.json").write_text(json.dumps(spoiled))
    status, _, said = run(of=tmp_path / "moved.json")
    assert status == 2
    (line,) = [line for line in said.splitlines() if "/once/here" in line]
    hint = "; if it was moved, say data.reference=PATH" if "/more" in line else "; if it was moved, say data.path=PATH"
    assert line.endswith(hint)


def test_differences_are_told_by_their_place():
    old, new = make_record(), make_record(settings={"protect": {"steps": 50}, "runtime": {"device": "cuda"}})
    new["provenance"]["python"] = "3.12.1"
    new["stages"][0]["key"] = "cd34"
    lines = changed(old, new)
    assert 'python: "3.11.7" in the record, "3.12.1" now' in lines
    assert "setting protect.steps: not there in the record, 50 now" in lines
    assert not any("runtime" in line for line in lines)
    assert any(line.startswith("versions of parts: ") for line in lines)
    assert other_keys(old, new) == ["protect eudp"]
    assert changed({**old, "provenance": {**old["provenance"], "parts": {"a": {"version": 1}}}}, old) == [
        "a.version: 1 in the record, not there now"
    ]
