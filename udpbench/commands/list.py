"""``python -m udpbench.commands.list [FILE]``: list every option of every group, from the comments at the top of the YAMLs.

With a file, the list replaces what stands there between ``<!-- catalog:begin -->`` and ``<!-- catalog:end -->``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from udpbench.commands.common import CONF

GROUPS = {
    "protect": "Protections",
    "attack": "Purification attacks",
    "task": "Tasks",
    "data": "Data",
    "model": "Models",
    "budget": "Budgets",
    "metric": "Metrics",
}
BEGIN, END = "<!-- catalog:begin -->", "<!-- catalog:end -->"
VERIFIED = "Verified with: "


def describe(path: Path) -> tuple[str, str]:
    """What the comment at the top of a YAML says: the description, and what the method was verified with."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    verified = next((line.removeprefix(VERIFIED) for line in lines if line.startswith(VERIFIED)), "")
    return " ".join(line for line in lines if not line.startswith(VERIFIED)), verified.rstrip(".")


def catalog() -> str:
    """The list as Markdown tables."""
    parts = []
    for group, title in GROUPS.items():
        rows = [(path.stem, *describe(path)) for path in sorted((CONF / group).glob("*.yaml"))]
        body = "\n".join(f"| `{group}={name}` | {text} | {verified or '-'} |" for name, text, verified in rows)
        parts.append(f"| {title} | | verified with |\n|---|---|---|\n{body}")
    return "\n\n".join(parts)


def update(path: Path) -> None:
    """Replace the list in ``path``.

    Raises ValueError if the marks are not there.
    """
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"catalog: {path} has no {BEGIN} and {END}")
    before, rest = text.split(BEGIN, 1)
    path.write_text(f"{before}{BEGIN}\n{catalog()}\n{END}{rest.split(END, 1)[1]}")


def main() -> None:
    """Print the list, or write it into a file."""
    if len(sys.argv) > 1:
        update(Path(sys.argv[1]))
    else:
        print(catalog())  # noqa: T201


if __name__ == "__main__":
    main()
