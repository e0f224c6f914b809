"""Where numbers come from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from factory import make_record

from udpbench.core import provenance as P
from udpbench.results import record


def _git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


def _found() -> P.Provenance:
    """What a new process would find."""
    P._git.cache_clear()
    return P.provenance()


def test_provenance_knows_its_commit_and_what_makes_it_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "udpbench" / "provenance.py"
    code.parent.mkdir()
    code.write_text("one")
    monkeypatch.setattr(P, "__file__", str(code))
    assert [_found()[k] for k in ("commit", "dirty", "changed")] == [None, None, None]
    _git(tmp_path, "init", "-q")
    assert _found()["commit"] is None  # inside a repository that does not track it
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "x")
    (tmp_path / "new_record.json").write_text("{}")
    assert len(_found()["commit"]) == 40
    assert _found()["dirty"] is False  # a record beside the code changes no number
    assert _found()["changed"] == []
    code.write_text("two")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "ä new.yaml").write_text("a: 1")
    assert _found()["dirty"] is True
    assert _found()["changed"] == ["conf/ä new.yaml", "udpbench/provenance.py"]
    code.unlink()
    assert "udpbench/provenance.py" in _found()["changed"]
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "y")
    assert P.provenance()["dirty"] is True, "what the process has loaded does not change with a commit"
    assert P._git.__wrapped__()[1] is None, "the file is no longer there"
    P._git.cache_clear()


def test_a_commit_says_whether_the_code_was_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, said in ((("abc", []), "abc"), (("abc", ["conf/a.yaml"]), "abc-dirty"), ((None, None), None)):
        monkeypatch.setattr(P, "_git", lambda found=found: found)
        assert P.commit() == said


def test_provenance_fits_into_a_record(tmp_path: Path) -> None:
    found = P.provenance()
    assert found["packages"]["torch"].split(".")[0].isdigit()
    assert found["device"].startswith("cpu: ")
    record.write(tmp_path / "a.json", {**make_record(), "provenance": found})
