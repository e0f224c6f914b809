"""What a scheduler sends before it takes a job away: work ends where it can be resumed, within ``GRACE``."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from udpbench.commands.telling import RESUME
from udpbench.core.errors import Stopped

if TYPE_CHECKING:
    from udpbench.benchmark.store import Store

# Slurm sends SIGTERM 30 s (its KillWait) before it kills, and with --signal, as submitit asks it to, one of the others
# when one likes. Windows has no such signals and no alarm.
HEEDED = [number for number in signal.Signals if number.name in ("SIGTERM", "SIGUSR1", "SIGUSR2")]
GRACE = 20.0  # seconds in which a checkpoint may be written; then the work ends wherever it is


@contextmanager
def heeded(store: Store) -> Iterator[list[signal.Signals]]:
    """Within the block, of the main thread, one of ``HEEDED`` has the store's work end with a checkpoint, and that of
    its partners; yields the list of those heard.

    Then whoever handled the signal before does (submitit requeues the job), and the process ends with status 128 and
    the number of the signal; if all was finished before it could end, nothing is left to do, and it goes on.
    """
    heard: list[signal.Signals] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(signal.Signals(number))
        if not store.stop.is_set():
            store.stop.set()
            signal.setitimer(signal.ITIMER_REAL, GRACE)
            for partner in store.leases.partners:
                with suppress(ProcessLookupError):
                    os.kill(partner, number)

    def end(number: int, frame: FrameType | None) -> None:
        raise Stopped

    handlers = dict.fromkeys(HEEDED, hear) | ({signal.SIGALRM: end} if HEEDED[1:] else {})
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield heard
    except Stopped:
        signal.setitimer(signal.ITIMER_REAL, 0)
        store.log.say(f"{heard[0].name}: {RESUME}")
        for number in tuple(heard):
            if callable(handled := before[number]):
                handled(number, None)
        sys.exit(128 + heard[0])
    finally:
        if heard:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_to_parent(ended: Callable[[], None]) -> None:
    """In a process that another one started: Ctrl-C is that one's to hear, and to stop this one; ``ended`` is called in
    a thread when it has ended.

    The bars that libraries make, which nobody sees here, share no semaphore with other processes: this one may end at
    once, and Python would warn of what it left.
    """
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        ended()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=follow, daemon=True).start()
