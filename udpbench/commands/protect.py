"""``python -m udpbench protect IN OUT [GROUP=OPTION ...]``: protect a folder of pictures, at their own size.

The same protections and settings as in a cell (``protect=eudp budget.eps=8 model=micro``); no victim is trained.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from udpbench.commands.common import Parser
from udpbench.commands.quoting import KEY
from udpbench.commands.telling import RESUME, one_line_errors


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit status: 0 fine, 1 too little memory or an unforeseen error, with its traceback, 2 wrong input or a disk that
    is full, 130 interrupted, 128 + the signal if asked to end by SIGTERM (143), SIGUSR1 or SIGUSR2."""
    about = "Protect a folder of pictures; says how visible the change is and what of it JPEG and WebP leave."
    command("protect", "protected", Parser("protect", about), arguments)


def command(method: str, done: str, parser: Parser, arguments: Sequence[str] | None) -> None:
    """Change a folder of pictures by ``method`` (protect | attack); ``done``: what the pictures are then."""
    default = {"protect": "protect=eudp budget.eps=8", "attack": "attack=impress"}[method]
    parser.epilog = f"Default: {default} model=micro (embedded, a toy); python -m udpbench list shows the options."
    parser.add_argument("source", type=_folder, metavar="IN", help="folder with pictures of any format and size")
    parser.add_argument("target", type=_folder, metavar="OUT", help="folder for the finished pictures")
    parser.add_argument("--prompt", default="a photo", help="what the pictures show, for methods that read prompts")
    parser.add_argument("--format", choices=("png", "webp"), default="png", help="of the finished pictures (lossless)")
    parser.add_argument("--overwrite", action="store_true", help="replace files in OUT that are somebody else's, too")
    parser.takes_overrides("as for a cell, e.g. model=sd15 seed=1")
    args = parser.parse_intermixed_args(arguments)
    if said := next((text for text in map(str, (args.source, args.target)) if _is_override(text)), ""):
        parser.error(f"IN and OUT come before {said} (a folder of that name is written ./{said})")
    with one_line_errors(RESUME):
        from udpbench.commands.pictures import change, report
        from udpbench.commands.signals import heeded
        from udpbench.tracking.console import Console

        words = args.source, args.target, method, args.overrides, args.prompt, args.format
        rows, title, below = change(*words, Console(), overwrite=args.overwrite, within=heeded)
        left = f" Pictures in subfolders, which are left out: {below}." if below else ""
        report(rows, title, f"{len(rows)} {done} pictures in {args.target}. Changes are in 1/255.{left}")


def _is_override(text: str) -> bool:
    """Whether a word of the command line is a setting of Hydra's and no folder."""
    key, equal, _ = text.partition("=")
    return bool(equal and KEY.fullmatch(key)) and key[0] not in "/." and not Path(text).exists()


def _folder(text: str) -> Path:
    """A folder of the command line; a variable of the shell that is not set is no name for the one it runs in."""
    if not text:
        raise ArgumentTypeError("is empty; give a folder, . for this one")
    return Path(text)
