"""Trackers: a mirror of a run's curves, pictures and tables; ``track_wandb``, ``track_tensorboard`` and
``track_jsonl`` have one each.

They are written to, never read: what counts is in the records. A tracker opens nothing before there is something
to log, so a caller that logs nothing for a fully cached cell leaves no trace of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from udpbench.core.errors import class_and_line
from udpbench.interfaces import Bar, Log

BUFFER = 50  # values read from the device at once


class Tracker(Log):
    """The interface, and the tracker that does nothing.

    Order of calls: start, then anything, then finish. ``shown``: where it says that it stopped.
    """

    shown: Log | None = None
    stopped = False

    def check(self) -> None:
        """ValueError saying what to do if nothing could be sent; nothing is opened."""

    def start(self, run_id: str, group: str, config: Mapping[str, Any], folder: Path, tags: Sequence[str] = ()) -> None:
        """Say what run it is: ``run_id`` is the cell's key, ``group`` the sweep, ``folder`` where files may go,
        ``tags`` the words to find it by.

        Opens nothing.
        """

    def attempt(self, work: Callable[[], object]) -> None:
        """Do what shows something. If that fails, one line in ``shown`` says so, and nothing is shown any more: what is
        shown is a mirror, and ends no cell. Without ``shown`` the error is raised."""
        if self.stopped:
            return
        try:
            work()
        except Exception as error:
            if self.shown is None:
                raise
            if not self.stopped:  # by what ``work`` attempted itself
                self.shown.say(f"tracking stopped: {class_and_line(error)}; the cell goes on")
            self.stopped = True

    def images(self, name: str, paths: Sequence[Path]) -> None:
        """Show picture files side by side."""

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show rows of equal keys."""

    def bars(self, name: str, values: Mapping[str, float]) -> None:
        """Show one bar per number."""

    def summary(self, values: Mapping[str, float]) -> None:
        """The run's final numbers, by which runs are compared."""

    def finish(self, status: str) -> None:
        """Close what was opened; ``status`` as in the record, "ok" or "failed"."""


class Nothing(Tracker):
    """track=none."""


@dataclass(frozen=True)
class Start:
    """What ``start`` said."""

    run_id: str
    group: str
    config: Mapping[str, Any]
    folder: Path
    tags: Sequence[str]


class Buffered(Tracker):
    """What trackers that show something share.

    Scalars are kept as they come, tensors unread, and handed on 50 at a time: one wait for the device each. ``opened``
    is what things are shown through: made by ``open`` when there is something to show, ended by ``close``.
    """

    def __init__(self) -> None:
        self._begun: Start | None = None
        self._handle: Any = None
        self._waiting: list[tuple[str, int, Tensor | float]] = []
        self._lock = threading.RLock()  # curves of several processes come from another thread

    def open(self, started: Start) -> Any:
        """Begin the run and return what ``opened`` is."""
        raise NotImplementedError

    def send(self, scalars: Sequence[tuple[str, int, float]]) -> None:
        """Show (name, step, value) of each."""
        raise NotImplementedError

    def close(self, status: str) -> None:
        """End what was opened."""
        raise NotImplementedError

    @property
    def opened(self) -> Any:
        """What ``open`` returned, opened now if need be; ValueError before ``start``."""
        if self._begun is None:
            raise ValueError("track: nothing can be logged before start(run_id, group, config, folder)")
        if self._handle is None:
            self._handle = self.open(self._begun)
        return self._handle

    def start(self, run_id: str, group: str, config: Mapping[str, Any], folder: Path, tags: Sequence[str] = ()) -> None:
        self._begun = Start(run_id, group, config, folder, [tag for tag in tags if tag])  # wandb refuses empty ones
        self._handle, self._waiting, self.stopped = None, [], False

    def scalar(self, name: str, value: Tensor | float, step: int) -> None:
        with self._lock:
            if self.stopped:
                return
            self._waiting.append((name, step, value.detach() if isinstance(value, Tensor) else value))
            if len(self._waiting) >= BUFFER:
                self.attempt(self.flush)

    def flush(self) -> None:
        """Send what is waiting."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            if not waiting:
                return
            numbers = _read([value for _, _, value in waiting])
            self.send([(name, step, number) for (name, step, _), number in zip(waiting, numbers, strict=True)])

    def finish(self, status: str) -> None:
        self.attempt(partial(self._end, status))
        self._handle = None

    def _end(self, status: str) -> None:
        self.flush()
        if self._handle is not None:
            self.close(status)


def _read(values: Sequence[Tensor | float]) -> list[float]:
    """Numbers of scalars, all tensors of one device in one transfer."""
    numbers = {i: value for i, value in enumerate(values) if not isinstance(value, Tensor)}
    tensors = {i: value for i, value in enumerate(values) if isinstance(value, Tensor)}
    for device in {value.device for value in tensors.values()}:
        here = {i: value.float().reshape(()) for i, value in tensors.items() if value.device == device}
        numbers |= zip(here, torch.stack(list(here.values())).tolist(), strict=True)
    return [float(numbers[i]) for i in range(len(values))]


class Tracked(Log):
    """What a cell's stages say to: bars and lines go to ``shown``, curves to ``tracker``, which says there if it
    fails."""

    def __init__(self, shown: Log, tracker: Tracker) -> None:
        self.shown, self.tracker = shown, tracker
        tracker.shown = shown

    def bar(self, title: str, total: int, unit: str = "it") -> Bar:
        return self.shown.bar(title, total, unit)

    def say(self, text: str) -> None:
        self.shown.say(text)

    def scalar(self, name: str, value: Tensor | float, step: int) -> None:
        self.tracker.scalar(name, value, step)
