"""``python -m udpbench purify IN OUT [GROUP=OPTION ...]``: an attack on a folder of pictures as they are.

The same attacks and settings as in a cell (``attack=impress model@purifier=micro``); without one, IMPRESS.
"""

from __future__ import annotations

from collections.abc import Sequence

from udpbench.commands.common import Parser
from udpbench.commands.protect import command


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit status: 0 fine, 1 too little memory or an unforeseen error, with its traceback, 2 wrong input or a disk that
    is full, 130 interrupted, 128 + the signal if asked to end by SIGTERM (143), SIGUSR1 or SIGUSR2."""
    about = "Purify a folder of pictures, protected or not; says how far they were changed."
    command("attack", "purified", Parser("purify", about), arguments)
