"""Further processes that share the work of a cell: its arms do not wait for one another.

Every worker builds the same cell and does what of it is ready and nobody else has in hand; the store's locks see to the
rest. Bars and curves of the workers come to the process that the person looks at.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from udpbench.benchmark.run import run
from udpbench.benchmark.store import Store
from udpbench.commands.machine import cores, idle_cores, room
from udpbench.commands.preparing import PreparedCell, prepare
from udpbench.commands.signals import heeded, leave_to_parent
from udpbench.core.errors import class_and_line
from udpbench.interfaces import Log
from udpbench.tracking.track import Buffered, Start

if TYPE_CHECKING:
    from udpbench.models.pretrained import Pretrained


def workers_for(wanted: int | str, ready: PreparedCell) -> int:
    """How many processes share the work: ``wanted``, or for ``auto`` with the embedded models one for each core, as far
    as there are arms and free memory for them; on a GPU, and with models that fill all cores by themselves, one."""
    if wanted != "auto":
        return int(wanted)
    if ready.store.device.type != "cpu" or not ready.cell.victim.component.embedded:
        return 1
    arms = sum(stage.name in ("train", "edit") for stage in ready.store.missing(ready.wanted))
    return max(1, min(arms, room()))


def threads_for(wanted: int | str, model: Pretrained, n: int = 1, beside: int = 1) -> int:
    """CPU threads of each of ``n`` processes: ``wanted``, or for ``auto`` one with the embedded models, which are too
    small for more, so that a cell has the same digits on every number of cores; with another ``model``, the idle cores
    shared, or all of them among the cells that were begun together (``beside``)."""
    if wanted != "auto":
        return int(wanted)
    if model.embedded:
        return 1
    return max(1, (idle_cores() if beside == 1 else cores() // beside) // n)


@contextmanager
def with_threads(n: int) -> Iterator[None]:
    """Within the block torch computes with ``n`` threads of the CPU, then with as many as before: the process may be
    somebody's own, such as a notebook's."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def shared(ready: PreparedCell, cfg: DictConfig, choices: Mapping[str, Any] | None) -> Iterator[int]:
    """While the block runs, further processes do stages of the cell, too, by ``runtime.workers``; yields how many
    processes there are in all.

    ``choices``: the options chosen by group, from which they build the cell; None: there are none.

    Each takes ``threads_for`` threads. What the workers did is in ``store.computed`` when the block ends; if it ends
    with an error, they are asked to end: what they had begun is gone on with the next time. The work of one that is
    killed is done by the others.
    """
    n = 1 if choices is None else workers_for(cfg.runtime.workers, ready)
    threads = threads_for(cfg.runtime.threads, ready.cell.victim.component, n, ready.beside)
    with with_threads(threads):
        if n == 1 or choices is None:
            yield 1
        else:
            with _further(n, threads, ready, cfg, choices):
                yield n


@contextmanager
def _further(n: int, threads: int, ready: PreparedCell, cfg: DictConfig, choices: Mapping[str, Any]) -> Iterator[None]:
    """While the block runs, ``n`` - 1 further processes work, see ``shared``."""
    context = multiprocessing.get_context("spawn")
    whole = OmegaConf.to_container(cfg, resolve=False)
    workers: dict[Connection, SpawnProcess] = {}
    listener = threading.Thread(target=_listen, args=(workers, ready.store), daemon=True)
    ended = False
    try:
        for device in itertools.islice(_devices(ready.store.device), 1, n):
            # One pipe each: a worker that is killed leaves no lock of a common one.
            ours, theirs = context.Pipe(duplex=False)
            given = (whole, dict(choices), str(device), threads, theirs)
            process = context.Process(target=_work, args=given, daemon=True)
            process.start()
            theirs.close()  # the worker has its own: without one, the pipe ends
            workers[ours] = process
            ready.store.leases.partners.add(process.pid or 0)
        listener.start()
        yield
        listener.join()  # all is finished, and they find that out
        ended = True
    finally:
        for process in () if ended else workers.values():
            process.terminate()
        if listener.ident is not None:  # all workers could be started
            listener.join()


def _devices(first: torch.device) -> Iterator[torch.device]:
    """The device of each process in turn: every GPU there is, if none was chosen by its number."""
    if first.type != "cuda" or first.index is not None:
        return itertools.repeat(first)
    return itertools.cycle(torch.device("cuda", i) for i in range(torch.cuda.device_count()))


# -- in a worker -------------------------------------------------------------------------------------------------------


def _work(whole: dict[str, Any], choices: dict[str, Any], device: str, threads: int, end: Connection) -> None:
    """Do stages until the cell is finished, or until one of them fails."""
    leave_to_parent(lambda: os._exit(1))
    torch.set_num_threads(threads)
    cfg = OmegaConf.create(whole)
    cfg.runtime.device = device
    log = Forwarded(end)
    ready = prepare(cfg, log, choices)
    try:
        with heeded(ready.store):
            run(ready.graph, ready.store, together=True, scores=ready.scores)
    except SystemExit as stop:  # at once: nobody may be listening any more
        os._exit(int(stop.code or 0))
    except Exception as error:  # noqa: BLE001 - it is told there; what the work itself raises the others meet, too
        log.send("failed", class_and_line(error))
    log.curves.flush()
    log.send("computed", ready.store.computed)


class Forwarded(Log):
    """Says everything to the other end of a pipe, but for lines: a worker that waits for another need not say so."""

    def __init__(self, end: Connection) -> None:
        self.end, self.lock, self.bars, self.curves = end, threading.Lock(), itertools.count(), _Curves(self)
        self.curves.start("", "", {}, None)  # type: ignore[arg-type]  # nothing is written into a folder

    def send(self, *message: Any) -> None:
        """One message of any thread."""
        with self.lock:
            self.end.send(message)

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "it") -> Iterator[Callable[[int], None]]:
        number = next(self.bars)
        self.send("bar", number, title, total, unit)
        try:
            yield lambda n: self.send("advance", number, n)
        finally:
            self.send("end", number)

    def scalar(self, name: str, value: Tensor | float, step: int) -> None:
        self.curves.scalar(name, value, step)


class _Curves(Buffered):
    """Scalars, many at a time."""

    def __init__(self, log: Forwarded) -> None:
        super().__init__()
        self.log = log

    def open(self, started: Start) -> Forwarded:
        return self.log

    def send(self, scalars: Sequence[tuple[str, int, float]]) -> None:
        self.log.send("scalars", list(scalars))


# -- in the main process -----------------------------------------------------------------------------------------------


def _listen(workers: Mapping[Connection, SpawnProcess], store: Store) -> None:
    """Say to the store's log what the workers say, until all of them have ended.

    One that has ended is waited for at once: to the holders of locks, a process that nobody waited for looks alive.
    """
    left = {end: ExitStack() for end in workers}  # bars that are open
    bars: dict[Any, tuple[ExitStack, Callable[[int], None]]] = {}
    try:
        while left:
            for end in wait(list(left)):
                assert isinstance(end, Connection)
                try:
                    kind, *what = end.recv()
                except (EOFError, OSError):  # it has ended, perhaps in the middle of a word
                    left.pop(end).close()
                    end.close()
                    _say_if_lost(workers[end], store.log)
                    continue
                _pass_on(kind, what, end, left[end], bars, store)
    finally:  # if it could not be shown: workers that nobody listens to end, too
        for end in left:
            end.close()


def _pass_on(kind: str, what: list[Any], end: Connection, left: ExitStack, bars: dict[Any, Any], store: Store) -> None:
    if kind == "bar":
        number, *bar = what
        stack = left.enter_context(ExitStack())
        bars[end, number] = stack, stack.enter_context(store.log.bar(*bar))
    elif kind == "advance":
        bars[end, what[0]][1](what[1])
    elif kind == "end":
        bars.pop((end, what[0]))[0].close()
    elif kind == "scalars":
        for name, step, value in what[0]:
            store.log.scalar(name, value, step)
    elif kind == "failed":
        store.log.say(f"a worker process ended with {what[0]}; the others do its work")
    else:
        store.computed.extend(what[0])


def _say_if_lost(process: SpawnProcess, log: Log) -> None:
    process.join()
    if process.exitcode == -signal.SIGKILL:
        log.say("a worker process was killed, as the system does when memory runs out; the others do its work")
    elif process.exitcode not in (0, -signal.SIGTERM, 128 + signal.SIGTERM):  # the latter by this process
        log.say(f"a worker process ended with status {process.exitcode}; the others do its work")
