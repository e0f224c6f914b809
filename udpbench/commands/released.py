"""The released code of Anti-DreamBooth, timed beside this package's (``bench --released DIR``); none of it is here.

DIR holds a clone of github.com/VinAIResearch/Anti-DreamBooth. Its functions run as they are, but for the device and the
half precision that they name, in whose place are those of the measurement.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from udpbench.core.folders import numbered, write_pictures
from udpbench.models.latent import LatentDiffusion

ASPL = Path("Anti-DreamBooth") / "attacks" / "aspl.py"
URL = "https://github.com/VinAIResearch/Anti-DreamBooth"
UNUSED = ("datasets",)  # what it imports and the functions here do not need


def aspl(folder: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What the script defines, by name. ValueError if ``folder`` has no clone, or the script names no device to
    replace."""
    if not (folder / ASPL).is_file():
        raise ValueError(f"--released: {folder / ASPL} is missing; git clone {URL} {folder / ASPL.parts[0]}")
    text = (folder / ASPL).read_text(encoding="utf-8")
    for theirs, ours in (('torch.device("cuda")', f'torch.device("{device.type}")'), ("torch.bfloat16", str(dtype))):
        if theirs not in text:
            raise ValueError(f"--released: {folder / ASPL} is not as it was measured: it lacks {theirs}")
        text = text.replace(theirs, ours)
    missing = [name for name in UNUSED if not importlib.util.find_spec(name)]
    sys.modules |= {name: ModuleType(name) for name in missing}
    try:
        with tempfile.TemporaryDirectory() as beside:
            file = Path(beside) / ASPL.name
            file.write_text(text, encoding="utf-8")
            return runpy.run_path(str(file), run_name="released")
    finally:
        for name in missing:
            del sys.modules[name]


def loops(
    folder: Path, work: Path, model: LatentDiffusion, x: Tensor, prompts: tuple[str, str], steps: int
) -> dict[str, Callable[[], object]]:
    """Released loops of ``steps`` steps on pictures ``x`` (N, 3, H, W) [0,1], by the name of ours: ``perturb``, all N
    in a step, one sample each; ``dreambooth_prior``, one picture and one of the class in a step.

    ``prompts``: of the subject and of the class. ``work``: an empty folder, which has to stay.
    """
    from diffusers import DDPMScheduler

    pipe, script = model.pipe, aspl(folder, model.device, next(model.pipe.unet.parameters()).dtype)
    noises = DDPMScheduler.from_config(pipe.scheduler.config)
    write_pictures(work, numbered(x))
    args = Namespace(
        instance_prompt=prompts[0], class_prompt=prompts[1], class_data_dir=str(work),
        with_prior_preservation=True, prior_loss_weight=1.0, learning_rate=5e-6, resolution=model.size,
        center_crop=True, pgd_alpha=5e-3, pgd_eps=5e-2,
    )  # fmt: skip
    data = (2 * x - 1).to(model.device)
    rest = (pipe.tokenizer, noises, pipe.vae)

    def trained(run: Callable[..., object], *further: object) -> Callable[[], object]:
        def loop() -> object:
            # As in the script, whose models have gradients also where only the pictures' are used.
            parts = [pipe.unet.requires_grad_(True), pipe.text_encoder.requires_grad_(True)]
            try:
                with redirect_stdout(StringIO()):  # it prints every step
                    return run(args, parts, *rest, *further)
            finally:
                for part in parts:
                    part.requires_grad_(False)

        return loop

    return {
        "perturb": trained(script["pgd_attack"], data, data.clone(), None, steps),
        "dreambooth_prior": trained(script["train_one_epoch"], data, steps),
    }
