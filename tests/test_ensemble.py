"""Works in lockstep, and protections against several surrogates."""

from __future__ import annotations

import pytest
import torch
from shared import Watching, make_owner
from tiny import save_tiny

from udpbench.benchmark.cell import Part
from udpbench.core.budget import Linf
from udpbench.interfaces import Run
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.several import lockstep
from udpbench.protect.advdm import AdvDM
from udpbench.protect.aspl import ASPL
from udpbench.protect.ensemble import Ensemble
from udpbench.protect.ensemble_aspl import EnsembleASPL, EnsembleFSMG
from udpbench.protect.fsmg import FSMG

ROUNDS = {"rounds": 2, "clean_steps": 1, "image_steps": 2, "model_steps": 1, "lr": 1e-2, "batch": 1}


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> LatentDiffusion:
    """A second tiny pipeline of other weights."""
    return LatentDiffusion(str(save_tiny(tmp_path_factory.mktemp("models") / "other", seed=1)), "other")


# -- lockstep ----------------------------------------------------------------------------------------------------------


def test_works_agree_on_the_mean_and_take_turns():
    said: list[tuple[int, int]] = []

    def work(k: int):
        def do(agree) -> list[float]:
            found = []
            for i in range(3):
                said.append((i, k))
                found.append(float(agree(torch.tensor(float(k + 10 * i)))))
            return found

        return do

    assert lockstep([work(k) for k in range(3)]) == [[1.0, 11.0, 21.0]] * 3
    assert said == [(i, k) for i in range(3) for k in range(3)]


@pytest.mark.parametrize("who", [0, 1, 2])
def test_the_error_of_one_ends_all(who):
    def work(k: int):
        def do(agree) -> None:
            agree(torch.zeros(()))
            if k == who:
                raise ValueError(f"work {k}")
            agree(torch.zeros(()))
            agree(torch.zeros(()))

        return do

    with pytest.raises(ValueError, match=f"work {who}"):
        lockstep([work(k) for k in range(3)])


def test_kernels_of_attention_are_as_before_after_works_that_chose_one():
    """Two works in a context that is the process's: the second enters it while the first is in it, and leaves it last;
    each finds its own choice within and that of before after it."""
    of = torch.backends.cuda
    asked = (of.flash_sdp_enabled, of.mem_efficient_sdp_enabled, of.math_sdp_enabled, of.cudnn_sdp_enabled)

    def allowed() -> list[bool]:
        return [enabled() for enabled in asked]

    def do(agree) -> list[list[bool]]:
        seen = []
        for _ in range(2):
            seen.append(allowed())
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                agree(torch.zeros(()))
                seen.append(allowed())
        return seen

    before = allowed()
    try:
        assert lockstep([do, do]) == [[before, [False, False, True, False]] * 2] * 2
        assert allowed() == before
    finally:
        of.enable_flash_sdp(True), of.enable_mem_efficient_sdp(True), of.enable_cudnn_sdp(True)


# -- protections -------------------------------------------------------------------------------------------------------


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.allclose(x, y, atol=1e-6) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("inner", [AdvDM(steps=2, random_start=False), ASPL(**ROUNDS)], ids=lambda p: type(p).__name__)
def test_the_same_model_twice_is_one_and_the_work_is_twice(pictures, model, inner):
    owner, run, alone = make_owner(pictures[:2]), Run(), Run()
    plain = inner.protect(owner, Linf(8), model, alone)
    twice = Ensemble(inner=inner, further={"again": model}).protect(owner, Linf(8), model, run)
    assert same(plain, twice)
    assert run.count == {what: 2 * n for what, n in alone.count.items()}


def test_the_gradient_is_the_mean_of_those_under_each_model(pictures, model, other):
    owner, inner = make_owner(pictures[:2]), AdvDM(steps=1, random_start=False)
    one, two, both = Watching(8), Watching(8), Watching(8)
    inner.protect(owner, one, model, Run())
    inner.protect(owner, two, other, Run())
    Ensemble(inner=inner, further={"other": other}).protect(owner, both, model, Run())
    assert len(both.gradients) == 2
    for gradient in both.gradients:
        torch.testing.assert_close(gradient, (one.gradients[0] + two.gradients[0]) / 2)
    assert not torch.allclose(one.gradients[0], two.gradients[0])


@pytest.mark.slow
def test_pictures_of_e_aspl_are_the_mean_after_each_round(pictures, model, other):
    owner, settings = make_owner(pictures[:2]), ROUNDS | {"rounds": 1}
    mean = EnsembleASPL(**settings, further={"other": other}).protect(owner, Linf(8), model, Run())

    class Named(ASPL):  # whose samples are those of the ensemble
        name = "ensemble_aspl"

    alone = [Named(**settings).protect(owner, Linf(8), m, Run()) for m in (model, other)]
    assert same(mean, [(a + b) / 2 for a, b in zip(*alone, strict=True)])
    assert not same(*alone)
    again = EnsembleASPL(**ROUNDS, further={"other": model}).protect(owner, Linf(8), model, Run())
    assert same(again, Named(**ROUNDS).protect(owner, Linf(8), model, Run()))


def test_models_of_e_fsmg_are_trained_once(pictures, model, other):
    owner, run, settings = make_owner(pictures[:2]), Run(), ROUNDS | {"model_steps": 0}
    made = EnsembleFSMG(**settings, further={"other": other}).protect(owner, Linf(8), model, run)
    assert run.count == {"unet_train": 2 * 2, "unet_image": 2 * 2 * 2 * 2}

    class Named(FSMG):
        name = "ensemble_fsmg"

    once = EnsembleFSMG(**settings | {"rounds": 1}, further={"other": model}).protect(owner, Linf(8), model, Run())
    del settings["rounds"], settings["model_steps"]
    assert same(once, Named(**settings).protect(owner, Linf(8), model, Run()))
    assert not same(once, made)


def test_further_models_are_named_by_their_weights(model, other):
    def inside(component, **settings) -> dict:
        return Part("ensemble", {"further": {"other": {"name": "other", "path": "there"}}, **settings}, component).key

    made = inside(Ensemble(inner=AdvDM(steps=1), further={"other": other}), inner={"steps": 1})
    assert made["settings"] == {"further": {"other": {"name": "other"}}, "inner": {"steps": 1}}
    assert made["inside"] == {
        "further.other": {"version": other.version, "identity": other.identity()},
        "inner": {"version": AdvDM.version, "identity": {}},
    }
    assert made != inside(Ensemble(inner=AdvDM(steps=1), further={"other": model}), inner={"steps": 1})
    assert inside(EnsembleASPL(**ROUNDS, further={"other": other}))["identity"]["target"] == "none"
