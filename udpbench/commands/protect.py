"""``python -m udpbench protect IN OUT [GROUP=OPTION ...]``: protect a folder of pictures, at their own size.

The same protections and settings as in a cell (``protect=eudp budget.eps=8 model=micro``); no victim is trained.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit status: 0 fine, 2 wrong input, 130 interrupted."""
    from udpbench.commands.pictures import command

    about = "Protect a folder of pictures; says how visible the change is and what of it JPEG and WebP leave."
    command("protect", arguments, about)
