"""``python -m udpbench``: a first word without ``=`` is a command, anything else a cell or a grid.

The console script ``udpbench`` is the same.
"""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "plan": "what a cell or a grid would compute, and how long it would take",
    "protect": "protect a folder of pictures: protect IN OUT",
    "purify": "purify a folder of pictures: purify IN OUT",
    "score": "score a folder of pictures: score GOT REF",
    "rerun": "one cell again from its record, and whether it agrees: rerun RECORD",
    "report": "records to HTML, Markdown, CSV and LaTeX: report RECORDS...",
    "store": "finished work: store ls | why | verify | gc | rm",
    "list": "what exists: list [protect|attack|task|metric|...] [NAME]",
    "bench": "time the hot loops",
    "doctor": "what this machine has and lacks",
}


def main() -> None:
    """Hand the words on to a command; without one, run the cell or the grid that they name."""
    try:
        _main(sys.argv[1] if len(sys.argv) > 1 else "")
    except KeyboardInterrupt:  # while libraries are loaded; later the commands say more
        sys.stderr.write("interrupted\n")
        sys.exit(130)


def _main(first: str) -> None:
    if first and first[0] not in "-'\"+~" and "=" not in first and first not in COMMANDS:
        known = "".join(f"\n  {name:8} {text}" for name, text in COMMANDS.items())
        sys.stderr.write(f"error: unknown command {first!r}; say GROUP=OPTION ..., or one of{known}\n")
        sys.exit(2)
    if first == "--version":  # Hydra would tell its own
        version = import_module("udpbench.core.provenance").version
        sys.stdout.write(
            "".join(f"{name} {version(name)}\n" for name in ("udpbench", "torch", "diffusers", "hydra-core"))
        )
        return
    if first in COMMANDS:
        sys.exit(import_module(f"udpbench.commands.{first}").main(sys.argv[2:]))
    import_module("udpbench.commands.run").run()


if __name__ == "__main__":
    main()
