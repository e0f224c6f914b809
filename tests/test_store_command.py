"""The store as a person looks after it: what there is, what it is for, verifying, removing; nothing needed is lost."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time

import pytest
from factory import make_record
from shared import small

from udpbench.benchmark.estimate import History
from udpbench.benchmark.facts import BEGUN, FACTS
from udpbench.benchmark.stage import Stage
from udpbench.benchmark.stage_folders import StageFolder, called, contents, free, put_aside, remove, tidy, unneeded
from udpbench.benchmark.store import Store
from udpbench.commands import run as cell_command
from udpbench.commands import store as command
from udpbench.results import record

DAY = 86400


def stage(kind: str, text: str, *parents: Stage, **settings) -> Stage:
    def work(out, read, run):
        (out / "text").write_text(text)

    return Stage(kind, {"text": text, **settings}, work, {f"p{i}": p for i, p in enumerate(parents)}, title=text)


DATA = stage("data", "clean")
TRAINED = stage("train", "weights" * 100, DATA)
MADE = stage("generate", "pictures", TRAINED)


@pytest.fixture
def store(tmp_path) -> Store:
    """Data, a training and what was generated."""
    store = Store(tmp_path / "store")
    store.do(MADE)
    return store


def age(store: Store, *stages: Stage, days: float = 7) -> None:
    """As if they had last been used so long ago."""
    for one in stages:
        os.utime(store.path(one) / FACTS, (time.time() - days * DAY,) * 2)


def named(there) -> list[str]:
    return [f"{kept.kind} {kept.state}" for kept in there]


# -- what there is -----------------------------------------------------------------------------------------------------


def test_everything_in_a_store_is_listed_with_its_size_and_what_it_was_made_of(store):
    there = {kept.kind: kept for kept in contents(store)}
    assert list(there) == ["data", "generate", "train"]
    assert {kept.state for kept in there.values()} == {"finished"}
    assert there["train"].bytes == len("weights" * 100)
    assert (there["train"].key, there["train"].parents) == (TRAINED.key, {"p0": DATA.key})
    assert abs(there["train"].used - time.time()) < 60
    assert not any(kept.busy for kept in there.values())


def test_reading_a_stage_is_its_last_use_and_a_read_only_store_is_read_all_the_same(store, monkeypatch):
    age(store, DATA, TRAINED, MADE)
    Store(store.root).do(MADE)
    used = {kept.kind: time.time() - kept.used for kept in contents(store)}
    assert used["generate"] < 60
    assert min(used["data"], used["train"]) > 6 * DAY, "nobody read them"
    monkeypatch.setattr(os, "utime", lambda *_: (_ for _ in ()).throw(PermissionError("read-only")))
    Store(store.root).do(TRAINED)
    assert time.time() - contents(store)[2].used > 6 * DAY


def test_unfinished_damaged_and_shared_folders_are_told_apart(store):
    def stops(out, parents, run):
        (out / "half").write_text("half")
        raise KeyboardInterrupt

    begun = Stage("train", {"x": 1}, stops, {"images": DATA}, resumable=True)
    with pytest.raises(KeyboardInterrupt):
        store.do(begun)
    twins = [stage("train", "weights" * 100, stage("data", "clean", way=i)) for i in range(2)]
    store.do(*twins)
    shutil.copytree(store.path(DATA), store.root / "damaged" / f"data-{DATA.key}-20260101-000000-1")
    (store.path(MADE) / FACTS).write_text("{")
    there = contents(store)
    assert named(there).count("train finished") == 1
    (unfinished,) = [kept for kept in there if kept.state == "unfinished"]
    assert (unfinished.key, dict(unfinished.parents), unfinished.facts["settings"]) == (
        begun.key, {"images": DATA.key}, {"x": 1},
    )  # fmt: skip
    assert {(kept.kind, kept.aside) for kept in there if kept.state == "damaged"} == {
        ("data", True), ("generate", False),
    }  # fmt: skip
    (trained,) = [kept for kept in there if kept.kind == "train" and kept.state == "finished"]
    assert trained.keys == {TRAINED.key, *(twin.key for twin in twins)}
    begun_again = Stage("train", {"x": 1}, lambda out, parents, run: (out / "text").write_text("x"), {"images": DATA})
    (folder,) = store.do(begun_again)
    assert not (folder / BEGUN).exists()


# -- what it is called -------------------------------------------------------------------------------------------------


def test_a_stage_is_found_by_key_folder_picture_or_a_copy_of_one(store, tmp_path):
    there = contents(store)
    copy = shutil.copy(store.path(MADE) / "text", tmp_path / "elsewhere.png")
    names = [MADE.key, MADE.key[:6], f"generate/{MADE.key}", store.path(MADE), store.path(MADE) / "text", copy]
    for name in names:
        assert [kept.key for kept in called(store, there, str(name))] == [MADE.key], name


def test_what_is_no_stage_is_one_error_line(store, tmp_path):
    other = tmp_path / "other.png"
    other.write_text("another")
    for name in ("0000000000000000", "no", str(other), str(tmp_path), "../store"):
        with pytest.raises(ValueError, match="is no stage of .*; give a key") as error:
            called(store, contents(store), name)
        assert "\n" not in str(error.value)
    kept = [StageFolder(tmp_path / f"{i}", "data", f"abcd{i}", "finished", 0, 0.0) for i in range(2)]
    with pytest.raises(ValueError, match=r"'abcd' begins 2 keys \(abcd0, abcd1\); give more of it"):
        called(store, kept, "abcd")


# -- removing ----------------------------------------------------------------------------------------------------------


def test_what_no_record_names_and_nobody_used_lately_is_unneeded(store):
    age(store, DATA, TRAINED)
    assert named(unneeded(contents(store), {DATA.key})) == ["generate finished", "train finished"]
    assert named(unneeded(contents(store), {DATA.key}, time.time() - DAY)) == ["train finished"]
    assert unneeded(contents(store), {DATA.key, TRAINED.key, MADE.key}) == []


def test_tidying_meets_a_removal_of_another_process(store):
    moved = store.root / "removed" / "train-0123456789abcdef-00000000"
    moved.mkdir(parents=True)
    tidy(store)
    assert not moved.exists()
    assert moved.parent.is_dir(), "the other process is about to move a folder there"


def test_a_folder_is_needed_under_any_of_its_names(store):
    twins = [stage("train", "weights" * 100, stage("data", "clean", way=i)) for i in range(2)]
    store.do(*twins)
    assert store.path(twins[0]).is_symlink()
    assert "train finished" not in named(unneeded(contents(store), {twins[0].key}))
    (kept,) = [kept for kept in contents(store) if kept.kind == "train"]
    assert remove(store, kept)
    assert list((store.root / "train").iterdir()) == [], "no link to what is gone"


def test_what_somebody_is_at_work_on_and_what_that_reads_is_left(store):
    seen = []

    def work(out, parents, run):
        there = contents(store)
        seen.extend([free(there), unneeded(there, ()), [kept for kept in there if kept.busy]])
        seen.append(remove(Store(store.root), seen[2][0]))
        (out / "text").write_text("x")

    store.do(Stage("generate", {"more": 1}, work, {"model": TRAINED}))
    at_hand, unwanted, busy, removed = seen
    assert named(busy) == ["generate unfinished"]
    assert named(at_hand) == named(unwanted) == ["data finished", "generate finished"]
    assert removed is False


def test_what_was_used_since_it_was_looked_at_is_left(store):
    age(store, MADE)
    (seen,) = called(store, contents(store), MADE.key)
    Store(store.root).do(MADE)
    assert not remove(store, seen)
    assert store.finished(MADE)


def test_a_dropped_training_is_redone_only_if_something_needs_it_and_what_it_took_stays_known(store):
    facts, before = store.facts(TRAINED), History(store.root, "cpu").estimate(TRAINED)
    assert before is not None
    (kept,) = called(store, contents(store), TRAINED.key)
    assert remove(store, kept, keep_facts=True)
    assert not store.path(TRAINED).exists()
    again = Store(store.root)
    assert again.missing([MADE]) == []
    again.do(MADE)
    assert again.computed == []
    assert again.has_facts(TRAINED)
    assert not again.finished(TRAINED)
    assert again.facts(TRAINED) == facts
    after = History(store.root, "cpu").estimate(TRAINED)
    assert after is not None
    assert (after.seconds, after.bytes) == (before.seconds, before.bytes)
    assert named(contents(store)) == ["data finished", "generate finished", "train dropped"]
    more = stage("generate", "more", TRAINED)
    assert again.missing([more]) == [TRAINED, more]
    again.do(more)
    assert again.computed == [TRAINED.key, more.key]
    assert "train dropped" not in named(contents(store))


def test_tidying_leaves_no_trace_of_what_is_gone(store):
    (kept,) = called(store, contents(store), MADE.key)
    remove(store, kept)
    (store.root / "removed" / "left").mkdir()
    tidy(store)
    assert not [*(store.root / "removed").iterdir()]
    assert len(list((store.root / "content").iterdir())) == 2
    Store(store.root).do(MADE)
    assert (store.path(MADE) / "text").read_text() == "pictures"


def test_a_damaged_stage_is_put_aside_and_computed_anew(store):
    (store.path(DATA) / "text").write_text("other")
    (kept,) = called(store, contents(store), DATA.key)
    assert store.damage_of(kept.folder)
    aside = put_aside(store, kept)
    assert aside is not None
    assert (aside / "text").read_text() == "other"
    store = Store(store.root)
    (folder,) = store.do(DATA)
    assert (folder / "text").read_text() == "clean"


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(store, tmp_path, monkeypatch, capsys):
    """Words -> status, what was shown, what was said; a finished cell is made of the store's three stages."""
    monkeypatch.chdir(tmp_path)
    made = make_record()
    cost = made["stages"][0]
    made["stages"] = [{**cost, "name": f"{one.name} protected", "key": one.key} for one in (DATA, TRAINED, MADE)]
    record.write(tmp_path / "records" / "cell.json", made)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        try:
            status = command.main([*words, f"runtime.store={store.root}", f"runtime.records={tmp_path / 'records'}"])
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_ls_and_why_say_how_much_there_is_and_who_needs_it(run, store, tmp_path):
    store.do(stage("generate", "alone", DATA))
    status, shown, _ = run("ls", "--json", str(tmp_path / "ls.json"))
    assert status == 0
    rows = {
        line.split("│")[1].strip(): [x.strip() for x in line.split("│")[2:-1]]
        for line in shown.splitlines()
        if "│" in line
    }
    assert [rows["generate"][i] for i in (0, 1, 3, 4)] == ["2", "13 B", "1", "1"]
    assert [rows["total"][i] for i in (0, 3, 4)] == ["4", "1", "1"]
    listed = json.loads((tmp_path / "ls.json").read_text())
    assert sum(len(one["records"]) for one in listed) == 3
    assert {one["state"] for one in listed} == {"finished"}
    _, shown, _ = run("ls", "train")
    assert f"train/{TRAINED.key}" in shown
    assert "data/" not in shown
    status, shown, _ = run("why", str(store.path(TRAINED) / "text"))
    assert status == 0
    assert shown.startswith(f"train/{TRAINED.key}: train protected, finished\n")
    assert f"made of p0: data/{DATA.key}, finished" in shown
    assert "of it were made: 1 generate" in shown
    assert "    text: weightsweights" in shown
    assert "needed by 1 record under" in shown
    assert "cell.json: data=toyworld subject=0 protect=eudp attack=impress" in shown


@pytest.mark.slow
def test_gc_says_and_with_yes_removes_what_no_record_names(run, store, tmp_path):
    alone = stage("generate", "alone", DATA)
    store.do(alone)
    _, shown, _ = run("gc", "--yes")
    assert "left: 1 generate, 5 B, used in the last 1 days (--days 0 takes them, too)" in shown
    assert "nothing to remove" in shown
    _, shown, _ = run("gc", "--days", "0")
    assert "nothing was removed; --yes removes them" in shown
    assert store.finished(alone)
    status, shown, _ = run("gc", "--days", "0", "--yes")
    assert (status, "removed: 1 generate, 5 B" in shown) == (0, True)
    assert not store.path(alone).exists()
    assert all(map(store.finished, (DATA, TRAINED, MADE)))
    (tmp_path / "records" / "broken.json").write_text('{"schema": 2}')
    status, _, said = run("gc", "--days", "0", "--yes")
    assert status == 2
    assert said.startswith(f"error: {tmp_path / 'records' / 'broken.json'}: record lacks ")
    shutil.rmtree(tmp_path / "records")
    status, _, said = run("gc", "--days", "0", "--yes")
    assert (status, said.count("\n")) == (2, 1)
    assert all(map(store.finished, (DATA, TRAINED, MADE))), "without records everything would be unneeded"


@pytest.mark.slow
def test_gc_leaves_what_a_cell_without_a_record_keeps_for_its_scores(run, store):
    store.do(alone := stage("generate", "alone", DATA))
    store.keep("cell", [alone.key])
    assert "nothing to remove" in run("gc", "--days", "0", "--yes")[1]
    store.keep("cell", [])
    assert "removed: 1 generate, 5 B" in run("gc", "--days", "0", "--yes")[1]


@pytest.mark.slow
def test_gc_waits_for_folders_of_records_that_are_not_there_until_they_are_forgotten(run, store, tmp_path):
    alone, words = stage("generate", "alone", DATA), ("gc", "--days", "0", "--yes")
    store.do(alone)
    (tmp_path / "disk").mkdir()
    store.remember_records(tmp_path / "disk")
    (tmp_path / "disk").rmdir()  # it is not mounted
    status, _, said = run(*words)
    assert (status, said.count("\n")) == (2, 1)
    assert f"records were written to {tmp_path / 'disk'}, which is not there now" in said
    assert store.finished(alone)
    status, shown, _ = run(*words, "--forget")
    assert (status, "removed: 1 generate, 5 B" in shown) == (0, True)
    assert run(*words)[0] == 0, "it is forgotten"


@pytest.mark.slow
def test_rm_drops_weights_of_finished_cells_only_and_takes_names(run, store, tmp_path):
    others = stage("train", "of a failed cell", DATA)
    store.do(others)
    failed = make_record(error="it failed")
    failed["stages"] = [{**failed["stages"][0], "name": "train clean", "key": others.key}]
    record.write(tmp_path / "records" / "failed.json", failed)
    _, shown, _ = run("rm", "--weights")
    assert "nothing was removed" in shown
    status, shown, _ = run("rm", "--weights", "--yes")
    assert (status, "removed: 1 train, 700 B" in shown) == (0, True)
    assert not store.finished(TRAINED)
    assert store.has_facts(TRAINED)
    assert store.finished(others)
    assert store.finished(MADE)
    status, shown, _ = run("rm", MADE.key, "--yes")
    assert status == 0
    assert "1 of them are named by 1 records" in shown
    assert not store.finished(MADE)
    for words in (["rm"], ["rm", "--weights", "data"], ["rm", "nonesuch"], ["gc", "--days", "-1"], ["why"], ["lose"]):
        status, _, said = run(*words)
        assert (status, said.count("\n")) == (2, 1), words
        assert said.startswith("error: "), words


def test_what_somebody_else_keeps_in_a_store_is_left_alone(run, store):
    notes = [store.root / "train" / "my notes" / "text", store.root / "backup" / "2026" / "text", store.root / "README"]
    for file in notes:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    assert named(contents(store)) == ["data finished", "generate finished", "train finished"]
    assert run("verify", "--aside")[0] == 0
    run("gc", "--days", "0", "--yes")
    assert [file.read_text() for file in notes] == ["mine"] * 3


@pytest.mark.slow
def test_verify_names_what_is_damaged_and_puts_it_aside_if_asked(run, store):
    status, shown, _ = run("verify")
    assert (status, "3 stages verified" in shown, "none damaged" in shown) == (0, True, True)
    (store.path(MADE) / "text").write_text("Pictures")
    status, shown, _ = run("verify", "runtime.verify=size")
    assert status == 1
    assert f"damaged: {store.path(MADE)}: text is not what was written\n" in shown
    assert run("verify", "train", "data")[0] == 0
    status, shown, _ = run("verify", "--aside")
    assert (status, f"it is now {store.root / 'damaged' / f'generate-{MADE.key}'}" in shown) == (1, True)
    assert not store.path(MADE).exists()
    assert run("verify")[0] == 0
    assert "damaged: 1, " in run("ls")[1]
    assert run("rm", "damaged", "--yes")[0] == 0
    assert not list((store.root / "damaged").iterdir())


@pytest.mark.slow
def test_a_finished_cell_shows_its_record_without_its_weights(tiny, tmp_path, capsys, monkeypatch):
    """A real cell: nothing is computed after its weights were dropped, and its record says the same."""
    words = [
        *small(tiny), "data.train=4", "data.reference=8", "data.validation=4", "data.heldout=8", "task.steps=4",
        "task.sample_steps=2", "protect=noise", "arms=[clean]", "runtime.device=cpu", "runtime.workers=1",
    ]  # fmt: skip

    def run_cell() -> tuple[str, dict]:
        monkeypatch.setattr(sys, "argv", ["udpbench", *words, f"runtime.out={tmp_path / 'out'}"])
        cell_command.run()
        said = capsys.readouterr().err
        (path,) = (tmp_path / "out" / "records").glob("*.json")
        found = json.loads(path.read_text())
        costs = [(s["name"], s["key"], s["seconds"]) for s in found["stages"]]
        return said, {"arms": found["arms"], "costs": costs}

    _, before = run_cell()
    shutil.rmtree(tmp_path / "out" / "store" / "data")
    next((tmp_path / "out").glob("cells/*/sheet.png")).unlink()
    said, after = run_cell()
    assert "; 1 stages to do" in said, "the pictures that the sheet shows"
    assert after["arms"] == before["arms"]
    before = after
    assert command.main(["rm", "--weights", "--yes", f"runtime.out={tmp_path / 'out'}"]) == 0
    assert "removed: 1 train, " in capsys.readouterr().out
    assert not list((tmp_path / "out" / "store" / "train").iterdir())
    said, after = run_cell()
    assert "; 0 stages to do" in said
    assert after == before
    assert any(name == "train clean" for name, *_ in before["costs"])
    assert command.main(["gc", "--days", "0", "--yes", f"runtime.out={tmp_path / 'out'}"]) == 0
    assert "nothing to remove" in capsys.readouterr().out
