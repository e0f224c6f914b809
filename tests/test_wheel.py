"""The wheel is whole: configuration, weights and templates travel in it, and it runs away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def python(*words: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_runs_elsewhere(tmp_path):
    pip = ("-m", "pip", "--disable-pip-version-check", "--quiet")
    python(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT), cwd=tmp_path)
    (wheel,) = tmp_path.glob("udpbench-*.whl")
    python(*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel), cwd=tmp_path)
    package, elsewhere = tmp_path / "site" / "udpbench", {"PYTHONPATH": str(tmp_path / "site")}
    where = python("-c", "import udpbench; print(udpbench.__file__)", cwd=tmp_path, **elsewhere)
    assert Path(where.strip()) == package / "__init__.py"
    checkout = ROOT / "udpbench"
    for pattern in ("models/micro/weights/**/*.safetensors", "results/report/templates/*"):
        files = sorted(str(p.relative_to(checkout)) for p in checkout.glob(pattern))
        assert files
        assert files == sorted(str(p.relative_to(package)) for p in package.glob(pattern))
    assert "EUDP" in python("-m", "udpbench", "list", "protect", cwd=tmp_path, **elsewhere)
    planned = python("-m", "udpbench", "plan", "protect=noise", "track=none", cwd=tmp_path, **elsewhere)
    assert "stages to do" in planned
