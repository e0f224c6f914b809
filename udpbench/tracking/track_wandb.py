"""track=wandb: a run in Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udpbench.core.component import check_choice
from udpbench.tracking.track import Buffered, Start

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run as WandbRun

TAG = 64  # letters that wandb allows a tag
MODES = ("offline", "online", "disabled")


class Wandb(Buffered):
    """A run in Weights & Biases, by its id: the same cell run again goes on in the same run.

    Offline that is one more run folder of the same id, for ``wandb sync`` to join. Curves have their own step axis
    each. The last block of an offline file is written when the process ends, or soon after ``finish``.
    """

    def __init__(self, mode: str = "offline", project: str = "udpbench") -> None:
        super().__init__()
        check_choice("track wandb: unknown mode", mode, MODES)
        if not project:
            raise ValueError("track wandb: project is empty; give it a name")
        self.mode, self.project = mode, project
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

    def open(self, started: Start) -> WandbRun:
        import wandb

        started.folder.mkdir(parents=True, exist_ok=True)
        # Its own run whatever a notebook around us has open; stdout stays ours.
        settings = wandb.Settings(reinit="create_new", console="off", silent=True, save_code=False)
        self._axes = set()
        return wandb.init(
            project=self.project,
            id=started.run_id,
            resume="allow",
            group=started.group,
            name=", ".join(started.tags) or None,
            tags=[tag[:TAG] for tag in dict.fromkeys(started.tags)],
            config=dict(started.config),
            dir=str(started.folder),
            mode=self.mode,  # type: ignore[arg-type]
            settings=settings,
        )

    def images(self, name: str, paths: Sequence[Path]) -> None:
        import wandb

        self.opened.log({name: [wandb.Image(str(path), caption=path.name) for path in paths]})

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            self.opened.log({name: _table(list(rows[0]), [list(row.values()) for row in rows])})

    def bars(self, name: str, values: Mapping[str, float]) -> None:
        import wandb

        rows = _table(["arm", name], [list(row) for row in values.items()])
        self.opened.log({name: wandb.plot.bar(rows, "arm", name, title=name)})

    def summary(self, values: Mapping[str, float]) -> None:
        self.flush()
        self.opened.summary.update(dict(values))

    def send(self, scalars: Sequence[tuple[str, int, float]]) -> None:
        for name, step, value in scalars:
            axis = f"{name.rpartition('/')[0] or name}/step"
            if name not in self._axes:  # trainings of one cell count from 0 each, wandb's own step only grows
                self._axes.add(name)
                self.opened.define_metric(name, step_metric=axis)
            self.opened.log({name: value, axis: step})

    def close(self, status: str) -> None:
        self.opened.finish(exit_code=0 if status == "ok" else 1)


def _table(columns: list[str | int], rows: list[list[Any]]) -> Any:
    import wandb

    return wandb.Table(columns=columns, data=rows)
