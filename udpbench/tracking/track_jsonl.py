"""track=jsonl: a file of one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from udpbench.tracking.track import Buffered, Start


class Jsonl(Buffered):
    """One JSON object a line, appended to ``path`` (relative: in the cell's folder)."""

    def __init__(self, path: str = "track.jsonl") -> None:
        super().__init__()
        if not path:
            raise ValueError("track jsonl: path is empty; give a file name")
        self.path = path

    def open(self, started: Start) -> Path:
        path = started.folder / self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        names = {"run_id": started.run_id, "group": started.group, "tags": list(started.tags)}
        _append(path, "start", **names, config=dict(started.config))
        return path

    def images(self, name: str, paths: Sequence[Path]) -> None:
        _append(self.opened, "images", name=name, paths=[*map(str, paths)])

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        _append(self.opened, "table", name=name, rows=[dict(row) for row in rows])

    def bars(self, name: str, values: Mapping[str, float]) -> None:
        _append(self.opened, "bars", name=name, values=dict(values))

    def summary(self, values: Mapping[str, float]) -> None:
        self.flush()
        _append(self.opened, "summary", values=dict(values))

    def send(self, scalars: Sequence[tuple[str, int, float]]) -> None:
        for name, step, value in scalars:
            # JSON has no NaN: a training that diverged is shown as the text "nan" or "inf".
            number = value if abs(value) < float("inf") else str(value)
            _append(self.opened, "scalar", name=name, step=step, value=number)

    def close(self, status: str) -> None:
        _append(self.opened, "finish", status=status)


def _append(file: Path, event: str, /, **found: Any) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps({"event": event} | found, allow_nan=False) + "\n")
