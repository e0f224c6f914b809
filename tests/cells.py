"""Whole tiny cells with every kind of stage, for tests that damage, kill and repeat them; what of their records must be equal."""

from __future__ import annotations

import copy
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from shared import composed

from udpbench.commands.executing import execute
from udpbench.commands.preparing import prepare
from udpbench.interfaces import Log
from udpbench.results.record import read_records
from udpbench.results.schema import Record

CELL = (
    "protect=eudp", "protect.rounds=1", "protect.model_steps=1", "protect.image_steps=2", "protect.samples=1", "attack=jpeg",
    "task.steps=4", "task.save_every=1", "task.pictures=4", "task.sample_steps=2", "arms=[clean,purified]", "data.reference=4",
    "data.validation=4", "data.heldout=1", "data.train=2", "metrics.bundle.kernel_distance.minimum=4", "runtime.device=cpu", "runtime.threads=1",
    "runtime.workers=1", "task.curve=[0.5,1.0]", "++task.prior_weight=1.0", "++task.prior_images=2",
)  # fmt: skip
CELLS = {
    "training": (*CELL, "arms=[upper_bound,clean,purified]", "protected_fraction=0.5"),
    "edits": (
        "task=img2img", "~task.pictures", "~metrics.bundle.edit_vif", "task.sample_steps=2", "protect=diffvax", "protect.mask=centre", "protect.iterations=4",
        "protect.save_every=1", "protect.widths=[8,16]", "attack=jpeg", "arms=[clean,purified]", "data.train=2", "data.reference=4", "data.validation=4", "data.heldout=1", "runtime.device=cpu", "runtime.threads=1", "runtime.workers=1",
    ),
}  # fmt: skip
# Kinds of stages in the order of the work, and the cells that have them.
ORDER = ("data", "class", "protect", "mixed", "attack", "train", "generate", "upper_bound", "edit", "score")
KINDS = [*((kind, "training") for kind in ORDER if kind != "edit"), ("protect", "edits"), ("edit", "edits")]
fork = multiprocessing.get_context("fork")  # children start without importing torch anew


class Notes(Log):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class Cells:
    """The cells done in one go, each when it is first asked for."""

    def __init__(self, tiny: Path, folder: Path) -> None:
        self.tiny, self.folder = tiny, folder
        self.done: dict[str, tuple[Path, Record]] = {}

    def __call__(self, name: str) -> tuple[Path, Record, Callable[[Path], DictConfig]]:
        """The folder and the record of a cell, and its configuration with its results in another folder."""
        base = composed(self.tiny, *CELLS[name])

        def configured(out: Path) -> DictConfig:
            cfg = copy.deepcopy(base)
            OmegaConf.set_readonly(cfg, False)
            OmegaConf.update(cfg, "runtime.out", str(out))
            return cfg

        if name not in self.done:
            out = self.folder / name
            self.done[name] = out, once(configured(out))
        return *self.done[name], configured


def once(cfg: DictConfig, log: Log | None = None) -> Record:
    ready = prepare(cfg, log)
    return execute(ready, OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), show_table=False)


def quietly(cfg: DictConfig) -> None:
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        once(cfg)


def measured(record: Record) -> Any:
    """What a record says that does not depend on the time and on what was there already."""
    arms = {
        name: {k: v for k, v in arm.items() if k not in ("images", "pictures")} for name, arm in record["arms"].items()
    }
    return arms, record["perturbation"], record["counts"], record["flags"], [stage["key"] for stage in record["stages"]]


def check_record(out: Path, record: Record) -> None:
    (found,) = read_records(out / "records")
    assert measured(found) == measured(record)


def drop(out: Path, kinds: Iterable[str]) -> None:
    """Remove the finished stages of these kinds."""
    for kind in kinds:
        shutil.rmtree(out / "store" / kind, ignore_errors=True)
