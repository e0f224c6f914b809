"""track=jsonl: a file of one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from udpbench.tracking.track import Buffered


class Jsonl(Buffered):
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
        self.flush()
        self._write([{"event": "summary", "values": dict(values)}])

    def finish(self, status: str) -> None:
        self.flush()
        if self._opened:
            self._write([{"event": "finish", "status": status}])
        self._opened = False

    def send(self, scalars: Sequence[tuple[str, int, float]]) -> None:
        self._write(
            [{"event": "scalar", "name": name, "step": step, "value": _json_number(v)} for name, step, v in scalars]
        )

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        known = self.started()
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
