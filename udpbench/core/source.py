"""The source of classes from outside the package: part of their cache key, for they are under development."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from hydra.utils import get_object

from udpbench.core.component import inside

PACKAGE = Path(__file__).resolve().parent.parent
INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))
_loaded: WeakKeyDictionary[ModuleType, bytes] = WeakKeyDictionary()  # the text of each, as it was first looked at


def targets(settings: Any) -> Iterator[str]:
    """The classes that settings name (``_target_``), at any depth."""
    for name, value in inside(settings):
        if name == "_target_":
            yield str(value)
        else:
            yield from targets(value)


def source_digests(settings: Any) -> dict[str, str]:
    """Module name -> digest of its source (16 hex digits), of the modules outside the package and the installed
    libraries that define the classes named in ``settings``, and of those that these import, at any depth."""
    found: dict[str, str] = {}
    for target in targets(settings):
        for name in _with_packages(get_object(target).__module__):
            _collect(name, found)
    return found


def _collect(module: str, found: dict[str, str]) -> None:
    file = _users_file(module)
    if file is None or module in found:
        return
    text = _text(module, file)
    found[module] = hashlib.sha256(text).hexdigest()[:16]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for name in _imports(ast.parse(text), package):
        _collect(name, found)


def _text(module: str, file: Path) -> bytes:
    """The source of a module in ``file``; of a loaded one as it was first looked at, for that is what this process
    runs, whatever has been written into the file since."""
    if (loaded := sys.modules.get(module)) is None:
        return file.read_bytes()
    if loaded not in _loaded:
        _loaded[loaded] = file.read_bytes()
    return _loaded[loaded]


def _users_file(module: str) -> Path | None:
    """The source file of a module of the user's; None for the package's own, for libraries and for what is no file."""
    loaded = sys.modules.get(module)
    try:
        spec = loaded.__spec__ if loaded is not None else importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.has_location or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    file = Path(spec.origin).resolve()
    return None if any(file.is_relative_to(folder) for folder in (PACKAGE, *INSTALLED)) else file


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Names of the modules that a module of ``package`` imports, anywhere in it, and of the packages they are in.

    ``from a import b`` gives a and a.b, for b may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_packages(alias.name)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            parents = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from _with_packages(base)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _with_packages(module: str) -> Iterator[str]:
    """``a``, ``a.b`` and ``a.b.c`` for ``a.b.c``: importing it runs all of them."""
    parts = module.split(".")
    yield from (".".join(parts[: i + 1]) for i in range(len(parts)))
