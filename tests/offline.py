"""What wandb's offline runs hold, read from their files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any


def offline_run(path: Path) -> dict[str, list[Any]]:
    """Kind -> what a file of wandb's holds: a log in LevelDB's format (blocks of 32 KB; checksum, size and kind before
    each piece) of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    found: dict[str, list[Any]] = {}
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        piece, at = data[at + 7 : at + 7 + size], at + 7 + size
        whole = piece if kind in (1, 2) else whole + piece  # 1 whole, 2 first, 3 middle, 4 last
        if kind in (1, 4):
            record = Record.FromString(whole)
            name = record.WhichOneof("record_type")
            found.setdefault(name, []).append(getattr(record, name))
    return found


def summary_of(run: dict[str, list[Any]]) -> dict[str, Any]:
    """The numbers by which runs are compared, as JSON, by name."""
    return {"/".join([i.key, *i.nested_key]).strip("/"): i.value_json for x in run["summary"] for i in x.update}
