"""A whole tiny cell whose files are damaged, or whose process is killed, anywhere: the same record, or one clear error."""

from __future__ import annotations

import copy
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from shared import CONF, composed

from udpbench.benchmark.store import FACTS
from udpbench.commands.common import prepare
from udpbench.commands.run import execute
from udpbench.core.images import write_png
from udpbench.interfaces import Log, Protection
from udpbench.results.record import read_records
from udpbench.results.schema import Record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
DRAWS = int(os.environ.get("UDPBENCH_DRAWS", "0"))
CELL = (
    "protect=eudp", "protect.rounds=1", "protect.model_steps=1", "protect.image_steps=2", "protect.samples=1", "attack=jpeg",
    "task.steps=4", "task.save_every=1", "task.pictures=4", "task.sample_steps=2", "arms=[clean,purified]", "data.reference=4",
    "data.validation=4", "data.heldout=1", "data.train=2", "metrics.bundle.kernel_distance.minimum=4", "runtime.device=cpu", "runtime.threads=1",
    "runtime.workers=1", "task.curve=[0.5,1.0]", "++task.prior_weight=1.0", "++task.prior_images=2",
)  # fmt: skip
fork = multiprocessing.get_context("fork")  # children start without importing torch anew


class Notes(Log):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def configured(tiny) -> Callable[[Path], DictConfig]:
    """The configuration of the cell, with its results in a folder."""
    base = composed(tiny, *CELL)

    def make(out: Path) -> DictConfig:
        cfg = copy.deepcopy(base)
        OmegaConf.set_readonly(cfg, False)
        OmegaConf.update(cfg, "runtime.out", str(out))
        return cfg

    return make


def once(cfg: DictConfig, log: Log | None = None) -> Record:
    ready = prepare(cfg, log)
    return execute(ready, OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), shown=False)


def measured(record: Record) -> Any:
    """What a record says that does not depend on the time and on what was there already."""
    arms = {
        name: {k: v for k, v in arm.items() if k not in ("images", "pictures")} for name, arm in record["arms"].items()
    }
    return arms, record["perturbation"], record["counts"], record["flags"], [stage["key"] for stage in record["stages"]]


@pytest.fixture(scope="module")
def whole(configured, tmp_path_factory) -> tuple[Path, Record, float]:
    """The cell done in one go: its folder, its record and the seconds it took."""
    out, began = tmp_path_factory.mktemp("whole"), time.monotonic()
    return out, once(configured(out)), time.monotonic() - began


def drawn(population: list[Any], usual: int) -> list[Any]:
    """So many of them, or $UDPBENCH_DRAWS if that is more; the same in every run."""
    return random.Random(0).sample(population, min(max(usual, DRAWS), len(population)))


# -- damage of what is finished ----------------------------------------------------------------------------------------


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


HARM: dict[str, Callable[[Path], Any]] = {
    "flip": flip,
    "truncate": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "delete": lambda file: file.unlink(),
}


def files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


ORDER = ("data", "class", "protect", "attack", "train", "generate", "score", "content")


def test_any_damaged_file_is_said_and_the_record_is_as_before(configured, whole, tmp_path):
    where, record, _ = whole
    for file, harm in drawn([(f, h) for f in files(where) for h in HARM if (where / f).stat().st_size], 6):
        out = tmp_path / "again"
        shutil.copytree(where, out, symlinks=True)
        HARM[harm](out / file)
        stage = file.parts[1] if file.parts[0] == "store" else ""
        for later in ORDER[ORDER.index(stage) + 1 :] if stage in ORDER else ():  # else nothing need read it
            shutil.rmtree(out / "store" / later)
        notes = Notes()
        again = once(configured(out), notes)
        assert measured(again) == measured(record), (file, harm)
        damaged = [line for line in notes.said if "is damaged" in line]
        assert bool(damaged) == (stage in ORDER[:-1]), (file, harm, notes.said)
        shutil.rmtree(out)


# -- damage of what is not -----------------------------------------------------------------------------------------------


def test_whatever_a_power_loss_left_of_an_unfinished_stage_the_record_is_as_before(configured, whole, tmp_path):
    """A finished stage as if the power had gone before it was published, with any of its files cut."""
    where, record, _ = whole
    inner = [f for f in files(where / "store") if len(f.parts) > 2 and f.name != FACTS]
    for file, harm in drawn([(f, h) for f in inner for h in ("half", "empty", "delete")], 6):
        out = tmp_path / "again"
        shutil.copytree(where, out, symlinks=True)
        stage = Path(*file.parts[:2])
        final = out / "store" / stage
        part = final.with_name(f"{final.name}.part")
        final.rename(part)
        (part / FACTS).unlink()
        HARM[harm](part / Path(*file.parts[2:]))
        for later in ("generate", "score"):
            if later != stage.parts[0]:
                shutil.rmtree(out / "store" / later, ignore_errors=True)
        shutil.rmtree(out / "store" / "content")
        assert measured(once(configured(out)))[:2] == measured(record)[:2], (file, harm)
        shutil.rmtree(out)


# -- kills -------------------------------------------------------------------------------------------------------------


def test_killed_anywhere_and_resumed_the_record_is_as_in_one_go(configured, whole, tmp_path):
    _, record, seconds = whole
    rng = random.Random(0)
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


def quietly(cfg: DictConfig) -> None:
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        once(cfg)


def check_record(out: Path, record: Record) -> None:
    (found,) = read_records(out / "records")
    assert measured(found) == measured(record)


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
