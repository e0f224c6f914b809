"""Who asks a CPU without instructions for bfloat16 to compute in it is told so before the work begins."""

from __future__ import annotations

import time

import pytest
import torch
from shared import small

from udpbench.benchmark import remarks
from udpbench.commands import plan, protect
from udpbench.core import precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setattr(remarks, "bf16_cost", lambda: 17.4)


def test_what_is_measured_is_how_much_longer_bf16_takes(monkeypatch):
    def convolve(x, kernel, padding):
        time.sleep(0.05 if x.dtype == kernel.dtype == torch.bfloat16 else 0.005)

    monkeypatch.setattr(precision.F, "conv2d", convolve)
    assert 4 < precision.bf16_cost.__wrapped__() < 12


def test_settings_that_ask_for_it_are_named_with_what_to_say_instead(cell, slow):
    quick = cell(
        "task.dtype=bf16", "protect.dtype=bf16", "model.dtype=bf16", "model@purifier=micro", "purifier.dtype=bf16"
    )
    (line,) = remarks.slow_here(quick, CPU)
    assert "a small convolution takes 17 times as long as in fp32" in line
    assert line.endswith(": protect.dtype, model local.dtype, task.dtype"), "no purifier is used"
    assert line in list(remarks.remarks(quick, CPU))
    (alone,) = remarks.slow_here(quick, CPU, only="protect")
    assert alone.endswith(": protect.dtype, model local.dtype")
    assert not list(remarks.slow_here(quick, GPU))


def test_of_a_method_inside_another_its_place_is_named(cell, slow):
    (line,) = remarks.slow_here(cell("protect=eot", "inner.dtype=bf16"), CPU)
    assert line.endswith(": inner.dtype")


def test_nothing_is_said_where_nobody_asks_or_it_costs_little(cell, slow, monkeypatch):
    assert not list(remarks.slow_here(cell(), CPU))
    asking = cell("task.dtype=bf16")
    monkeypatch.setattr(remarks, "bf16_cost", lambda: precision.NOTABLE)
    assert not list(remarks.slow_here(asking, CPU))


@pytest.mark.slow
def test_plan_and_protect_say_it(tiny, slow, folder, tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        plan.main([*small(tiny), "task.dtype=bf16", f"runtime.out={tmp_path}"])
    assert "stages of its own: task.dtype" in capsys.readouterr().out
    few = ["protect.rounds=1", "protect.model_steps=1", "protect.image_steps=1", f"runtime.out={tmp_path}"]
    words = [
        "model=local",
        "family=micro",
        f"model.path={tiny}",
        "model.dtype=fp32",
        "protect=udp",
        "protect.dtype=bf16",
    ]
    protect.main([str(folder), str(tmp_path / "out"), *words, *few])
    assert "! bf16 is slow on this CPU" in capsys.readouterr().err
