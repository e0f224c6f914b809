"""Stages: done once, resumed, published whole, shared between processes.

A stage reads finished folders and writes one. Its cache key is known before anything runs: the hash of its name,
settings, seed and its parents' keys. Its *content* is the digest of what it wrote: work whose inputs turn out to be
equal to those of finished work is not done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from udpbench.core.atomic import atomic_write
from udpbench.core.digest import folder_digest
from udpbench.core.provenance import commit
from udpbench.interfaces import Log, Run, Titled

FACTS = (
    "_stage.json"  # what a finished stage says of itself; the one file in its folder that is not part of its content
)

Work = Callable[[Path, dict[str, Path], Run], None]


def hash_of(value: Any) -> str:
    """Sixteen hex digits of the SHA-256 of ``value`` as canonical JSON.

    Raises TypeError if it cannot be written as JSON.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Stage:
    """A unit of work: ``work(out, parents, run)`` reads the parents' folders and fills ``out``.

    ``work`` must be a function of ``settings``, ``seed`` and the parents' folders only. A ``resumable`` stage finds
    in ``out`` what an interrupted attempt left there; any other starts from an empty folder.
    """

    name: str
    settings: Mapping[str, Any]
    work: Work = field(compare=False)
    parents: Mapping[str, Stage] = field(default_factory=dict)
    seed: int = 0
    title: str = ""
    resumable: bool = False

    @cached_property
    def key(self) -> str:
        """The key by which the stage is planned, locked and looked up."""
        return self._key({k: p.key for k, p in self.parents.items()})

    def content_key(self, contents: Mapping[str, str]) -> str:
        """The key by which equal work on equal inputs is found."""
        return self._key(contents)

    def _key(self, parents: Mapping[str, str]) -> str:
        return hash_of(
            {"stage": self.name, "settings": dict(self.settings), "seed": self.seed, "parents": dict(parents)}
        )

    def __str__(self) -> str:
        return f"{self.name} {self.title}".strip()


def with_ancestors(wanted: Iterable[Stage], done: Callable[[Stage], bool] = lambda stage: False) -> list[Stage]:
    """The stages and their ancestors, each once, parents first; neither those that are ``done`` nor their parents."""
    found: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key not in found and not done(stage):
            for parent in stage.parents.values():
                visit(parent)
            found[stage.key] = stage

    for stage in wanted:
        visit(stage)
    return list(found.values())


class Store:
    """A folder of finished stages, shared by any number of processes."""

    def __init__(
        self,
        root: Path,
        device: torch.device | None = None,
        log: Log | None = None,
        batch: int = 32,
        grad_batch: int = 32,
    ) -> None:
        self.root = Path(root)
        self.device, self.log, self.batch = device or torch.device("cpu"), log or Log(), batch
        self.grad_batch = grad_batch
        self.computed: list[str] = []  # keys of the stages done by this process, in order

    def path(self, stage: Stage) -> Path:
        """Where the stage's folder is, once finished."""
        return self.root / stage.name / stage.key

    def finished(self, stage: Stage) -> bool:
        """Whether the stage is published."""
        return (self.path(stage) / FACTS).exists()

    def facts(self, stage: Stage) -> dict[str, Any]:
        """Seconds, peak memory, counts, content digest, device and settings of a finished stage."""
        return json.loads((self.path(stage) / FACTS).read_text())

    def verify(self, stage: Stage) -> bool:
        """Whether a finished stage still holds what it held when it was published."""
        return _content(self.path(stage)) == self.facts(stage)["content"]

    def missing(self, wanted: Iterable[Stage]) -> list[Stage]:
        """The unfinished stages that ``wanted`` need, parents first, each once.

        Parents of finished stages are not visited.
        """
        return with_ancestors(wanted, self.finished)

    def do(self, *wanted: Stage) -> list[Path]:
        """Finish the stages and all they need; returns their folders.

        Work that another process holds is left to it and waited for.
        """
        todo = self.missing(wanted)
        said: set[str] = set()
        while todo:
            before = len(todo)
            for stage in todo:
                if all(self.finished(p) for p in stage.parents.values()) and self._attempt(stage):
                    todo = self.missing(wanted)
                    break
            if len(todo) == before:
                self._wait(todo[0], said)
                todo = self.missing(wanted)
        return [self.path(stage) for stage in wanted]

    def _wait(self, stage: Stage, said: set[str]) -> None:
        if stage.key not in said:
            with suppress(FileNotFoundError):  # nobody holds it any more
                holder = self._lock_file(stage).with_suffix(".held").read_text().strip()
                self.log.say(f"waiting for {stage}: {holder}")
                said.add(stage.key)
        time.sleep(0.5)

    def _lock_file(self, stage: Stage) -> Path:
        return self.root / "locks" / f"{stage.name}-{stage.key}.lock"

    def _attempt(self, stage: Stage) -> bool:
        """Do the stage unless another process holds it; True if it is finished now."""
        lock = self._lock_file(stage)
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, timeout=0):
                held = lock.with_suffix(".held")
                held.write_text(
                    f"held by process {os.getpid()} on {platform.node()} since {time.strftime('%H:%M:%S')}\n"
                )
                if not self.finished(stage):
                    self._run(stage)
                held.unlink(missing_ok=True)
        except Timeout:
            return False
        return True

    def _run(self, stage: Stage) -> None:
        final = self.path(stage)
        contents = {k: self.facts(p)["content"] for k, p in stage.parents.items()}
        twin = self.root / "content" / stage.content_key(contents)
        if twin.exists() and (self.root / twin.read_text() / FACTS).exists():
            _link(self.root / twin.read_text(), final)
            return
        part = final.with_name(final.name + ".part")
        if part.exists() and not stage.resumable:
            shutil.rmtree(part)
        part.mkdir(parents=True, exist_ok=True)
        _remove_halves(part)
        run = Run(stage.seed, self.device, Titled(self.log, stage.title or stage.name), self.batch, self.grad_batch)
        spent = part / "_seconds"  # of earlier, interrupted attempts
        with _measured(self.device, spent) as measured:
            stage.work(part, {k: self.path(p).resolve() for k, p in stage.parents.items()}, run)
        spent.unlink()
        facts = {
            "stage": stage.name,
            "key": stage.key,
            "settings": dict(stage.settings),
            "seed": stage.seed,
            "parents": {k: p.key for k, p in stage.parents.items()},
            "content": _content(part),
            "counts": run.count,
            "commit": commit(),
            **measured,
        }
        with atomic_write(part / FACTS) as beside:
            beside.write_text(json.dumps(facts, indent=1, sort_keys=True))
        final.unlink(missing_ok=True)  # a link to a twin that somebody has removed
        os.rename(part, final)
        with atomic_write(twin) as beside:
            beside.write_text(str(final.relative_to(self.root)))
        self.computed.append(stage.key)


def _remove_halves(folder: Path) -> None:
    """Remove what was being written when an earlier attempt ended: a name that ends in ``.part`` is never whole."""
    for half in list(folder.rglob("*.part")):
        if half.is_dir():
            shutil.rmtree(half)
        else:
            half.unlink(missing_ok=True)


def _link(target: Path, link: Path) -> None:
    """Make ``link`` another name of the finished folder ``target``."""
    link.parent.mkdir(parents=True, exist_ok=True)
    beside = link.with_name(f"{link.name}.{os.getpid()}")
    beside.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()))
    os.replace(beside, link)


def _content(folder: Path) -> str:
    """Digest of the names and bytes of all files but the facts."""
    return folder_digest(folder, skip=FACTS)


def device_name(device: torch.device) -> str:
    """What facts call a device: the GPU's own name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def _measured(device: torch.device, spent: Path) -> Iterator[dict[str, Any]]:
    """Seconds (interrupted attempts included) and peak memory of the block: of the device, or of the process where
    there is none."""
    facts: dict[str, Any] = {"device": device_name(device)}
    before = float(spent.read_text() or 0) if spent.exists() else 0.0  # empty: the disk was full
    _reset_peak(device)
    start = time.perf_counter()
    try:
        yield facts
    finally:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        facts["seconds"] = round(before + time.perf_counter() - start, 3)
        facts["peak_mb"] = _peak_mb(device)
        spent.write_text(str(facts["seconds"]))


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak resident size


def _peak_mb(device: torch.device) -> float | None:
    """Peak memory in MB: allocated on the GPU, or resident in the process (Linux); None where it cannot be
    measured."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
    return round(int(line.split()[1]) / 1e3, 1)
