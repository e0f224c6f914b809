"""On a device that is not the CPU, no method that is listed here mixes devices, and none waits for its device in its
inner loops. (SimAC's search, which DisDiff may have, too, looks at numbers once a round, before anything is trained.)

The device is PyTorch's ``meta``: it has shapes and types and no numbers, and refuses what another device would refuse,
operations on tensors of two devices. What would copy from it to the CPU, for which a GPU would have to finish all that
was queued before, is noted, and answered with a made-up value.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import FEWEST, build, purifier
from hydra.utils import get_class
from shared import make_owner, options
from torch.utils._python_dispatch import TorchDispatchMode

import udpbench
from udpbench.core.budget import Linf
from udpbench.interfaces import Run
from udpbench.models.latent import LatentDiffusion
from udpbench.models.pixel import PixelDiffusion
from udpbench.models.upscaler import Upscaler

aten = torch.ops.aten
META = torch.device("meta")
PACKAGE = str(Path(udpbench.__file__).parent)
PROTECT = [
    "advdm", "advpaint", "ace_plus", "blurguard", "caat", "dct_shield", "dia", "dia_r", "diffusionguard", "diffvax", "eot", "eudp", "fsmg", "glaze",
    "hf_adb", "metacloak", "mist", "mist_v2", "noise", "pap", "photoguard", "photoguard_diffusion", "pid", "promptflare", "sds", "uemask",
]  # fmt: skip
ATTACK = [
    "adverse_cleaner", "best_of", "blur", "bridge", "cat", "crop_resize", "ddspure", "diffpure", "gaussian_noise", "grayscale", "gridpure", "impress",
    "impress_pp", "insight", "jpeg", "median_blur", "noisy_upscale", "pdm_pure", "quantize", "resize", "robust_augment", "rotate_crop_erase",
    "screen_camera", "sdedit", "super_resolution", "tone_curve", "tvm", "udap", "vae_roundtrip",
]  # fmt: skip
# Not tried: the noting of waits does not reach the threads of ensembles; these take longest and their inner loops are those of fsmg and
# advdm; the others compute nothing of their own on the device.
LEFT_OUT = {
    "ensemble", "ensemble_aspl", "ensemble_fsmg", "anti_diffusion", "disdiff", "simac", "simac_paper", "consistent",
    "noise_rms", "folder", "none", "chain", "compress_resize",
}  # fmt: skip
# Where a method may wait: at the end of an ascent or a training (whether its numbers are finite), for what a training keeps,
# where pictures are handed back, and in diffusers' own pipelines.
AT_THE_END = {"pgd", "pgd_through", "_Watch.check", "Later.known", "FSMG.trainer.<locals>.train.<locals>.copied"}
HANDED_BACK = {
    "DiffPure.purify.<locals>.pure", "SdEdit.purify.<locals>.pure", "GridPure.in_windows", "BestOf.purify", "Impress.purify", "Udap.purify", "Upscaling.enlarged",
    "VaeRoundtrip.purify.<locals>.pure", "Bridge.purify.<locals>.pure",
}  # fmt: skip
PIPELINES = {"Glaze.restyled", "Upscaler.enlarged"}
FIRST = {"Insight.aims"}  # its photographs are made on the CPU
EACH_STEP = {"Udap.pure"}  # whether it is good enough


class Waits(TorchDispatchMode):
    """Notes in which function of the package the CPU would wait for ``meta``."""

    def __init__(self) -> None:
        super().__init__()
        self.where: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = next((x for x in args if isinstance(x, torch.Tensor)), None)
        if func in (aten._local_scalar_dense.default, aten.is_nonzero.default) and given.device == META:
            self._note()
            return 0.5 if given.is_floating_point() else False if given.dtype == torch.bool else -1
        if func is aten._to_copy.default and given.device == META and kwargs.get("device") == torch.device("cpu"):
            self._note()
            return torch.full(given.shape, 0.5, dtype=kwargs.get("dtype") or given.dtype)
        if func is aten.copy_.default and args[0].device != META and args[1].device == META:
            self._note()
            return args[0].fill_(0.5)
        return func(*args, **kwargs)

    def _note(self) -> None:
        frame = sys._getframe(2)
        while not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        self.where.add(frame.f_code.co_qualname.removesuffix(".<locals>.<listcomp>"))


@pytest.fixture
def elsewhere_run(monkeypatch):
    """A run on ``meta``, for which autocast does nothing."""
    real = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda device, *args, **kwargs: real("cpu", enabled=False))
    return Run(device=META)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "tried"), [("protect", PROTECT), ("attack", ATTACK)])
def test_every_class_of_methods_is_tried_or_left_out_by_name(node, group, tried):
    classes = {option: get_class(node(group, option)["_target_"]) for option in options(group)}
    seen = {kind for option in tried for kind in classes[option].__mro__}
    assert {option.removesuffix("_released") for option, kind in classes.items() if kind not in seen} <= LEFT_OUT


@pytest.mark.slow
@pytest.mark.parametrize("option", PROTECT)
def test_a_protection_stays_on_its_device(node, elsewhere, tiny, pictures, elsewhere_run, option):
    thing, model = build(node("protect", option), elsewhere, FEWEST), LatentDiffusion(str(tiny), "tiny")
    owner = make_owner(pictures)
    with Waits() as waits:
        made = thing.protect(owner, Linf(8), model.on(elsewhere_run), elsewhere_run)
    assert [x.shape for x in made] == [x.shape for x in pictures]
    assert waits.where <= AT_THE_END | PIPELINES


@pytest.mark.slow
@pytest.mark.parametrize("option", ATTACK)
def test_an_attack_stays_on_its_device(node, elsewhere, tiny, pixels, upscaler, pictures, elsewhere_run, option):
    thing = build(node("attack", option), elsewhere, FEWEST)
    models = LatentDiffusion(str(tiny), "tiny"), PixelDiffusion(pixels.path, "pixels"), Upscaler(upscaler.path, "up")
    chosen = purifier(thing, *models)
    with Waits() as waits:
        made = thing.purify(
            pictures[:2], ["a.png", "b.png"], ["", ""], chosen and chosen.on(elsewhere_run), elsewhere_run
        )
    assert [x.shape for x in made] == [x.shape for x in pictures[:2]]
    assert {x.device.type for x in made} == {"cpu"}
    assert waits.where <= HANDED_BACK | AT_THE_END | PIPELINES | FIRST | EACH_STEP
