"""``python -m udpbench.commands.protect``: one's own pictures, at their own size, through the real command."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from udpbench.core.budget import measure
from udpbench.core.images import read, write_png


def cloak(source, target, *words: str, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "udpbench.commands.protect", str(source), str(target), *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_pictures_of_two_sizes_keep_size_and_budget(tmp_path, tiny):
    source, target = tmp_path / "Bilder (1), Müller's", tmp_path / "out"  # names that an override could not hold
    source.mkdir()
    for name, size in (("a", (30, 41)), ("b", (24, 24))):
        write_png(source / f"{name}.png", torch.rand(3, *size, generator=torch.Generator().manual_seed(0)))
    small = ["protect=eudp", "protect.rounds=1", "protect.model_steps=1", "protect.image_steps=3", "budget.eps=6"]
    model = ["model=local", f"model.path={tiny}", "model.dtype=fp32"]
    done = cloak(source, target, *small, *model, "--prompt", "my cat's ball, (red)", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("a.png", "b.png"):
        found = measure(read(source / name), read(target / name))
        assert 0 < found["linf"] <= 6
        assert name in done.stdout
    assert "eudp, linf_6" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["protect=nosuch"], "nosuch"),
        (["protect=noise", "budget.eps=300"], "300"),
        (["protect=noise", "model=local", "model.path=/no/such/folder"], "/no/such/folder"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(tmp_path, words, said):
    (tmp_path / "in").mkdir()
    write_png(tmp_path / "in" / "a.png", torch.rand(3, 16, 16))
    done = cloak(tmp_path / "in", tmp_path / "out", *words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_missing_folder_is_named(tmp_path):
    done = cloak(tmp_path / "nowhere", tmp_path / "out", "protect=noise", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere" in done.stderr


@pytest.mark.slow
def test_one_s_own_pictures_are_never_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    write_png(tmp_path / "mine" / "a.png", torch.zeros(3, 16, 16))
    before = (tmp_path / "mine" / "a.png").read_bytes()
    done = cloak(tmp_path / "mine", tmp_path / "mine" / ".", cwd=tmp_path)
    assert done.returncode == 2
    assert "the protected pictures would replace your own; give another folder" in done.stderr
    assert (tmp_path / "mine" / "a.png").read_bytes() == before
