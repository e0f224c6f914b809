"""A whole tiny cell whose files are damaged, or whose process is killed, anywhere: the same record, or one clear error."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from cells import CELLS, ORDER, Cells, Notes, check_record, drop, fork, measured, once, quietly
from drawn import DAMAGE, DRAWS, SEED, sampled, spoil
from hydra import compose, initialize_config_dir
from shared import CONF, composed

from udpbench.benchmark.facts import FACTS
from udpbench.benchmark.stage import Stage, with_ancestors
from udpbench.benchmark.store import Store
from udpbench.commands.preparing import prepare
from udpbench.core.images import write_png
from udpbench.interfaces import Protection

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> Cells:
    return Cells(tiny, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def stages(whole) -> list[tuple[Path, Stage]]:
    """All finished stages of the cells, with their stores."""
    cells = [whole(name) for name in CELLS]
    graphs = [(where / "store", prepare(configured(where)).graph) for where, _, configured in cells]
    return [(store, stage) for store, graph in graphs for stage in with_ancestors(graph.wanted)]


def files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def copied(store: Path, stage: Stage, to: Path) -> tuple[Store, Notes, Path]:
    """A store in ``to`` that holds the finished stage and its parents alone, what it says, the folder of the stage."""
    made = Store(to, log=(notes := Notes()), batch=32, grad_batch=32)
    for each in (stage, *stage.parents.values()):
        shutil.copytree((store / each.name / each.key).resolve(), made.path(each), dirs_exist_ok=True)
    return made, notes, made.path(stage)


# -- damage of what is finished ----------------------------------------------------------------------------------------


def test_any_damaged_file_of_a_stage_is_said_and_made_anew(stages, tmp_path):
    population = [(*s, f, how) for s in stages for f in files(s[0] / s[1].name / s[1].key) for how in DAMAGE]
    for (source, stage, file, how), at in sampled(population, 12):
        store, notes, folder = copied(source, stage, tmp_path / "store")
        before, case = store.facts(stage)["content"], (str(stage), file, how, at)
        spoil(folder / file, DAMAGE[how]((folder / file).read_bytes(), at))
        store.do(stage)
        assert [f"{folder} is damaged" in line for line in notes.said] == [True], (case, notes.said)
        assert store.facts(stage)["content"] == before, case
        assert not store.damage(stage)
        shutil.rmtree(tmp_path / "store")


def test_any_damaged_file_is_said_and_the_record_is_as_before(whole, tmp_path):
    """Of the whole cell, its record and notes included."""
    population = [(n, f, how) for n in CELLS for f in files(whole(n)[0]) for how in DAMAGE]
    for (name, file, how), at in sampled(population, 4, one_of=20):
        (where, record, configured), out = whole(name), tmp_path / "again"
        shutil.copytree(where, out, symlinks=True)
        spoil(out / file, DAMAGE[how]((where / file).read_bytes(), at))
        stage = file.parts[1] if file.parts[0] == "store" else ""
        if stage in ORDER:  # else nothing need read it
            drop(out, ORDER[ORDER.index(stage) + 1 :])
        notes = Notes()
        assert measured(once(configured(out), notes)) == measured(record), (name, file, how, at)
        damaged = [line for line in notes.said if "is damaged" in line]
        assert bool(damaged) == (stage in ORDER), (name, file, how, at, notes.said)
        shutil.rmtree(out)


# -- damage of what is not -----------------------------------------------------------------------------------------------


def test_whatever_a_power_loss_left_of_an_unfinished_stage_it_is_finished_as_in_one_go(stages, tmp_path):
    """A stage as if the power had gone before it was published: some of its files are there, one of them is cut."""
    population = [(*s, f, how) for s in stages for f in files(s[0] / s[1].name / s[1].key) for how in DAMAGE]
    population = [case for case in population if case[2].name != FACTS and case[3] != "flip"]
    for (source, stage, file, how), at in sampled(population, 12):
        store, notes, folder = copied(source, stage, tmp_path / "store")
        before, case = store.facts(stage)["content"], (str(stage), file, how, at)
        part = folder.rename(folder.with_name(f"{folder.name}.part"))
        (part / FACTS).unlink()
        there = random.Random(at)
        for other in files(part):
            if other != file and there.random() < at:
                (part / other).unlink()
        spoil(part / file, DAMAGE[how]((part / file).read_bytes(), at))
        store.do(stage)
        assert all(line.endswith("begins anew") for line in notes.said), (case, notes.said)
        assert store.facts(stage)["content"] == before, case
        assert not part.exists()
        shutil.rmtree(tmp_path / "store")


# -- kills -------------------------------------------------------------------------------------------------------------


def test_killed_anywhere_and_resumed_the_record_is_as_in_one_go(whole, tmp_path):
    _, record, configured = whole("training")
    rng, began = random.Random(int(SEED or 0)), time.monotonic()
    once(configured(tmp_path / "timed"))
    seconds = time.monotonic() - began
    kills, wanted, out = 0, max(3, DRAWS // 20), tmp_path / "0"
    while kills < wanted:
        process = fork.Process(target=quietly, args=(configured(out),))
        process.start()
        process.join(rng.uniform(0, seconds))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
            continue
        assert process.exitcode == 0
        check_record(out, record)
        out = tmp_path / str(kills)
    notes = Notes()
    once(configured(out), notes)
    check_record(out, record)
    assert not [line for line in notes.said if "damaged" in line]
    assert not [path for path in out.glob("store/*/*.part") if path.is_dir()]


# -- what changes, and what ends the process -----------------------------------------------------------------------------


def test_pictures_exchanged_after_the_start_are_told_and_nothing_is_kept_under_their_key(tiny, tmp_path, pictures):
    folder = tmp_path / "mine"
    for i, x in enumerate(pictures[:2]):
        write_png(folder / f"{i}.png", x)
    words = ("data=folder", f"data.path={folder}", "data.prompt='a {token} dog'", "arms=[pretrained]", "protect=none")
    cfg = composed(tiny, *words, f"runtime.out={tmp_path / 'out'}", "task.pictures=2")
    ready = prepare(cfg)
    write_png(folder / "1.png", pictures[2])
    with pytest.raises(
        ValueError, match="folder: the files that it reads changed meanwhile; run the same command again"
    ):
        ready.store.do(ready.graph.data)
    assert not ready.store.finished(ready.graph.data)


def test_pictures_by_exchanged_weights_are_not_gone_on_with_when_the_files_are_put_back(tiny, tmp_path):
    model = shutil.copytree(tiny, tmp_path / "model")
    ready = prepare(
        composed(model, "arms=[pretrained]", "protect=none", f"runtime.out={tmp_path / 'out'}", "task.pictures=2")
    )
    store, made = ready.store, ready.graph.arms["pretrained"].final
    exchanged = model / "unet" / "config.json"
    store.do(ready.graph.data)
    before = exchanged.read_bytes()
    exchanged.write_bytes(before + b" ")
    with pytest.raises(ValueError, match="the files that it reads changed meanwhile"):
        store.do(made)
    exchanged.write_bytes(before)
    assert made.resumable
    assert not [*store.path(made).parent.rglob("*.png")]


class Exits(Protection):
    """Ends the process where it should keep numbers."""

    def __init__(self) -> None:
        sys.exit(3)


class ExitsLater(Protection):
    """Ends the process where it should look for what is missing."""

    def check(self) -> None:
        sys.exit(4)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("Exits", "none: its constructor tried to end the process (SystemExit 3)"),
        ("ExitsLater", "a method tried to end the process (SystemExit 4) while it was looked at"),
    ],
)
def test_a_method_that_ends_the_process_before_any_work_is_one_line(tiny, kind, told):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["model=local", "family=micro", f"model.path={tiny}", "model.dtype=fp32", "data.size=16",
                                 "track=none", "protect=none", f"protect._target_=test_drawn_damage.{kind}"], return_hydra_config=True)  # fmt: skip
    with pytest.raises(ValueError) as error:
        prepare(cfg)
    assert str(error.value).splitlines() == [told]
