"""A mirror of a run's curves, pictures and tables, in wandb or a file.

Trackers are written to, never read: what counts is in the records. A tracker opens nothing before there is something
to log, so a caller that logs nothing for a fully cached cell leaves no trace of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from udpbench.interfaces import Log

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run as WandbRun

BUFFER = 50  # values read from the device at once
MODES = ("offline", "online", "disabled")


class Tracker(Log):
    """The interface, and the tracker that does nothing.

    Order of calls: start, then anything, then finish.
    """

    def check(self) -> None:
        """ValueError saying what to do if nothing could be sent; nothing is opened."""

    def start(self, run_id: str, group: str, config: Mapping[str, Any], folder: Path) -> None:
        """Say what run it is: ``run_id`` is the cell's recipe, ``group`` the sweep, ``folder`` where files may go.

        Opens nothing.
        """

    def image(self, name: str, path: Path) -> None:
        """Show a picture file."""

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
class _Start:
    run_id: str
    group: str
    config: Mapping[str, Any]
    folder: Path


class _Buffered(Tracker):
    """Keeps scalars as they come, tensors unread, and hands them on 50 at a time: one wait for the device each."""

    def __init__(self) -> None:
        self._begun: _Start | None = None
        self._waiting: list[tuple[str, int, Tensor | float]] = []

    def start(self, run_id: str, group: str, config: Mapping[str, Any], folder: Path) -> None:
        self._begun = _Start(run_id, group, config, folder)
        self._waiting = []

    def scalar(self, name: str, value: Tensor | float, step: int) -> None:
        self._waiting.append((name, step, value.detach() if isinstance(value, Tensor) else value))
        if len(self._waiting) >= BUFFER:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            numbers = _read([value for _, _, value in waiting])
            self._send([(name, step, number) for (name, step, _), number in zip(waiting, numbers, strict=True)])

    def _send(self, scalars: Sequence[tuple[str, int, float]]) -> None:
        raise NotImplementedError

    def _start_known(self) -> _Start:
        if self._begun is None:
            raise ValueError("track: nothing can be logged before start(run_id, group, config, folder)")
        return self._begun


def _read(values: Sequence[Tensor | float]) -> list[float]:
    """Numbers of scalars, all tensors of one device in one transfer."""
    numbers = [0.0 if isinstance(v, Tensor) else float(v) for v in values]
    devices = {v.device for v in values if isinstance(v, Tensor)}
    for device in devices:
        at = [i for i, v in enumerate(values) if isinstance(v, Tensor) and v.device == device]
        for i, number in zip(at, torch.stack([values[i].float().reshape(()) for i in at]).tolist(), strict=True):  # type: ignore[union-attr]
            numbers[i] = number
    return numbers


class Wandb(_Buffered):
    """A run in Weights & Biases, by its id: the same cell run again goes on in the same run.

    Offline that is one more run folder of the same id, for ``wandb sync`` to join. Curves have their own step axis
    each. The last block of an offline file is written when the process ends, or soon after ``finish``.
    """

    def __init__(self, mode: str = "offline", project: str = "udpbench") -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"track wandb: unknown mode {mode!r}; allowed are {', '.join(MODES)}")
        if not project:
            raise ValueError("track wandb: project is empty; give it a name")
        self.mode, self.project = mode, project
        self._run: WandbRun | None = None
        self._axes: set[str] = set()

    def check(self) -> None:
        if self.mode != "online":
            return
        import wandb

        instead = "take track.mode=offline and send with `wandb sync` later"
        try:
            known = wandb.login(prompt=False)
        except wandb.Error as error:
            raise ValueError(f"track wandb: {' '.join(str(error).split())}; {instead}") from error
        if not known:
            raise ValueError(f"track wandb: no API key for mode online; run `wandb login`, or {instead}")

    def image(self, name: str, path: Path) -> None:
        run = self._open()
        import wandb

        run.log({name: wandb.Image(str(path))})

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            run = self._open()
            import wandb

            columns: list[str | int] = list(rows[0])
            run.log({name: wandb.Table(columns=columns, data=[[row[str(c)] for c in columns] for row in rows])})

    def bars(self, name: str, values: Mapping[str, float]) -> None:
        run = self._open()
        import wandb

        rows = wandb.Table(columns=["arm", name], data=[[label, value] for label, value in values.items()])
        run.log({name: wandb.plot.bar(rows, "arm", name, title=name)})

    def summary(self, values: Mapping[str, float]) -> None:
        self._flush()
        self._open().summary.update(dict(values))

    def finish(self, status: str) -> None:
        self._flush()
        run, self._run, self._axes = self._run, None, set()
        if run is not None:
            run.finish(exit_code=0 if status == "ok" else 1)

    def _send(self, scalars: Sequence[tuple[str, int, float]]) -> None:
        run = self._open()
        for name, step, value in scalars:
            axis = f"{name.rpartition('/')[0] or name}/step"
            if name not in self._axes:  # trainings of one cell count from 0 each, wandb's own step only grows
                self._axes.add(name)
                run.define_metric(name, step_metric=axis)
            run.log({name: value, axis: step})

    def _open(self) -> WandbRun:
        if self._run is None:
            known = self._start_known()
            import wandb

            known.folder.mkdir(parents=True, exist_ok=True)
            # Its own run whatever a notebook around us has open; stdout stays ours.
            settings = wandb.Settings(reinit="create_new", console="off", silent=True, save_code=False)
            self._run = wandb.init(
                project=self.project,
                id=known.run_id,
                resume="allow",
                group=known.group,
                config=dict(known.config),
                dir=str(known.folder),
                mode=self.mode,  # type: ignore[arg-type]
                settings=settings,
            )
        return self._run


class Jsonl(_Buffered):
    """One JSON object a line, appended to ``path`` (relative: in the cell's folder)."""

    def __init__(self, path: str = "track.jsonl") -> None:
        super().__init__()
        if not path:
            raise ValueError("track jsonl: path is empty; give a file name")
        self.path = path
        self._opened = False

    def start(self, run_id: str, group: str, config: Mapping[str, Any], folder: Path) -> None:
        super().start(run_id, group, config, folder)
        self._opened = False

    def image(self, name: str, path: Path) -> None:
        self._write([{"event": "image", "name": name, "path": str(path)}])

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._write([{"event": "table", "name": name, "rows": [dict(row) for row in rows]}])

    def bars(self, name: str, values: Mapping[str, float]) -> None:
        self._write([{"event": "bars", "name": name, "values": dict(values)}])

    def summary(self, values: Mapping[str, float]) -> None:
        self._flush()
        self._write([{"event": "summary", "values": dict(values)}])

    def finish(self, status: str) -> None:
        self._flush()
        if self._opened:
            self._write([{"event": "finish", "status": status}])
        self._opened = False

    def _send(self, scalars: Sequence[tuple[str, int, float]]) -> None:
        self._write(
            [{"event": "scalar", "name": name, "step": step, "value": _json_number(v)} for name, step, v in scalars]
        )

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        known = self._start_known()
        if not self._opened:
            self._opened = True
            rows = [
                {"event": "start", "run_id": known.run_id, "group": known.group, "config": dict(known.config)},
                *rows,
            ]
        path = known.folder / self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _json_number(x: float) -> float | str:
    """JSON has no NaN; a training that diverged is shown as the text "nan" or "inf"."""
    return x if abs(x) < float("inf") else str(x)


class Fanout(Tracker):
    """Sends everything to several logs: the terminal and a tracker, say."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self.logs = list(logs)

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "it") -> Iterator[Callable[[int], None]]:
        with ExitStack() as stack:
            advances = [stack.enter_context(log.bar(title, total, unit)) for log in self.logs]

            def advance_all(n: int) -> None:
                for advance in advances:
                    advance(n)

            yield advance_all

    def scalar(self, name: str, value: Tensor | float, step: int) -> None:
        for log in self.logs:
            log.scalar(name, value, step)

    def say(self, text: str) -> None:
        for log in self.logs:
            log.say(text)

    def start(self, run_id: str, group: str, config: Mapping[str, Any], folder: Path) -> None:
        for tracker in self._trackers():
            tracker.start(run_id, group, config, folder)

    def image(self, name: str, path: Path) -> None:
        for tracker in self._trackers():
            tracker.image(name, path)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        for tracker in self._trackers():
            tracker.table(name, rows)

    def bars(self, name: str, values: Mapping[str, float]) -> None:
        for tracker in self._trackers():
            tracker.bars(name, values)

    def summary(self, values: Mapping[str, float]) -> None:
        for tracker in self._trackers():
            tracker.summary(values)

    def finish(self, status: str) -> None:
        for tracker in self._trackers():
            tracker.finish(status)

    def _trackers(self) -> list[Tracker]:
        return [log for log in self.logs if isinstance(log, Tracker)]
