"""The order of the packages: each imports from those above it in ``ORDER`` only, lazily and for types, too, so that there are no cycles;
nothing is probed for, and every text file is UTF-8 whatever the locale."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "udpbench"
ORDER = [
    "core",
    "interfaces",
    "models",
    "optim",
    "world",
    "data protect attack task metrics",
    "benchmark",
    "results",
    "tracking",
    "commands",
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names.split()}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem == "interfaces")


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{a.name}" for a in node.names] if node.module == "udpbench" else [str(node.module)]
    return [a.name for a in node.names] if isinstance(node, ast.Import) else []


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way_nothing_is_probed_and_files_are_utf_8(file):
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse(file.read_text())):
        for name in imported(node):
            other = (*name.split("."), "")[1] if name.startswith("udpbench") else own
            assert other == own or RANK[other] < RANK[own], f"line {node.lineno} imports {name}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            (".read_text", ".write_text", "subprocess.run")
        ):
            assert "encoding" in {word.arg for word in node.keywords}, f"line {node.lineno} names no encoding"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            asked = node.args[1]
            assert not (isinstance(asked, ast.Constant) and isinstance(asked.value, str)), (
                f"line {node.lineno} probes for {asked.value!r}"
            )
