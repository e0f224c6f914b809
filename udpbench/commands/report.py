"""``python -m udpbench report``: reports of records, and the tables of texts.

Nothing heavy is imported before the arguments are known to be good.
"""

from __future__ import annotations

import sys
from pathlib import Path

from udpbench.commands.common import Parser
from udpbench.commands.telling import lines_of, one_line_errors, say


def main(arguments: list[str] | None = None) -> int:
    """Write the report of folders of records, or with --fill the tables of texts; returns the exit status: 2, and what
    is wrong to stderr, if there is nothing to report; 1 if records are broken, which are left out."""
    parser = Parser("report", "Turn records into Markdown, CSV, LaTeX and HTML.")
    parser.add_argument("paths", type=Path, nargs="+", help="folders of record JSONs, at any depth; with --fill texts")
    parser.add_argument("--out", type=Path, help="where to write (default: report/ in the first folder)")
    parser.add_argument("--title", help="title of the report (default: what was run)")
    about = "where the page's pictures are (default: store/ beside the first folder)"
    parser.add_argument("--store", type=Path, help=about)
    parser.add_argument("--no-plots", action="store_true", help="no figures")
    about = "take only records that may stand beside other people's: finished, of a clean commit, with digests"
    parser.add_argument("--check", action="store_true", help=about)
    parser.add_argument("--fill", action="store_true", help="renew the <!-- table ... --> parts of Markdown texts")
    given = parser.parse_args(arguments)
    with one_line_errors():
        from udpbench.results.report.fill import fill
        from udpbench.results.report.write import write_report

        refused: list[str] = []
        try:
            if given.fill:
                for path in given.paths:
                    fill(path)
                return 0
            out = given.out or given.paths[0] / "report"
            written = write_report(given.paths, out, given.title, not given.no_plots, refused, given.store, given.check)
        except (ValueError, OSError) as error:
            for line in (*refused, *lines_of(error)):
                say(f"error: {line}")
            return 2
        sys.stdout.write("".join(f"{path}\n" for path in written))
        for line in refused:
            say(f"error: {line}; it is left out")
        return 1 if refused else 0
