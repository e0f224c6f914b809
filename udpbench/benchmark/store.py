"""Stages: done once, resumed, published whole, shared between processes.

A stage reads finished folders and writes one. Its cache key is known before anything runs: the hash of its name,
settings, seed and its parents' keys. Its *content* is the digest of what it wrote: work whose inputs turn out to be
equal to those of finished work is not done again.
A stage says of itself (``_stage.json``) what it wrote, so that damage is found before anything is made of it.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import torch
from filelock import SoftFileLease, Timeout

from udpbench.benchmark.facts import BEGUN, FACTS, read_facts, write_facts
from udpbench.benchmark.leases import LEASE, Leases
from udpbench.benchmark.measuring import measured
from udpbench.benchmark.process_state import process_left_as_it_was
from udpbench.benchmark.stage import Stage, empty, hash_of, with_ancestors
from udpbench.core.atomic import atomic_text, name_file, sync
from udpbench.core.compiled import seconds_compiling
from udpbench.core.component import check_choice
from udpbench.core.digest import difference, listed
from udpbench.core.errors import Busy, Stopped, class_and_line
from udpbench.core.provenance import commit
from udpbench.interfaces import Log, Run, Titled

VERIFY = ("size", "digest")
RECORDS = "records"  # folder of a store: where records of its cells are, a note for each folder
KEPT = "kept"  # folder of a store: what a cell without a record needs, a note for each cell
DAMAGED, DROPPED = "damaged", "dropped"  # folders of a store: what was put aside; facts of stages that were removed


class Store:
    """A folder of finished stages, shared by any number of processes.

    A finished stage is verified before it is read, once per process: ``verify="digest"`` looks at the contents of its
    files, ``"size"`` at their names and sizes only. A damaged one is put aside and computed anew.
    """

    def __init__(
        self,
        root: Path,
        device: torch.device | None = None,
        log: Log | None = None,
        batch: int = 32,
        grad_batch: int = 32,
        verify: str = "digest",
        low_memory: bool = False,
    ) -> None:
        check_choice("runtime.verify: unknown", verify, VERIFY)
        self.root = Path(root)
        self.device, self.log, self.batch = device or torch.device("cpu"), log or Log(), batch
        self.grad_batch, self.digests, self.low_memory = grad_batch, verify == "digest", low_memory
        self.computed: list[str] = []  # keys of the stages done by this process, in order
        self.stop = Event()  # set: work ends where it can be resumed, and nothing more is begun
        self.leases = Leases(self.root / "locks")
        self.patient = True  # False: rather than wait for processes that are no partners, ``do`` raises Busy
        self._sound: set[str] = set()  # keys of the stages known to be whole

    def trust(self, verified: set[str]) -> None:
        """Take stages as verified that this process has verified before, by their keys; those that it verifies from
        now on are added."""
        self._sound = verified

    def remember_records(self, folder: Path) -> None:
        """Note that records of cells that are made of its stages are in ``folder``."""
        where = str(folder.resolve())
        if not (note := self.root / RECORDS / hash_of(where)).exists():
            with suppress(OSError):  # the store is read-only
                note.parent.mkdir(parents=True, exist_ok=True)
                atomic_text(note, where)

    @property
    def records(self) -> list[Path]:
        """The folders that ``remember_records`` noted; they need not be there any more."""
        return [Path(note.read_text(encoding="utf-8")) for note in sorted((self.root / RECORDS).glob("[!.]*"))]

    def forget_records(self, folder: Path) -> None:
        """Take back what ``remember_records`` noted."""
        (self.root / RECORDS / hash_of(str(folder))).unlink(missing_ok=True)

    def keep(self, cell: str, stages: Collection[str]) -> None:
        """Note that a cell that has no record yet needs these ``stages``, both by their keys; empty: it needs none."""
        note = self.root / KEPT / cell
        with suppress(OSError):  # the store is read-only
            if stages:
                atomic_text(note, json.dumps(sorted(stages)))
            else:
                note.unlink(missing_ok=True)

    @property
    def kept(self) -> set[str]:
        """Keys of the stages that ``keep`` noted."""
        return {
            key for note in (self.root / KEPT).glob("[!.]*") for key in json.loads(note.read_text(encoding="utf-8"))
        }

    def path(self, stage: Stage) -> Path:
        """Where the stage's folder is, once finished."""
        return self.root / stage.name / stage.key

    def finished(self, stage: Stage) -> bool:
        """Whether the stage is published; it may be damaged since."""
        return (self.path(stage) / FACTS).exists()

    def has_facts(self, stage: Stage) -> bool:
        """Whether the facts of the stage are there: it is finished, or was removed and its facts were kept."""
        return (self._facts_in(stage) / FACTS).exists()

    def facts(self, stage: Stage) -> dict[str, Any]:
        """Seconds, peak memory, counts, content digest, device and settings of a stage that ``has_facts``."""
        return read_facts(self._facts_in(stage))

    def _facts_in(self, stage: Stage) -> Path:
        return self.path(stage) if self.finished(stage) else self.root / DROPPED / stage.name / stage.key

    def damage(self, stage: Stage, contents: bool = True) -> str:
        """What is wrong with the folder of a stage, naming one file; nothing: "".

        ``contents``: look at all that was written, not only at what the stage says of itself.
        """
        return self.damage_of(self.path(stage), contents)

    def damage_of(self, folder: Path, contents: bool = True) -> str:
        """What is wrong with a stage's folder, naming one file; "" if nothing is.

        Raises OSError if it cannot be read now: that may pass, and what is finished is not thrown away for it.
        """
        try:
            facts = read_facts(folder)
        except FileNotFoundError:
            return f"{FACTS} is missing"
        except ValueError:
            return f"{FACTS} is broken"
        if not contents:
            return ""
        if "files" in facts:
            return difference(folder, facts["files"], FACTS, self.digests)
        same = facts.get("content") == listed(folder, FACTS)[0]
        return "" if same else "its files are not the ones that were written"

    def sound(self, stage: Stage) -> bool:
        """Whether the stage is finished and undamaged."""
        if not self.finished(stage):
            return False
        if stage.key not in self._sound and not self.damage(stage):
            self._sound.add(stage.key)
            with suppress(OSError):  # the store is read-only
                os.utime(self.path(stage) / FACTS)  # when it was last used
        return stage.key in self._sound

    def missing(self, wanted: Iterable[Stage]) -> list[Stage]:
        """The unfinished stages that ``wanted`` need, parents first, each once.

        Parents of finished stages are not visited.
        """
        return with_ancestors(wanted, self.finished)

    def do(self, *wanted: Stage) -> list[Path]:
        """Finish the stages and all they need; returns their folders.

        Work that another process holds is left to it and waited for, if the store is ``patient``.
        """
        todo = with_ancestors(wanted, self.sound)
        said: set[str] = set()
        while todo:
            ready = self._ready(todo)
            if not any(map(self._attempt, ready)):
                if not self.patient and all(self.leases.is_others(stage.name, stage.key) for stage in ready):
                    raise Busy
                self.leases.wait(str(todo[0]), todo[0].name, todo[0].key, said, self.log)
            todo = with_ancestors(wanted, self.sound)
        return [self.path(stage) for stage in wanted]

    def held_by_others(self, wanted: Iterable[Stage]) -> bool:
        """Whether other processes hold all that could be done of ``wanted`` now."""
        ready = self._ready(with_ancestors(wanted, self.sound))
        return bool(ready) and not any(self.leases.is_free(stage.name, stage.key) for stage in ready)

    def _ready(self, todo: Iterable[Stage]) -> list[Stage]:
        """Those whose parents are done."""
        return [stage for stage in todo if all(map(self.sound, stage.parents.values()))]

    # -- doing ---------------------------------------------------------------------------------------------------------

    def _attempt(self, stage: Stage) -> bool:
        """Do the stage unless another process holds it; True if it is finished now.

        Raises Stopped if the process has been asked to end.
        """
        if self.stop.is_set():
            raise Stopped
        lease = self.leases.of(stage.name, stage.key)
        try:
            held = lease.acquire()
        except Timeout:  # one that the work raises is the work's own
            return False
        with held:
            _look_anew(self.path(stage).parent)
            if not self.sound(stage):
                self._put_aside(stage)
                self._run(stage, lease)
        return True

    def put_aside(self, stage: Stage) -> None:
        """Make room for a stage that is not sound, unless another process holds it."""
        with suppress(Timeout), self.leases.of(stage.name, stage.key):
            if not self.sound(stage):
                self._put_aside(stage)

    def _put_aside(self, stage: Stage) -> None:
        """Make room for a stage that is not sound.

        Another name of somebody else's folder is only removed.
        """
        final, aside = self.path(stage), ""
        damage = self.damage(stage) if final.exists() else ""
        if final.is_symlink():
            final.unlink()
        elif final.exists():
            aside = f"it is now {self.move_aside(final)}, and "
        if damage:
            self.log.say(
                f"{stage}: {final} is damaged ({damage}); {aside}the stage is computed anew where it is needed"
            )

    def move_aside(self, folder: Path) -> Path:
        """Move a stage's folder, whose lock is held, to ``damaged/``, which nothing reads; returns where it is now."""
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        target = self.root / DAMAGED / f"{folder.parent.name}-{folder.name}-{stamp}"
        target.parent.mkdir(exist_ok=True)
        folder.rename(target)
        return target

    def _run(self, stage: Stage, lease: SoftFileLease) -> None:
        """Compute the stage in a ``.part`` folder and publish it; finished equal work is linked to instead."""
        final = self.path(stage)
        contents = {k: self.facts(p)["content"] for k, p in stage.parents.items()}
        pointer = self.root / "content" / stage.key_on(contents)
        if (twin := self._twin(stage, pointer)) is not None and _link(twin, final):
            return
        part = final.with_name(final.name + ".part")
        if part.exists() and not stage.resumable:
            shutil.rmtree(part)
        part.mkdir(parents=True, exist_ok=True)
        _remove_partial(part)
        facts = self._compute(stage, part)
        if not lease.is_lock_held_by_us:  # the folder is another's now: nothing more is written there
            raise RuntimeError(
                f"{stage}: another process took it over, for this one had shown no sign of life for {LEASE:g} s; "
                "the same command again goes on from what that one has done"
            )
        write_facts(part, facts)
        os.rename(part, final)
        sync(final.parent)
        atomic_text(pointer, str(final.relative_to(self.root)))
        self.computed.append(stage.key)
        self._sound.add(stage.key)

    def _compute(self, stage: Stage, part: Path) -> dict[str, Any]:
        """Do the stage's work in the folder ``part``; returns its facts."""
        log = Titled(self.log, stage.title or stage.name)
        run = Run(stage.seed, self.device, log, self.batch, self.grad_batch, self.low_memory, stop=self.stop)
        begun = {
            "stage": stage.name,
            "key": stage.key,
            "settings": dict(stage.settings),
            "seed": stage.seed,
            "parents": {k: p.key for k, p in stage.parents.items()},
            "commit": commit(),  # asked before the work begins: a commit made meanwhile is not what it was done with
        }
        atomic_text(part / BEGUN, json.dumps(begun), synced=False)  # whose work it is, for who looks into the store
        spent = part / "_seconds"  # of earlier, interrupted attempts
        compiling = seconds_compiling()
        with measured(self.device, spent) as spending:
            _work(stage, part, {k: self.path(p).resolve() for k, p in stage.parents.items()}, run)
        if (compiling := seconds_compiling() - compiling) > 0:
            self.log.say(f"{stage}: {compiling:.1f} s of it went into compiling networks")
        spent.unlink(missing_ok=True)
        (part / BEGUN).unlink(missing_ok=True)
        content, files = listed(part, FACTS)
        return {**begun, "content": content, "files": files, "counts": run.count, **spending}

    def _twin(self, stage: Stage, pointer: Path) -> Path | None:
        """The finished folder of equal work on equal inputs, which ``pointer`` names."""
        with suppress(OSError, ValueError):
            twin = self.root / pointer.read_text(encoding="utf-8")
            if not twin.resolve().is_relative_to(self.root.resolve()):  # no store of ours wrote that
                return None
            facts = read_facts(twin)
            same = facts["stage"] == stage.name and hash_of(facts["settings"]) == hash_of(dict(stage.settings))
            if same and not self.damage_of(twin):
                return twin
        return None


def _look_anew(folder: Path) -> None:
    """Have a network file system look at ``folder`` again: it remembers for a while that a name was not there."""
    with suppress(OSError):  # it is not there yet, or the store is read-only
        os.utime(folder)


def _work(stage: Stage, out: Path, parents: dict[str, Path], run: Run) -> None:
    """The stage's work; a method that would end the process fails like any other, and so does one that leaves a setting
    of the process changed, of whose work nothing is kept. An error that does not name the stage has a note that does.
    """
    (out / FACTS).unlink(missing_ok=True)  # of an attempt that ended just before it was published
    try:
        with process_left_as_it_was(f"{stage}", lambda: empty(out)):
            stage.work(out, parents, run)
    except OSError as error:
        name_file(error, out)
        raise
    except SystemExit as error:
        raise RuntimeError(f"{stage}: the method tried to end the process (SystemExit {error.code})") from error
    except Exception as error:
        if str(stage) not in (line := class_and_line(error)):
            error.add_note(f"{line} (in {stage})")
        raise


def _remove_partial(folder: Path) -> None:
    """Remove what was being written when an earlier attempt ended: a name that ends in ``.part`` is never whole."""
    for half in list(folder.rglob("*.part")):
        if half.is_dir():
            shutil.rmtree(half)
        else:
            half.unlink(missing_ok=True)


def _link(target: Path, link: Path) -> bool:
    """Make ``link`` another name of the finished folder ``target``; False on a disk that has no links (exFAT)."""
    link.parent.mkdir(parents=True, exist_ok=True)
    beside = link.with_name(f"{link.name}.{secrets.token_hex(4)}")
    try:
        beside.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()))
    except (PermissionError, NotImplementedError):
        return False
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOSYS):
            raise
        return False
    os.replace(beside, link)
    return True
