"""The benchmark of the hot loops compares like with like."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from udpbench.commands import loops as bench
from udpbench.commands import released
from udpbench.commands.bench import NAMES, main
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
        "loop": name, "model": "tiny", "batch": 2, "ratio": 5.0, "call_ratio": 3.0,
        "seconds_per_step": 0.5, "plain_seconds_per_step": 2.5, "seconds_per_call": 1.0, "plain_seconds_per_call": 1.0,
    }  # fmt: skip


def test_on_a_cpu_waiting_is_not_counted():
    assert bench.timed(lambda: time.sleep(0.2), torch.device("cpu")) < 0.1


def test_plain_and_our_perturbation_stay_in_the_same_ball(tiny):
    model, run = LatentDiffusion(str(tiny), "tiny"), Run(0)
    ours, plain = bench.perturb(model, run, 2, 2)
    clean = bench.pictures(2, model.size)
    for made in (torch.stack(list(ours())), plain()):
        assert 0 < float((made - clean).abs().max()) <= 2 / 255 + 1e-6  # two steps of 1/255


def test_the_command_names_every_loop():
    assert tuple(bench.LOOPS) == NAMES


@pytest.mark.parametrize("option", ["--batches", "--loops", "--models"])
def test_a_list_of_nothing_is_an_error(option, capsys):
    with pytest.raises(SystemExit) as end:
        main([option])
    assert end.value.code == 2
    assert f"argument {option}: expected at least one argument" in capsys.readouterr().err


ASPL = """
import datasets
import torch
def pgd_attack(args, models, tokenizer, scheduler, vae, data, original, target, num_steps):
    assert torch.device("cuda").type == "cpu" and str(torch.bfloat16) == "torch.float32"
    assert target is None and 0 > float(data.min()) >= -1
    return "attacked", num_steps, args.instance_prompt, all(p.requires_grad for p in models[0].parameters())
def train_one_epoch(args, models, tokenizer, scheduler, vae, data, num_steps):
    from pathlib import Path
    print("a line")
    assert any(Path(args.class_data_dir).glob("*.png"))
    return "trained", num_steps
"""
IMPRESS = """
import lpips
import torch
def impress(X_adv, model, eps, iters, clamp_min, clamp_max, lr, pur_alpha, noise):
    X_p = X_adv.half()
    loss_fn_alex = lpips.LPIPS(net='vgg').to(X_adv.device)
    return iters, str(X_p.dtype), tuple(X_p.shape), float(loss_fn_alex(X_p, X_adv).sum())
"""
PHOTOGUARD = """def pgd(X, model, eps, step_size, iters, clamp_min, clamp_max):
    return iters, tuple(torch.zeros(1).cuda().expand(len(X)).shape), model(X).latent_dist.mean.shape[0]
"""
DREAMBOOTH = """
import diffusers, transformers
def parse_args(words):
    return words
def main(words):
    transformers.utils.logging.set_verbosity_warning()
    diffusers.utils.logging.set_verbosity_info()
    return words
"""


@pytest.fixture
def clones(tmp_path) -> Path:
    """Stand-ins for released code: they name a GPU, half precision and downloads, and import what they do not need."""
    cells = [{"cell_type": "code", "source": ["x = no such thing"]}, {"cell_type": "code", "source": [PHOTOGUARD]}]
    texts = {
        released.ASPL: ASPL, released.IMPRESS: IMPRESS, released.DREAMBOOTH: DREAMBOOTH,
        released.PHOTOGUARD: json.dumps({"cells": cells}),
    }  # fmt: skip
    for name, text in texts.items():
        (file := tmp_path / "code" / name).parent.mkdir(parents=True)
        file.write_text(text, encoding="utf-8")
    return tmp_path / "code"


def work(tiny, code: Path, n: int) -> released.Work:
    model = LatentDiffusion(str(tiny), "tiny")
    return released.Work(code, model, bench.pictures(n, model.size), ("mine", "any"), 3, code.parent / "room")


def test_released_code_runs_on_the_device_and_in_the_precision_of_the_measurement(tiny, clones, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("lpips.LPIPS", lambda **given: asked.append(given) or torch.nn.PairwiseDistance(eps=0.0))
    two, one = work(tiny, clones, 2), work(tiny, clones, 1)
    side = two.model.size
    attack = released.perturb(two)
    assert attack["released"]() == ("attacked", 3, "mine", True)
    assert attack["equal"]() == ("attacked", 3, "mine", False)
    assert not any(p.requires_grad for p in two.model.pipe.unet.parameters())
    photoguard = released.photoguard(two)
    assert photoguard["released"]() == [(3, (1,), 1)] * 2  # one picture at a time
    assert photoguard["equal"]() == (3, (2,), 2)
    for purify in released.impress(two).values():  # equal pictures: distance 0 by either network
        assert purify() == [(3, "torch.float32", (1, 3, side, side), 0.0)] * 2
    assert asked == [{"net": "vgg", "pnet_rand": True, "verbose": False}] * 2  # in each call, without a download
    assert "aspl" not in released.dreambooth_prior(two)
    assert released.dreambooth_prior(one)["aspl"]() == ("trained", 3)
    assert not capsys.readouterr().out


def test_the_released_script_is_told_what_ours_does(tiny, clones):
    two = work(tiny, clones, 2)
    plain, prior = released.dreambooth(two)["released"](), released.dreambooth_prior(two)["released"]()
    assert {"--max_train_steps", "3", "--train_batch_size", "2", "mine"} <= set(plain) <= set(prior)
    assert set(prior) - set(plain) == {
        "--class_data_dir", str(two.room / "others"), "--class_prompt", "any", "--num_class_images",
        "--with_prior_preservation", "--train_text_encoder",
    }  # fmt: skip
    saved = LatentDiffusion(str(two.room / "model"), "whole")
    assert next(saved.pipe.text_encoder.parameters()).dtype == torch.float32


def test_libraries_are_timed_at_what_ours_does(tiny, clones):
    two = work(tiny, clones, 2)
    assert released.features(two)["released"]().shape == (6, 1280)  # three sizes of two pictures
    assert [len(made.images) for made in released.generate(two)["released"]()] == [1, 1]


def test_code_that_is_missing_or_another_is_refused_in_one_line(tiny, clones):
    with pytest.raises(ValueError, match="git clone https://github.com/AAAAAAsuka/Impress"):
        released.impress(replace(work(tiny, clones, 1), code=clones / "none"))
    (clones / released.ASPL).write_text("x = 1", encoding="utf-8")
    with pytest.raises(ValueError, match="it lacks torch.device"):
        released.perturb(work(tiny, clones, 1))


def test_every_loop_has_what_is_released_beside_it():
    assert list(released.SIDES) == list(NAMES)
