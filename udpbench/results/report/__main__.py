"""Command line of the report. Nothing heavy is imported before the arguments are known to be good."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Write the report of a folder of records; exit status 2 and one line if there is nothing to report."""
    parser = argparse.ArgumentParser(
        prog="python -m udpbench.results.report", description="Turn records into Markdown, CSV, LaTeX and HTML."
    )
    parser.add_argument("folder", type=Path, help="folder with record JSONs, at any depth")
    parser.add_argument("--out", type=Path, help="where to write (default: FOLDER/report)")
    parser.add_argument("--title", help="title of the report (default: the folder's name)")
    parser.add_argument("--no-plots", action="store_true", help="tables only (faster)")
    given = parser.parse_args(arguments)
    from udpbench.results.report.write import write_report

    try:
        title = given.title or given.folder.resolve().name
        written = write_report(given.folder, given.out or given.folder / "report", title, plots=not given.no_plots)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"udpbench.results.report: {error}\n")
        return 2
    sys.stdout.write("".join(f"{path}\n" for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
