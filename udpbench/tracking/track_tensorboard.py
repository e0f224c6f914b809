"""track=tensorboard: event files for TensorBoard; needs its package (the extra ``tensorboard``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from udpbench.core.images import read
from udpbench.tracking.track import Buffered, Start


class Tensorboard(Buffered):
    """Curves, the contact sheet and the final numbers as event files in ``folder`` (relative: in the cell's folder)."""

    def __init__(self, folder: str = "tensorboard") -> None:
        super().__init__()
        self.folder = folder

    def check(self) -> None:
        if find_spec("tensorboard") is None:
            raise ValueError("track tensorboard: its package is missing; pip install tensorboard")

    def open(self, started: Start) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(started.folder / self.folder))
        writer.add_text("tags", ", ".join(started.tags))
        return writer

    def images(self, name: str, paths: Sequence[Path]) -> None:
        for i, path in enumerate(paths):  # sizes may differ, so they stand one after another
            self.opened.add_image(name, read(path), i)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
            self.opened.add_text(name, "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))

    def summary(self, values: Mapping[str, float]) -> None:
        self.flush()
        self.send([(name, 0, value) for name, value in values.items()])

    def send(self, scalars: Sequence[tuple[str, int, float]]) -> None:
        for name, step, value in scalars:
            self.opened.add_scalar(name, value, step)

    def close(self, status: str) -> None:
        self.opened.close()
