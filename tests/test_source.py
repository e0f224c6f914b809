"""Whose source is in the keys of methods from outside the package: theirs wherever it lies, never that of libraries."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from udpbench.core import source
from udpbench.core.source import source_digests

FILES = {
    "plugged/__init__.py": "",
    "plugged/method.py": "import bystander\nfrom udpbench.interfaces import Protection\nfrom .helper import SIZE\n\n\n"
    "class Plugged(Protection):\n    size = SIZE\n",
    "plugged/helper.py": "SIZE = 1\n",
    "plugged/other.py": "SIZE = 2\n",
    "plugged/layer.py": "class Layer:\n    pass\n",
    "bystander/__init__.py": "from . import inner\n",
    "bystander/inner.py": "",
}
RECORD = "".join(f"{name},sha256=x,1\n" for name in FILES)
OWN = {"plugged", "plugged.method", "plugged.helper"}


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A folder, which is made of text files by name, on ``sys.path``; what was imported from it is forgotten again."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source._installed_in.cache_clear()
    before = set(sys.modules)

    def write(folder: str, files: dict[str, str]) -> Path:
        for name, text in files.items():
            file = tmp_path / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        monkeypatch.syspath_prepend(tmp_path / folder)
        return tmp_path / folder

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]
    source._installed_in.cache_clear()


@pytest.mark.parametrize("folder", ["lib/python3/site-packages", "usr/lib/dist-packages", "target"])
def test_an_installed_method_s_own_package_is_in_and_what_it_imports_from_others_is_not(path, folder):
    path(folder, FILES | {"plugged-1.dist-info/RECORD": RECORD})
    assert set(source_digests({"_target_": "plugged.method.Plugged"})) == OWN


def test_a_class_that_is_no_method_is_in_only_where_nobody_installed_it(path):
    path("site-packages", FILES)
    assert source_digests({"parts": [{"_target_": "plugged.layer.Layer"}]}) == {}


def test_beside_a_file_that_was_written_by_hand_what_an_installer_listed_is_left_out(path):
    listed = "".join(f"{name},,\n" for name in FILES if name.startswith("bystander"))
    path("target", FILES | {"bystander-1.dist-info/RECORD": listed})
    assert set(source_digests({"_target_": "plugged.method.Plugged"})) == OWN


def test_what_nobody_installed_is_in(path):
    path("here", FILES)
    found = source_digests({"_target_": "plugged.method.Plugged"})
    assert set(found) == {*OWN, "bystander", "bystander.inner"}
    assert found["plugged.helper"] == hashlib.sha256(FILES["plugged/helper.py"].encode()).hexdigest()[:16]


def test_a_method_that_derives_from_an_installed_one_has_the_source_of_both(path):
    path("site-packages", FILES)
    path("here", {"derived.py": "from plugged.method import Plugged\n\n\nclass Derived(Plugged):\n    pass\n"})
    assert set(source_digests({"_target_": "derived.Derived"})) == {"derived", *OWN}


def test_modules_that_are_imported_late_are_found_without_being_run(path):
    """A package that cannot be imported here, and one that is a folder without a file of its own."""
    late = {
        "late.py": "from udpbench.interfaces import Protection\n\n\nclass Late(Protection):\n"
        "    def protect(self, *given):\n        import broken.deep.part\n        from spread.within import part\n",
        "broken/__init__.py": "raise SystemExit(3)\n",
        "broken/deep/__init__.py": "raise SystemExit(3)\n",
        "broken/deep/part.py": "import numpy.linalg, sqlite3.dbapi2\n",
        "spread/within/part.py": "",
    }
    path("here", late)
    found = source_digests({"_target_": "late.Late"})
    assert set(found) == {"late", "broken", "broken.deep", "broken.deep.part", "spread.within.part"}
    assert "broken" not in sys.modules


def test_no_library_is_walked_through_wherever_the_environment_has_it(path, monkeypatch):
    """Without what ``sysconfig`` knows of, as in an environment that was made with the system's packages."""
    path("here", {"heavy.py": "import torch\nimport numpy\nfrom udpbench.interfaces import Attack\n\n\n"
                  "class Heavy(Attack):\n    pass\n"})  # fmt: skip
    read: list[str] = []
    text = source._text
    monkeypatch.setattr(source, "_text", lambda module, file: read.append(module) or text(module, file))
    monkeypatch.setattr(source, "_libraries", lambda: frozenset({Path(source.ast.__file__).parent.resolve()}))
    assert set(source_digests({"_target_": "heavy.Heavy"})) == {"heavy"}
    assert read == ["heavy"]
