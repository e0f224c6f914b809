"""The benchmark of the hot loops compares like with like."""

from __future__ import annotations

import pytest
import torch

from udpbench.commands import loops as bench
from udpbench.commands import released
from udpbench.commands.bench import NAMES
from udpbench.interfaces import Run
from udpbench.models.latent import LatentDiffusion


@pytest.mark.slow
@pytest.mark.parametrize("name", list(bench.LOOPS))
def test_both_sides_run_and_their_ratio_is_that_of_their_times(tiny, name, monkeypatch):
    # Warm-up of both, then ours, short and three times as long, and the plain loop.
    seconds = iter([0.0, 0.0, 2.0, 4.0, 6.0, 16.0])

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


SCRIPT = """
import datasets
import torch
def pgd_attack(args, models, tokenizer, scheduler, vae, data, original, target, num_steps):
    assert torch.device("cuda").type == "cpu" and models[0].dtype == torch.bfloat16
    assert all(p.requires_grad for p in models[0].parameters()) and target is None
    return "attacked", num_steps, args.instance_prompt
def train_one_epoch(args, models, tokenizer, scheduler, vae, data, num_steps):
    from pathlib import Path
    print("a line")
    return "trained", num_steps, len(list(Path(args.class_data_dir).iterdir())), float(data.min()) < 0
"""


def test_released_code_runs_on_the_device_and_in_the_precision_of_the_measurement(tiny, tmp_path, capsys):
    """A stand-in for the script: it names a GPU and bfloat16, and imports what it does not need here."""
    file = tmp_path / "code" / released.ASPL
    file.parent.mkdir(parents=True)
    file.write_text(SCRIPT, encoding="utf-8")
    model = LatentDiffusion(str(tiny), "tiny")
    words = (model, bench.pictures(2, model.size), ("mine", "any"), 3)
    theirs = released.loops(tmp_path / "code", tmp_path / "class", *words)
    assert theirs["perturb"]() == ("attacked", 3, "mine")
    assert theirs["dreambooth_prior"]() == ("trained", 3, 2, True)
    assert not capsys.readouterr().out
    assert not any(p.requires_grad for p in model.pipe.unet.parameters())
    with pytest.raises(ValueError, match="git clone https://github.com/VinAIResearch/Anti-DreamBooth"):
        released.loops(tmp_path, tmp_path / "class", *words)
    file.write_text("x = 1", encoding="utf-8")
    with pytest.raises(ValueError, match="it lacks torch.device"):
        released.loops(tmp_path / "code", tmp_path / "class", *words)
