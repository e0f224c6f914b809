"""The command line in a process of its own that need not import anything: a fork of the tests' process.

It has its own output, arguments, folder and signals, and is interrupted and killed as any other. What a command imports,
and that it starts at all, is shown by the tests that start one from nothing; so do those of several processes at a cell,
which would find this one done before the others have imported anything.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from pathlib import Path

from udpbench import __main__ as entry

FORK = multiprocessing.get_context("fork")


class Command:
    """``python -m udpbench WORDS`` in the folder ``cwd``, begun; ``path``: folders whose modules it may import, too."""

    def __init__(self, *words: str, cwd: Path | None = None, path: tuple[Path, ...] = ()) -> None:
        self.output = Path(tempfile.mkdtemp())
        self.process = FORK.Process(target=self._main, args=(words, cwd, path))
        self.process.start()
        self.pid = self.process.pid

    def _main(self, words: tuple[str, ...], cwd: Path | None, path: tuple[Path, ...]) -> None:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(self.output / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            setattr(sys, name, os.fdopen(number, "w", 1, "utf-8"))
        # A test run in the background of a shell ignores SIGINT and hands that on: a person's terminal does not.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(cwd or ".")
        os.environ["COLUMNS"] = "110"
        os.environ.pop("HYDRA_FULL_ERROR", None)
        sys.path[:0] = map(str, path)
        sys.dont_write_bytecode = True  # what is compiled would be taken for a source of the same second and size
        sys.argv = ["udpbench", *words]
        entry.main()

    def poll(self) -> int | None:
        """Its status as ``subprocess`` has it, None while it runs."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def finish(self, timeout: float = 280.0) -> tuple[int | None, str, str]:
        """Its status, and what it wrote to stdout and stderr, once it has ended; killed, and status None, if it does not."""
        self.process.join(timeout)
        status = self.poll()
        if status is None:
            self.process.kill()
        out, err = ((self.output / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
        return status, out, err
