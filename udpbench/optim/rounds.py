"""Work that is done in rounds: what an interrupted attempt did is not done again."""

from __future__ import annotations

import time
from typing import Any

from udpbench.interfaces import Run
from udpbench.optim.fit import load_state, save_state

SAVE_EVERY = 120.0  # seconds; writing a surrogate of Stable Diffusion's size takes many


class Rounds:
    """The rounds of a piece of work, and the state after the last one that was saved, in the file ``name`` of
    ``run.scratch``.

    ``saved``: that state, whose counts are in ``run.count``, or None. ``first``: the first round still to do.
    """

    def __init__(self, run: Run, name: str, total: int) -> None:
        self.run, self.total = run, total
        self.file = None if run.scratch is None else run.scratch / name
        self.saved = load_state(self.file, run.log)
        self.first = 0
        if self.saved is not None:
            run.count.update(self.saved["count"])
            self.first = self.saved["rounds"]
        self._written = time.monotonic()

    @property
    def left(self) -> range:
        """The numbers of the rounds that are to be done."""
        return range(self.first, self.total)

    def done(self, k: int, state: dict[str, Any]) -> None:
        """After round ``k``: save ``state`` if the last save is ``SAVE_EVERY`` seconds old or the process was asked to
        end; raises Stopped, then, in the latter case."""
        due = time.monotonic() - self._written >= SAVE_EVERY or self.run.stop.is_set()
        if self.file is not None and due and k + 1 < self.total:
            save_state(self.file, state | {"rounds": k + 1}, self.run)
            self._written = time.monotonic()
