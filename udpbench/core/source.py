"""The source of classes from outside the package: part of their cache key, for they are under development."""

from __future__ import annotations

import ast
import csv
import hashlib
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from hydra.utils import get_object

from udpbench.core.component import Component, inside
from udpbench.core.package import PACKAGE

SITES = ("site-packages", "dist-packages")  # names of folders that installers write into
_loaded: WeakKeyDictionary[ModuleType, bytes] = WeakKeyDictionary()  # the text of each, as it was first looked at


def targets(settings: Any) -> Iterator[str]:
    """The classes that settings name (``_target_``), at any depth."""
    for name, value in inside(settings):
        if name == "_target_":
            yield str(value)
        else:
            yield from targets(value)


def source_digests(settings: Any) -> dict[str, str]:
    """Module name -> digest of its source (16 hex digits), of the modules outside the package that define the classes
    named in ``settings``, and of those that these import, at any depth.

    Installed libraries are left out, but not the packages that the classes of methods (``Component``) are in.
    """
    found: dict[str, str] = {}
    for target in targets(settings):
        named = get_object(target)
        own = _packages_of(named)
        for name in _with_packages(named.__module__):
            _collect(name, own, found)
    return found


def _packages_of(named: Any) -> frozenset[str]:
    """The packages (by their first names) outside udpbench that a component's class and those it derives from are
    in."""
    kinds = named.__mro__ if isinstance(named, type) else ()
    return frozenset(kind.__module__.partition(".")[0] for kind in kinds if issubclass(kind, Component)) - {"udpbench"}


def _collect(module: str, own: frozenset[str], found: dict[str, str]) -> None:
    file = _source_file(module)
    if file is None or module in found or not _is_users(module, file, own):
        return
    text = _text(module, file)
    found[module] = hashlib.sha256(text).hexdigest()[:16]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for name in _imports(ast.parse(text), package):
        _collect(name, own, found)


def _text(module: str, file: Path) -> bytes:
    """The source of a module in ``file``; of a loaded one as it was first looked at, for that is what this process
    runs, whatever has been written into the file since."""
    if (loaded := sys.modules.get(module)) is None:
        return file.read_bytes()
    if loaded not in _loaded:
        _loaded[loaded] = file.read_bytes()
    return _loaded[loaded]


def _source_file(module: str) -> Path | None:
    """The source file of a module; None for what is no file. Nothing is imported to find it."""
    if (loaded := sys.modules.get(module)) is not None:
        spec = loaded.__spec__
        located = spec is not None and spec.has_location and spec.origin is not None
        return _python(Path(str(spec.origin))) if located else None  # type: ignore[union-attr]
    first, *rest = module.split(".")
    if not rest:
        return _python(Path(origin)) if (origin := _top(first)[0]) else None
    *inner, last = rest
    for place in _top(first)[1]:
        for file in (place.joinpath(*inner, last, "__init__.py"), place.joinpath(*inner, f"{last}.py")):
            if file.is_file():
                return file
    return None


def _python(file: Path) -> Path | None:
    return file if file.suffix == ".py" and file.is_file() else None


def _top(name: str) -> tuple[str | None, list[Path]]:
    """The file of a module in no package, and the folders of its own modules if it is a package."""
    try:
        loaded = sys.modules.get(name)
        spec = loaded.__spec__ if loaded is not None else importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None, []
    if spec is None:
        return None, []
    return spec.origin if spec.has_location else None, [Path(place) for place in spec.submodule_search_locations or ()]


def _is_users(module: str, file: Path, own: frozenset[str]) -> bool:
    """Whether a module in ``file`` is of the user's: not of udpbench, nor of a library that is not among the packages
    ``own``."""
    if file.resolve().is_relative_to(PACKAGE.resolve()):
        return False
    return module.partition(".")[0] in own or not _is_installed(module, file)


def _is_installed(module: str, file: Path) -> bool:
    """Whether an installer put ``file`` where it is, or it is of Python itself."""
    if any({*path.parts} & {*SITES} or _within(path, _libraries()) for path in (file.absolute(), file.resolve())):
        return True
    above = file.absolute().parents[len(module.split(".")) - (file.name != "__init__.py") :]
    return bool(above) and file.absolute().relative_to(above[0]).parts[0] in _installed_in(above[0])


def _within(path: Path, folders: frozenset[Path]) -> bool:
    return not folders.isdisjoint(path.parents)


@cache
def _libraries() -> frozenset[Path]:
    """The folders of Python's own modules and of those that are installed for it: this environment's, and those of the
    one that it was made from."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    base |= {"installed_base": sys.base_prefix, "installed_platbase": sys.base_exec_prefix}
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    found = [sysconfig.get_path(name, vars=given) for name in names for given in ({}, base)]
    return frozenset(Path(path).resolve() for path in (*found, *site.getsitepackages(), site.getusersitepackages()))


@cache
def _installed_in(folder: Path) -> frozenset[str]:
    """The first names of the files that an installer listed in ``folder`` (as with ``pip install --target``)."""
    lines = (line for listing in folder.glob("*.dist-info/RECORD") for line in _lines(listing))
    return frozenset(row[0].partition("/")[0] for row in csv.reader(lines) if row)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


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
