"""The training loop: resuming bit for bit, schedules, averaging and clipping against closed forms; DreamBooth on the tiny model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from udpbench.core import images
from udpbench.core.errors import Stopped
from udpbench.core.images import read_folder
from udpbench.interfaces import Log, Run, Thief
from udpbench.optim.fit import FitSettings, fit, weighted_loss
from udpbench.optim.rounds import Rounds
from udpbench.optim.training import write_made
from udpbench.optim.training_set import TrainingSet
from udpbench.task.dreambooth import DreamBooth


class Killed(Exception):
    """Stands for the end of a process."""


def network() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=rng))
    return net


def train(settings, checkpoint=None, stop=None, curve_steps=()):
    """Train on noise drawn by step; returns the weights, and those seen at marks. ``stop``: raise in that step's loss."""
    net, run, seen = network(), Run(seed=3), {}

    def loss(step):
        if step == stop:
            raise Killed
        x = torch.randn(4, 3, generator=run.rng("x", step))
        return (net(x) - x.sum(1, keepdim=True)).square().mean()

    def at_curve_step(k):
        seen[k] = [p.detach().clone() for p in net.parameters()]

    try:
        fit(
            list(net.parameters()),
            loss,
            settings,
            run,
            checkpoint=checkpoint,
            curve_steps=curve_steps,
            at_curve_step=at_curve_step,
        )
    except Killed:
        return None, seen
    return [p.detach().clone() for p in net.parameters()], seen


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# -- resuming ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("stop", [1, 3, 4, 8, 9])
def test_killed_and_resumed_ends_in_the_same_bits(tmp_path, stop, ema):
    settings = FitSettings(steps=10, lr=0.05, warmup=3, decay="cosine", ema=ema, save_every=3)
    curve_steps = (2, 5, 10)
    whole, seen = train(settings, curve_steps=curve_steps)
    nothing, before = train(settings, tmp_path / "c", stop, curve_steps)
    assert nothing is None
    assert (tmp_path / "c").exists() == (stop >= 3)
    resumed, after = train(settings, tmp_path / "c", curve_steps=curve_steps)
    assert same(whole, resumed)
    assert set(before) | set(after) == set(curve_steps)
    assert all(k > stop // 3 * 3 for k in after)
    assert all(same(seen[k], found[k]) for found in (before, after) for k in found)


def test_a_checkpoint_is_a_real_start(tmp_path):
    """Had the loop ignored the checkpoint, or its moments, the weights would be others."""
    settings = FitSettings(steps=10, lr=0.05, save_every=3)
    whole, _ = train(settings)
    train(settings, tmp_path / "c", 7)
    state = torch.load(tmp_path / "c", weights_only=True)
    assert state["step"] == 6
    state["optimizer"]["state"] = {}
    torch.save(state, tmp_path / "c")
    resumed, _ = train(settings, tmp_path / "c")
    assert not same(whole, resumed)


def test_dropout_belongs_to_the_step_and_leaves_the_global_generator_alone(tmp_path):
    def dropped(stop=None):
        torch.manual_seed(0)
        net, run = nn.Sequential(nn.Linear(3, 32), nn.Dropout(0.5), nn.Linear(32, 1)), Run(1)
        torch.manual_seed(5 if stop is None else 6)  # must not matter

        def loss(step):
            if step == stop:
                raise Killed
            return net(torch.ones(4, 3)).square().mean() - net[2].bias.sum()

        before = torch.get_rng_state()
        with suppress(Killed):
            fit(
                list(net.parameters()),
                loss,
                FitSettings(steps=6, lr=0.05, save_every=2),
                run,
                checkpoint=tmp_path / "c",
            )
        assert torch.equal(torch.get_rng_state(), before)
        return list(net.parameters())

    whole = dropped()
    dropped(stop=5)
    assert same(whole, dropped())


# -- closed forms ------------------------------------------------------------------------------------------------------


def descend(settings, gradient=1.0, curve_steps=(), at_curve_step=None):
    """SGD on one weight with a constant gradient; returns the weights after each step as the loss saw them, and the last."""
    weight, seen = nn.Parameter(torch.zeros(1, dtype=torch.float64)), []

    def loss(step):
        seen.append(float(weight))
        return gradient * weight.sum()

    fit(
        [weight],
        loss,
        settings,
        Run(),
        optimizer=torch.optim.SGD([weight], lr=99.0),
        curve_steps=curve_steps,
        at_curve_step=at_curve_step and (lambda k: at_curve_step(k, float(weight))),
    )
    return seen, float(weight)


@given(
    steps=st.integers(1, 30),
    warmup=st.integers(0, 40),
    lr=st.floats(1e-6, 1.0),
    decay=st.sampled_from(["constant", "cosine"]),
)
def test_learning_rate_is_diffusers_s_whose_warm_up_is_a_step_behind(steps, warmup, lr, decay):
    settings = FitSettings(steps=steps, lr=lr, warmup=warmup, decay=decay, clip_norm=0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    (theirs,) = get_scheduler(
        f"{decay}_with_warmup".replace("cosine_with_warmup", "cosine"),
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=steps,
    ).lr_lambdas
    for k in range(steps):
        assert settings.rate(k) == pytest.approx(lr * theirs(k if k >= warmup else k + 1), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_the_optimizer_steps_by_the_schedule(decay):
    settings = FitSettings(steps=7, lr=0.3, warmup=3, decay=decay, clip_norm=0)
    seen, last = descend(settings)
    moved = [a - b for a, b in zip(seen, [*seen[1:], last], strict=True)]
    assert moved == pytest.approx([settings.rate(k) for k in range(7)], rel=1e-12)


@pytest.mark.parametrize(
    ("ema_warmup", "decay"),
    [
        ("ratio", lambda k: min(0.6, (1 + k) / (10 + k))),
        ("power", lambda k: min(0.6, 1 - (1 + k) ** -0.75)),
    ],
)
def test_average_is_that_of_the_closed_form(ema_warmup, decay):
    ema, steps, lr = 0.6, 12, 0.5
    curve_steps = {}
    seen, last = descend(
        FitSettings(steps=steps, lr=lr, ema=ema, ema_warmup=ema_warmup, clip_norm=0),
        curve_steps=(3, 12),
        at_curve_step=curve_steps.__setitem__,
    )
    assert seen == pytest.approx([-lr * k for k in range(steps)])  # the training itself never sees the average
    average = [0.0]
    for k in range(steps):  # the weights after step k are -lr (k + 1)
        average.append(decay(k) * average[-1] + (1 - decay(k)) * -lr * (k + 1))
    assert last == pytest.approx(average[steps], rel=1e-12)
    assert curve_steps == {3: pytest.approx(average[3], rel=1e-12), 12: pytest.approx(average[12], rel=1e-12)}


@pytest.mark.parametrize(
    ("ema_warmup", "options"),
    [("ratio", {}), ("power", {"use_ema_warmup": True, "inv_gamma": 1.0, "power": 3 / 4})],
)
@pytest.mark.parametrize("ema", [0.7, 0.9999])
def test_the_average_s_decay_is_diffusers_s(ema_warmup, options, ema):
    """Of train_text_to_image.py and train_unconditional.py; the first step of the former keeps a tenth of the start."""
    settings = FitSettings(steps=1, lr=0.1, ema=ema, ema_warmup=ema_warmup)
    theirs = EMAModel([], decay=ema, **options)
    found = [settings.ema_decay(k) for k in range(2000)]
    assert found[1:] == pytest.approx([theirs.get_decay(k + 1) for k in range(1, 2000)], rel=1e-12)
    assert found[0] == {"ratio": 0.1, "power": theirs.get_decay(1)}[ema_warmup]


@pytest.mark.parametrize(("clip", "step"), [(0, 10.0), (1.0, 1.0), (20.0, 10.0)])
def test_gradients_are_clipped_to_their_norm(clip, step):
    _, last = descend(FitSettings(steps=1, lr=1.0, clip_norm=clip), gradient=10.0)
    assert last == pytest.approx(-step, rel=1e-6)


def test_default_is_adamw_with_decoupled_decay():
    """First step of AdamW in closed form: w (1 - lr wd) - lr g / (|g| + eps)."""
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    fit([weight], lambda step: 0.25 * weight.sum(), FitSettings(steps=1, lr=0.1, weight_decay=0.5, eps=0.01), Run())
    assert float(weight) == pytest.approx(2.0 * (1 - 0.05) - 0.1 * 0.25 / 0.26, rel=1e-9)


def test_a_given_optimizer_goes_on_with_its_moments():
    def trained(*lengths, keep=True):
        net, run, done = network(), Run(), 0
        optimizer = FitSettings(steps=1, lr=0.01).optimizer(net.parameters())
        for n in lengths:
            first = done
            fit(
                list(net.parameters()),
                lambda step, first=first: net(torch.randn(4, 3, generator=run.rng(first + step))).square().mean(),
                FitSettings(steps=n, lr=0.01),
                run,
                optimizer=optimizer if keep else None,
            )
            done += n
        return list(net.parameters())

    assert same(trained(6), trained(2, 4))
    assert not same(trained(6), trained(2, 4, keep=False))


def test_bf16_is_that_of_the_passes_not_of_the_weights():
    net, seen = network(), []

    def loss(step):
        y = net(torch.ones(2, 3))
        seen.append(y.dtype)
        return y.float().square().mean()

    fit(list(net.parameters()), loss, FitSettings(steps=1, lr=0.1, dtype="bf16"), Run())
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in net.parameters()} == {torch.float32}


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_no_gradient_is_left_behind(ema):
    """With a given optimizer, which goes on, too: each would take as much memory as its weight."""
    net = network()
    settings = FitSettings(steps=2, lr=0.1, ema=ema)
    optimizer = settings.optimizer(net.parameters())
    fit(list(net.parameters()), lambda step: net(torch.ones(1, 3)).square().sum(), settings, Run(), optimizer=optimizer)
    assert [p.grad for p in net.parameters()] == [None] * len(list(net.parameters()))
    assert len(optimizer.state) == len(list(net.parameters()))


def test_no_steps_change_nothing():
    net = network()
    fit(list(net.parameters()), lambda step: torch.zeros(()), FitSettings(steps=0, lr=0.1), Run())
    assert same(net.parameters(), network().parameters())


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1},
        {"decay": "linear"},
        {"dtype": "fp16"},
        {"lr": -1e-4},
        {"lr": "high"},
        {"lr": math.nan},
        {"ema": 1.0},
        {"ema_warmup": "linear"},
        {"betas": (0.9, 1.0)},
        {"warmup": -1},
    ],
)
def test_wrong_settings_are_told_in_one_line(wrong):
    with pytest.raises(ValueError, match=f"fit: .*{next(iter(wrong))}") as error:
        FitSettings(**{"steps": 1, "lr": 0.1, **wrong})
    assert "\n" not in str(error.value)
    assert str(next(iter(wrong.values()))) in str(error.value)


# -- DreamBooth --------------------------------------------------------------------------------------------------------


def dreambooth(**settings) -> DreamBooth:
    return DreamBooth(
        **{"steps": 4, "lr": 1e-3, "batch": 2, "pictures": 3, "sample_steps": 2, "guidance": 2.0, **settings}
    )


def weights(folder):
    from safetensors.torch import load_file

    return {p.relative_to(folder).as_posix(): load_file(p) for p in sorted(folder.rglob("*.safetensors"))}


def assert_same_weights(one, two):
    assert one.keys() == two.keys()
    for file in one:
        assert all(torch.equal(one[file][k], two[file][k]) for k in one[file])


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_dreambooth_killed_at_any_step_ends_in_the_same_weights(tmp_path, model, folder, monkeypatch, stop):
    """Also after a mark whose checkpoint was not written yet: the mark is passed, and its model written, a second time."""
    task = dreambooth(curve=[0.75, 1.0, 1.5], save_every=2)  # curve_steps 3, 4, 6, checkpoints 2, 4
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    task.train(folder, tmp_path / "whole", model, Run(seed=1))
    real, calls = TrainingSet.draw, []

    def killing(self, *args):
        calls.append(1)
        if len(calls) == stop + 1:
            raise Killed
        return real(self, *args)

    monkeypatch.setattr(TrainingSet, "draw", killing)
    with pytest.raises(Killed):
        task.train(folder, tmp_path / "cut", model, Run(seed=1))
    monkeypatch.setattr(TrainingSet, "draw", real)
    task.train(folder, tmp_path / "cut", model, Run(seed=1))
    names = ["step_3", "step_4", "step_6"]
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == names
    assert_same_weights(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_a_training_killed_after_its_last_mark_is_finished(tmp_path, model, folder, monkeypatch):
    import udpbench.optim.training as module

    task = dreambooth(save_every=2)
    real = module.fit

    def killed_after(*args, **kwargs):
        real(*args, **kwargs)
        raise Killed

    monkeypatch.setattr(module, "fit", killed_after)
    (tmp_path / "out").mkdir()
    with pytest.raises(Killed):
        task.train(folder, tmp_path / "out", model, Run())
    monkeypatch.setattr(module, "fit", real)
    assert (tmp_path / "out" / "step_4").is_dir()
    task.train(folder, tmp_path / "out", model, Run())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["step_4"]


def test_a_curve_is_one_training(tmp_path, model, folder):
    dreambooth(curve=[0.5, 1.0]).train(folder, tmp_path / "curve", model, Run())
    dreambooth().train(folder, tmp_path / "plain", model, Run())
    dreambooth(steps=2).train(folder, tmp_path / "half", model, Run())
    assert_same_weights(weights(tmp_path / "curve" / "step_4"), weights(tmp_path / "plain" / "step_4"))
    assert_same_weights(weights(tmp_path / "curve" / "step_2"), weights(tmp_path / "half" / "step_2"))


def test_training_with_text_encoder_and_prior(tmp_path, model, folder):
    task = dreambooth(
        train_text_encoder=True,
        gradient_checkpointing=True,
        sample_latents=True,
        prior_weight=1.0,
        prior_images=2,
        steps=2,
    )
    run = Run()
    (tmp_path / "class").mkdir()
    task.class_pictures(tmp_path / "class", model, run, Thief(class_prompt="a photo of a ring"))
    assert len(images.list_images(tmp_path / "class")) == 2
    before = [p.clone() for p in (*model.pipe.unet.parameters(), *model.pipe.text_encoder.parameters())]
    task.train(folder, tmp_path / "out", model, run, Thief(class_images=tmp_path / "class"))
    assert run.count["unet_victim"] == 2 * 2 * 2  # steps, subject and prior, batch
    tuned = model.with_tuned(tmp_path / "out" / "step_2")
    for part in ("unet", "text_encoder"):
        old, new = (getattr(m.pipe, part).state_dict() for m in (model, tuned))
        assert any(not torch.equal(old[k], new[k]) for k in old)
    assert same(before, [*model.pipe.unet.parameters(), *model.pipe.text_encoder.parameters()])


class OneKernelAParameter(FitSettings):
    def optimizer(self, parameters):
        one = super().optimizer(parameters)
        return torch.optim.AdamW(one.param_groups, fused=False, foreach=False)


@pytest.mark.slow
def test_one_pass_and_one_kernel_change_the_weights_by_rounding_only(model, pictures):
    """Fifty steps of DreamBooth with prior and text encoder, against a pass for each set and a kernel for each layer."""

    def trained(settings, joined):
        trainable, run = model.trainable(Run().rng("init"), text_encoder=True), Run()
        trainable.train(True)
        subject, prior = (TrainingSet(trainable, pictures[i : i + 2], ["a ring", "a ball"], run) for i in (0, 2))

        def apart(step):
            return sum(
                weight * part.loss(2, run.rng(name, step))
                for weight, part, name in ((1, subject, "subject"), (0.5, prior, "prior"))
            )

        together = weighted_loss({"subject": (1.0, subject), "prior": (0.5, prior)}, 2, run.rng)
        before = torch.cat([p.detach().flatten().clone() for p in trainable.parameters])
        fit(trainable.parameters, together if joined else apart, settings, run)
        return before, torch.cat([p.detach().flatten() for p in trainable.parameters])

    settings = {"steps": 50, "lr": 1e-4}
    start, got = trained(FitSettings(**settings), True)
    _, want = trained(OneKernelAParameter(**settings), False)
    assert (got - want).norm() < 1e-4 * want.norm()
    assert (got - want).norm() < 0.02 * (want - start).norm()  # gradients that vanish go either way


def test_sets_of_two_sizes_are_weighted_as_those_of_one(model, pictures):
    trainable, run = model.trainable(Run().rng("init")), Run()
    sets = {
        "small": (2.0, TrainingSet(trainable, [x[:, :8, :8] for x in pictures], ["a ring"] * 4, run)),
        "large": (0.5, TrainingSet(trainable, pictures, ["a ball"] * 4, run)),
    }
    got = weighted_loss(sets, 3, run.rng)(7)
    want = sum(weight * part.loss(3, run.rng(name, 7)) for name, (weight, part) in sets.items())
    torch.testing.assert_close(got, want)


def differ(one, two) -> bool:
    return any(not torch.equal(one[file][k], two[file][k]) for file in one for k in one[file])


def test_prior_pictures_matter_by_their_weight(tmp_path, model, folder):
    found = []
    for weight in (0.0, 0.5, 2.0):
        task = dreambooth(steps=1, prior_weight=weight, prior_images=1 if weight else 0)
        task.train(folder, tmp_path / str(weight), model, Run(), Thief(class_images=folder if weight else None))
        found.append(weights(tmp_path / str(weight)))
    assert differ(found[0], found[1])
    assert differ(found[1], found[2])


def test_draws_belong_to_the_seed_and_the_step(tmp_path, model, folder, monkeypatch):
    drawn: list[tuple[list[int], float]] = []
    real = type(model).loss

    def loss(self, z, cond, t, noise):
        drawn.append((t.tolist(), float(noise.sum())))
        return real(self, z, cond, t, noise)

    monkeypatch.setattr(type(model), "loss", loss)
    for k, seed in enumerate((0, 0, 1)):
        (tmp_path / str(k)).mkdir()
        dreambooth().train(folder, tmp_path / str(k), model, Run(seed=seed))
    one, same, other = drawn[:4], drawn[4:8], drawn[8:]
    assert one == same
    assert len({total for _, total in one + other}) == 8
    assert not differ(weights(tmp_path / "0"), weights(tmp_path / "1"))
    assert differ(weights(tmp_path / "0"), weights(tmp_path / "2"))


def test_generation_goes_on_where_it_stopped(tmp_path, model):
    task, whole, cut = dreambooth(pictures=4), tmp_path / "whole", tmp_path / "cut"
    prompts = ["a photo of a sks ring", "a photo of a sks ring on sand"]
    for out in (whole, cut):
        out.mkdir()
    task.generate(None, whole, model, Run(seed=2, batch=3), Thief(prompts=prompts))
    images.write_png(cut / "00001.png", torch.zeros(3, 16, 16))  # stands for what an earlier attempt made
    task.generate(None, cut, model, Run(seed=2, batch=1), Thief(prompts=prompts))
    one, two = images.read_folder(whole), images.read_folder(cut)
    assert list(one) == list(two) == [f"{i:05d}.png" for i in range(4)]
    assert not two.pop("00001.png").any()
    assert all((one[k] - two[k]).abs().max() < 1.5 / 255 for k in two)
    assert images.read_metadata(whole) == {f"{i:05d}.png": {"text": prompts[i % 2], "seed": i} for i in range(4)}
    other = tmp_path / "other"
    other.mkdir()
    task.generate(None, other, model, Run(seed=3, batch=3), Thief(prompts=prompts))
    assert not torch.equal(images.read(other / "00000.png"), one["00000.png"])


def test_keys_hold_every_setting_that_matters():
    """Each setting changes the key of the stage it matters for, and of no other; ``save_every`` changes none."""
    base = dreambooth(prior_images=5)
    changes = {
        "training": {
            "steps": 5, "lr": 2e-3, "batch": 3, "weight_decay": 0.5, "warmup": 2, "ema": 0.5, "dtype": "bf16",
            "train_text_encoder": True, "sample_latents": True, "prior_weight": 0.5, "curve": [1.0, 2.0],
            "betas": (0.95, 0.999), "ema_warmup": "power",
        },
        "sampling": {"pictures": 4, "sample_steps": 3, "guidance": 3.0, "solver": "ddim"},
        "none": {"save_every": 7, "gradient_checkpointing": True},
    }  # fmt: skip
    for stage, settings in changes.items():
        for name, value in settings.items():
            other = dreambooth(**{"prior_images": 5, name: value})
            assert (other.training_key() != base.training_key()) == (stage == "training"), name
            assert (other.sampling_key() != base.sampling_key()) == (stage == "sampling"), name
    json.dumps([base.training_key(), base.sampling_key()])


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"solver": "euler"},
        {"prior_weight": 1.0},
        {"curve": [0.5]},
        {"pictures": 0},
        {"batch": 0},
        {"dtype": "fp16"},
    ],
)
def test_wrong_task_settings_are_told_in_one_line(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))) as error:
        dreambooth(**wrong)
    assert "\n" not in str(error.value)


# -- numbers that are not finite ---------------------------------------------------------------------------------------


class Titled(Log):
    title = "clean"


def spoilt(tmp_path, bad, lr=0.05, **settings):
    """A training of ten steps whose loss in step ``bad`` (0-based) is not finite; returns the line, and what was saved."""
    net, run, seen = network(), Run(seed=3, log=Titled()), []

    def loss(step):
        value = net(torch.ones(4, 3)).square().mean()
        return value * (math.inf if step == bad else 1)

    with pytest.raises(ValueError) as error:
        fit(
            list(net.parameters()),
            loss,
            FitSettings(steps=10, lr=lr, save_every=2, **settings),
            run,
            checkpoint=tmp_path / "c",
            curve_steps=(4, 10),
            at_curve_step=seen.append,
        )
    assert "\n" not in str(error.value)
    return str(error.value), seen


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_training_stops_at_the_step_whose_loss_is_not_finite(tmp_path, clip):
    said, seen = spoilt(tmp_path, 6, clip_norm=clip)
    assert said.startswith(
        "clean: train: the loss or its gradient is not finite at step 7 of 10; the last finite loss was "
    )
    assert said.endswith("the likely cause is the learning rate (lr=0.05)")
    assert seen == [4]
    assert torch.load(tmp_path / "c", weights_only=True)["step"] == 6


def test_the_likely_cause_is_told(tmp_path):
    said, seen = spoilt(tmp_path, 0, dtype="bf16")
    assert "at step 1 of 10; no loss was finite; the likely cause are weights or pictures that are not finite" in said
    assert said.endswith("or dtype=bf16: try fp32")
    assert not (tmp_path / "c").exists()


def test_weights_that_overflow_in_the_last_step_are_not_published():
    weight, seen = nn.Parameter(torch.ones(1)), []
    with pytest.raises(
        ValueError, match=r"train: a weight is not finite at step 1 of 1; the last finite loss was 1e\+30"
    ):
        fit(
            [weight],
            lambda step: 1e30 * weight.sum(),
            FitSettings(steps=1, lr=1e30, clip_norm=0),
            Run(),
            curve_steps=(1,),
            at_curve_step=seen.append,
            optimizer=torch.optim.SGD([weight], lr=1.0),
        )
    assert not seen


def test_weights_whose_squares_overflow_are_finite():
    weight = nn.Parameter(torch.full((3,), 1e30))
    fit([weight], lambda step: 0 * weight.sum(), FitSettings(steps=1, lr=0.1, weight_decay=0), Run())
    assert weight.tolist() == [pytest.approx(1e30)] * 3


def test_between_looks_the_step_is_kept_on_the_device(monkeypatch):
    """As on a GPU, which is not waited for in every step."""
    monkeypatch.setattr("udpbench.optim.fit._every", lambda device, settings: settings.save_every)
    net, steps = network(), []

    def loss(step):
        steps.append(step)
        return net(torch.ones(4, 3)).square().mean() * (math.nan if step == 5 else 1)

    with pytest.raises(ValueError, match="not finite at step 6 of 12; the last finite loss was [0-9]"):
        fit(list(net.parameters()), loss, FitSettings(steps=12, lr=0.05, save_every=4), Run())
    assert len(steps) == 8


@pytest.mark.parametrize("harm", ["empty", "cut", "flip", None])
def test_a_broken_checkpoint_begins_anew_and_what_was_counted_counts(tmp_path, model, folder, monkeypatch, harm):
    """``harm``: what a power loss, or a bad disk, did to the state that the interrupted training left."""
    import udpbench.optim.fit as module

    task, out, real = dreambooth(save_every=2), tmp_path / "out", module.save_state

    def killed_after(*args):
        real(*args)
        raise Killed

    monkeypatch.setattr(module, "save_state", killed_after)
    out.mkdir()
    with pytest.raises(Killed):
        task.train(folder, out, model, Run())
    monkeypatch.setattr(module, "save_state", real)
    state = out / "checkpoint.pt"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    if harm:
        state.write_bytes({"empty": b"", "cut": data[:-100], "flip": data}[harm])
    task.train(folder, out, model, resumed := Run())
    task.train(folder, tmp_path / "plain", model, plain := Run())
    assert_same_weights(weights(out / "step_4"), weights(tmp_path / "plain" / "step_4"))
    assert resumed.count == plain.count


@pytest.mark.parametrize("lost", [[4], [0, 6], [1, 2, 3]])
def test_pictures_that_an_interrupted_attempt_left_are_completed_in_the_same_batches(tmp_path, lost):
    """As networks round differently in batches of other sizes."""

    def make(left: list[int]) -> Iterator[Tensor]:
        for first in range(0, len(left), 3):
            part = left[first : first + 3]
            yield torch.stack([torch.full((3, 8, 8), (10 * i + len(part)) / 255) for i in part])

    rows, run = [(f"{i}.png", {"text": str(i)}) for i in range(7)], Run(batch=3)
    write_made(rows, tmp_path, run, make, 8)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for i in lost:
        (tmp_path / f"{i}.png").write_bytes(b"")
    write_made(rows, tmp_path, run, make, 8)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


@pytest.mark.parametrize("sample_latents", [False, True])
def test_augmented_pictures_are_encoded_in_full_precision_as_cached_ones_are(model, pictures, sample_latents):
    seen = []

    def augment(batch, rng):
        seen.append(torch.nn.functional.avg_pool2d(torch.nn.functional.conv2d(batch, torch.ones(3, 3, 1, 1)), 1).dtype)
        return batch

    trainable = model.trainable(Run().rng("t"))
    settings = {"sample_latents": sample_latents, "augment": augment}
    changed = TrainingSet(trainable, pictures, ["a"] * len(pictures), Run(), **settings)
    plain = changed.draw(2, Run().rng("draw"))
    with torch.autocast("cpu", torch.bfloat16):
        drawn = changed.draw(2, Run().rng("draw"))
    assert torch.equal(drawn.z, plain.z)
    assert set(seen) == {torch.float32}


# -- rounds ------------------------------------------------------------------------------------------------------------


def test_rounds_are_saved_when_it_is_time_or_the_process_is_to_end(tmp_path, monkeypatch):
    def attempt(stop_at: int = -1) -> tuple[list[int], int]:
        run = Run(scratch=tmp_path)
        rounds, done = Rounds(run, "r.ckpt", 5), []
        for k in rounds.left:
            run.tally("work", 1)
            done.append(k)
            if k == stop_at:
                run.stop.set()
            try:
                rounds.done(k, {"value": k})
            except Stopped:
                break
        return done, run.count["work"]

    assert attempt() == ([0, 1, 2, 3, 4], 5)
    assert not list(tmp_path.iterdir()), "they took less than it would take to save them"
    assert attempt(stop_at=1) == ([0, 1], 2)
    assert torch.load(tmp_path / "r.ckpt", weights_only=True)["value"] == 1
    monkeypatch.setattr("udpbench.optim.rounds.SAVE_EVERY", 0)
    assert attempt(stop_at=3) == ([2, 3], 4)
    assert attempt() == ([4], 5), "of the last nothing is to be saved"


def test_latents_are_drawn_from_the_posterior_or_are_its_mean(model, pictures):
    trainable = model.trainable(Run().rng("t"))
    mean, std = model.moments(pictures[0][None])
    for sampled in (False, True):
        drawn = TrainingSet(trainable, pictures[:1], ["a ring"], Run(), sample_latents=sampled).draw(
            4000, Run().rng("z")
        )
        torch.testing.assert_close(drawn.z.mean(0), mean[0], atol=0.1 * float(std.max()), rtol=0)
        torch.testing.assert_close(drawn.z.std(0), std[0] * sampled, rtol=0.1, atol=1e-5)


def test_pictures_of_two_sizes_go_by_prompts_of_their_own(model, pictures):
    given = dict(zip(("a ring", "on sand", "at night"), (pictures[0], pictures[1][:, :8], pictures[2][:, :8])))
    trained = TrainingSet(model.trainable(Run().rng("t")), list(given.values()), list(given), Run(), mixed_sizes=True)
    for step in range(12):
        drawn = trained.draw(2, Run().rng(step))
        for z, prompt in zip(drawn.z, drawn.prompts, strict=True):
            torch.testing.assert_close(z, model.encode(given[prompt][None])[0])


def test_dropout_of_a_later_training_is_not_that_of_the_first():
    seen = []
    for before in (0, 3):
        net = nn.Linear(1, 1)

        def loss(step, net=net):
            seen.append(nn.functional.dropout(torch.ones(64), 0.5))
            return net(torch.ones(1)).sum()

        fit(list(net.parameters()), loss, FitSettings(steps=2, lr=0.1), Run(), before=before)
    assert len({tuple(x.tolist()) for x in seen}) == 4


def test_a_part_of_the_steps_is_rounded():
    task = DreamBooth(steps=5, lr=1e-3, batch=2, pictures=3, sample_steps=2, guidance=2.0)
    assert [task.steps_at(m) for m in (0.01, 0.7, 0.75, 1.0)] == [1, 4, 4, 5]


def test_class_pictures_are_of_other_noise_than_scored_ones(model, tmp_path):
    from udpbench.interfaces import Thief

    task, prompt = (
        DreamBooth(
            steps=1, lr=1e-3, batch=1, pictures=2, sample_steps=2, guidance=2.0, prior_weight=1.0, prior_images=2
        ),
        "a photo of a ring",
    )
    for name in ("class", "scored"):
        (tmp_path / name).mkdir()
    task.class_pictures(tmp_path / "class", model, Run(), Thief(class_prompt=prompt))
    task.generate(None, tmp_path / "scored", model, Run(), Thief(prompts=[prompt]))
    one, two = (read_folder(tmp_path / name) for name in ("class", "scored"))
    assert all(not torch.equal(one[name], x) for name, x in two.items())
