"""Progress in the terminal: bars for a person, plain lines for a log file."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from udpbench.core.text import clock_text
from udpbench.interfaces import Log


@dataclass(eq=False)
class _Bar:
    """One open bar.

    Rates are taken from the first call of advance on, which jumps to where a resumed training starts.
    """

    title: str
    total: int
    unit: str
    opened: float
    done: int = 0
    first: tuple[float, int] | None = None
    shown: float = 0.0
    task: TaskID | None = None

    def line(self, now: float) -> str:
        """One line, as "train clean  120/200 step  4.1/s  eta 0:20"; at the end the time taken."""
        start, base = self.first or (self.opened, 0)
        fresh = self.done - base
        text = f"{self.title}  {self.done}/{self.total} {self.unit}"
        if fresh > 0 and now > start:
            rate = fresh / (now - start)
            text += f"  {rate:.3g}/s" if rate >= 1 else f"  {1 / rate:.3g} s/{self.unit}"
            if self.done < self.total:
                return f"{text}  eta {clock_text((self.total - self.done) / rate)}"
        return f"{text}  in {clock_text(now - self.opened)}" if self.done >= self.total else text


class Console(Log):
    """Progress for a person.

    Bars in a terminal, elsewhere (a log file, CI) a plain line every few seconds; errors stay readable.

    ``stream``: where to (default standard error, so that tables on standard output can be piped). ``every``: seconds
    between lines. ``worker``: the name of a process among several in one terminal, put before each of its lines; it
    draws no bars, for they would overwrite one another.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        every: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        worker: str = "",
    ) -> None:
        if every < 0:
            raise ValueError(f"console: every must be >= 0 seconds, given {every}")
        self._stream, self._every, self._clock, self._worker = stream, every, clock, worker
        self._bars: list[_Bar] = []
        self._progress: Progress | None = None
        self._lock = threading.RLock()  # bars of several processes are drawn by another thread

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "it") -> Iterator[Callable[[int], None]]:
        """A bar over ``total`` units; bars may stand inside bars."""
        now = self._clock()
        bar = _Bar(title, total, unit, opened=now, shown=now)
        with self._lock:
            self._bars.append(bar)
            self._show(bar)
        try:
            yield lambda n: self._advance(bar, n)
        finally:
            with self._lock:
                self._bars.remove(bar)
                self._close(bar)

    def say(self, text: str) -> None:
        """One line, above the bars."""
        text = f"[{self._worker}] {text}" if self._worker else text
        with self._lock:
            self._rich().print(text, markup=False, highlight=False, soft_wrap=True)

    def _rich(self) -> RichConsole:
        return self._progress.console if self._progress is not None else RichConsole(file=self._stream or sys.stderr)

    def _show(self, bar: _Bar) -> None:
        console = self._rich()
        if self._worker or not console.is_terminal:
            return
        if self._progress is None:  # rich allows one live display, so nested bars share it
            columns = (BarColumn(bar_width=24), TextColumn("{task.description}", markup=False))
            self._progress = Progress(*columns, console=console, transient=True)
            self._progress.start()
        bar.task = self._progress.add_task(bar.line(bar.opened), total=bar.total)

    def _advance(self, bar: _Bar, n: int) -> None:
        now = self._clock()
        bar.done += n
        bar.first = bar.first or (now, bar.done)
        with self._lock:
            self._draw(bar, now)

    def _draw(self, bar: _Bar, now: float) -> None:
        if self._progress is not None and bar.task is not None:
            self._progress.update(bar.task, completed=bar.done, description=bar.line(now))
        elif now - bar.shown >= self._every and bar.done < bar.total:
            bar.shown = now
            self.say(bar.line(now))

    def _close(self, bar: _Bar) -> None:
        now = self._clock()
        if self._progress is not None and bar.task is not None:
            self._progress.remove_task(bar.task)
        if not self._bars and self._progress is not None:
            self._progress.stop()
            self._progress = None
        if not self._bars or now - bar.opened >= self._every:  # short inner bars leave nothing behind
            self.say(bar.line(now))
