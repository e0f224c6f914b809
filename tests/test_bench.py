"""The benchmark of the hot loops compares like with like."""

from __future__ import annotations

import pytest
import torch

from udpbench.commands import loops as bench
from udpbench.commands.bench import NAMES
from udpbench.interfaces import Run
from udpbench.models.latent import LatentDiffusion


@pytest.mark.slow
@pytest.mark.parametrize("name", list(bench.LOOPS))
def test_both_sides_run_and_their_ratio_is_that_of_their_times(tiny, name, monkeypatch):
    # Warm-up of both, then ours and the plain loop, short and three times as long.
    seconds = iter([0.0, 0.0, 2.0, 6.0, 4.0, 16.0])

    def timed(loop, device):
        loop()
        return next(seconds)

    monkeypatch.setattr(bench, "timed", timed)
    model = LatentDiffusion(str(tiny), "tiny")
    row = bench.compare(name, model, Run(0, torch.device("cpu")), n=2, steps=2, repeats=1)
    assert row == {
        "loop": name, "model": "tiny", "batch": 2, "ratio": 5.0,
        "seconds_per_step": 0.5, "plain_seconds_per_step": 2.5, "seconds_per_call": 1.0, "plain_seconds_per_call": 1.0,
    }  # fmt: skip


def test_plain_and_our_perturbation_stay_in_the_same_ball(tiny):
    model, run = LatentDiffusion(str(tiny), "tiny"), Run(0)
    ours, plain = bench.perturb(model, run, 2, 2)
    clean = bench.pictures(2, model.size)
    for made in (torch.stack(list(ours())), plain()):
        assert 0 < float((made - clean).abs().max()) <= 2 / 255 + 1e-6  # two steps of 1/255


def test_the_command_names_every_loop():
    assert tuple(bench.LOOPS) == NAMES
