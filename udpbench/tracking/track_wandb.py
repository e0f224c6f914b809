"""track=wandb: a run in Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udpbench.tracking.track import Buffered

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run as WandbRun

MODES = ("offline", "online", "disabled")


class Wandb(Buffered):
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
        self.flush()
        self._open().summary.update(dict(values))

    def finish(self, status: str) -> None:
        self.flush()
        run, self._run, self._axes = self._run, None, set()
        if run is not None:
            run.finish(exit_code=0 if status == "ok" else 1)

    def send(self, scalars: Sequence[tuple[str, int, float]]) -> None:
        run = self._open()
        for name, step, value in scalars:
            axis = f"{name.rpartition('/')[0] or name}/step"
            if name not in self._axes:  # trainings of one cell count from 0 each, wandb's own step only grows
                self._axes.add(name)
                run.define_metric(name, step_metric=axis)
            run.log({name: value, axis: step})

    def _open(self) -> WandbRun:
        if self._run is None:
            known = self.started()
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
