"""The pictures of a stage that are in memory at once, and which of them an interrupted attempt had finished."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from udpbench.core.images import batches, list_images, readable
from udpbench.interfaces import Log, Run


def batches_of_names(folder: Path, out: Path, run: Run, coupled: bool) -> Iterator[list[str]]:
    """Names of the pictures of ``folder`` that are in memory at once: all if they are ``coupled``, else a batch with
    gradients; with a bar if that takes several.

    What is made of them is in ``out`` (``png_path``) when the next names are asked for. Batches that an interrupted
    attempt finished are skipped, and their counts restored. Raises Stopped between two batches if asked to.
    """
    parts = [list_images(folder)] if coupled else list(batches(folder, run.grad_batch))
    log = run.log if len(parts) > 1 else Log()
    assert run.scratch is not None
    finished = _Finished(run.scratch / "finished.jsonl", out)
    with log.bar("pictures", sum(map(len, parts)), "img") as advance:
        for paths in parts:
            names = [path.name for path in paths]
            if (counts := finished.counts_of(names)) is None:
                run.stop_if_asked()
                before = Counter(run.count)
                yield names
                finished.add(names, {what: n - before[what] for what, n in run.count.items()})
            else:
                for what, n in counts.items():
                    run.tally(what, n)
            advance(len(paths))


def png_path(out: Path, name: str) -> Path:
    """Where in ``out`` the picture is that was made of the one called ``name``."""
    return (out / name).with_suffix(".png")


class _Finished:
    """The batches of pictures in ``out`` that a stage has finished, with what was counted in each; a line of ``file``
    for each of them."""

    def __init__(self, file: Path, out: Path) -> None:
        self.file, self.out = file, out
        self.counts: dict[tuple[str, ...], dict[str, int]] = {}
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            with suppress(ValueError):  # the last one, cut when the power went
                found = json.loads(line)
                self.counts[tuple(found["names"])] = found["counts"]

    def counts_of(self, names: Sequence[str]) -> dict[str, int] | None:
        """What was counted in a batch that is finished; None for one that is not: a power loss may have left a picture
        empty."""
        counts = self.counts.get(tuple(names))
        return counts if counts is not None and all(readable(png_path(self.out, name)) for name in names) else None

    def add(self, names: Sequence[str], counts: Mapping[str, int]) -> None:
        """A batch is finished."""
        with self.file.open("a", encoding="utf-8") as file:  # a new line, whatever the one before was cut to
            file.write("\n" + json.dumps({"names": list(names), "counts": counts}))
