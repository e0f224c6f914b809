"""What others released, timed beside this package's loops (``bench --released DIR``); none of it is here.

DIR holds clones of ``CLONES``. Their functions and scripts run as they are, but for the devices, the half precision and
the downloads that they name, in whose place are those of the measurement and random weights.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import runpy
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from udpbench.core.folders import numbered, write_pictures
from udpbench.core.pixels import resize
from udpbench.models.efficientnet import load_published
from udpbench.models.latent import LatentDiffusion
from udpbench.models.perceptual import PerceptualLite1

CLONES = {
    "Anti-DreamBooth": "https://github.com/VinAIResearch/Anti-DreamBooth",
    "Impress": "https://github.com/AAAAAAsuka/Impress",
    "photoguard": "https://github.com/MadryLab/photoguard",
    "diffusers": "https://github.com/huggingface/diffusers",
}
ASPL = "Anti-DreamBooth/attacks/aspl.py"
IMPRESS = "Impress/impress.py"
PHOTOGUARD = "photoguard/notebooks/demo_simple_attack_img2img.ipynb"
DREAMBOOTH = "diffusers/examples/dreambooth/train_dreambooth.py"
UNUSED = ("datasets",)  # what they import and the functions here do not need
LPIPS = "lpips.LPIPS(net='vgg')"  # which would download the weights of its trunk
FEATURES = 64  # side in pixels of what the feature network sees in ``bench``
Loop = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """What a released loop is to do: ``steps`` steps on pictures ``x`` (N, 3, H, W) [0,1] with ``model``.

    ``code``: the folder of clones; ``prompts``: of the subject and of the class; ``room``: an empty folder, which has
    to stay.
    """

    code: Path
    model: LatentDiffusion
    x: Tensor
    prompts: tuple[str, str]
    steps: int
    room: Path

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.pipe.unet.parameters()).dtype

    @property
    def scaled(self) -> Tensor:
        """The pictures as released code has them, [-1,1]."""
        return (2 * self.x - 1).to(self.model.device, self.dtype)

    def text(self, file: str, changed: Mapping[str, str]) -> str:
        """The text of ``file`` of a clone with what is ``changed`` in it; ValueError if there is no clone or it lacks
        any of that."""
        if not (self.code / file).is_file():
            clone = file.partition("/")[0]
            todo = f"git clone {CLONES[clone]} {self.code / clone}"
            raise ValueError(f"--released: {self.code / file} is missing; {todo}")
        text = (self.code / file).read_text(encoding="utf-8")
        if file.endswith(".ipynb"):  # of a notebook, the cells that define functions
            cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"]]
            text = "\n".join(cell for cell in cells if cell.startswith("def "))
        for theirs, ours in changed.items():
            if theirs not in text:
                raise ValueError(f"--released: {self.code / file} is not as it was measured: it lacks {theirs}")
            text = text.replace(theirs, ours)
        return text

    def script(self, file: str, changed: Mapping[str, str], **given: Any) -> dict[str, Any]:
        """What ``file`` defines, by name; ``given``: names that it finds defined."""
        text = self.text(file, changed)
        missing = [name for name in UNUSED if not importlib.util.find_spec(name)]
        sys.modules |= {name: ModuleType(name) for name in missing}
        try:
            with tempfile.TemporaryDirectory() as beside:
                (made := Path(beside) / "released.py").write_text(text, encoding="utf-8")
                return runpy.run_path(str(made), given, run_name="released")
        finally:
            for name in missing:
                del sys.modules[name]


def silent(loop: Loop) -> Loop:
    """``loop`` without what it prints, which is a line or a bar a step."""

    def quiet() -> object:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            return loop()

    return quiet


def _aspl(work: Work) -> tuple[dict[str, Any], Namespace, tuple[Any, ...]]:
    """ASPL's script, its settings, and the tokenizer, noise schedule and autoencoder that its functions take."""
    from diffusers import DDPMScheduler

    places = {'torch.device("cuda")': f'torch.device("{work.model.device.type}")', "torch.bfloat16": str(work.dtype)}
    write_pictures(work.room / "class", numbered(work.x))
    args = Namespace(
        instance_prompt=work.prompts[0], class_prompt=work.prompts[1], class_data_dir=str(work.room / "class"),
        with_prior_preservation=True, prior_loss_weight=1.0, learning_rate=5e-6, resolution=work.model.size,
        center_crop=True, pgd_alpha=5e-3, pgd_eps=5e-2,
    )  # fmt: skip
    pipe = work.model.pipe
    noises = DDPMScheduler.from_config(pipe.scheduler.config)
    return work.script(ASPL, places), args, (pipe.tokenizer, noises, pipe.vae)


def _with_parts(work: Work, trained: bool, run: Callable[[list[Any]], object]) -> Loop:
    """``run`` of UNet and text encoder, whose weights have gradients if they are ``trained``."""

    def loop() -> object:
        parts = [part.requires_grad_(trained) for part in (work.model.pipe.unet, work.model.pipe.text_encoder)]
        try:
            return run(parts)
        finally:
            for part in parts:
                part.requires_grad_(False)

    return silent(loop)


def perturb(work: Work) -> dict[str, Loop]:
    """Image steps of ASPL on all pictures at once, one sample each. As released, weights have gradients, too, which
    nobody reads; at equal work they have none."""
    script, args, rest = _aspl(work)
    data = 2 * work.x.to(work.model.device) - 1

    def attack(parts: list[Any]) -> object:
        return script["pgd_attack"](args, parts, *rest, data, data.clone(), None, work.steps)

    return {"released": _with_parts(work, True, attack), "equal": _with_parts(work, False, attack)}


def photoguard(work: Work) -> dict[str, Loop]:
    """PhotoGuard's encoder attack: as released one picture at a time, at equal work all at once."""
    made = work.script(PHOTOGUARD, {".cuda()": ".to(X.device)"}, torch=torch, tqdm=tqdm)
    settings = {"model": work.model.pipe.vae.encode, "eps": 0.06, "step_size": 0.02, "clamp_min": -1, "clamp_max": 1}

    def attack(x: Tensor) -> object:
        return made["pgd"](x, iters=work.steps, **settings)

    alone = silent(lambda: [attack(x) for x in work.scaled.split(1)])
    return {"released": alone} | ({"equal": silent(lambda: attack(work.scaled))} if len(work.x) > 1 else {})


def published_distance(device: torch.device) -> PerceptualLite1:
    """The lite1 distance on its network as published, layer by layer."""
    return PerceptualLite1(load_published("lite1")).to(device)


def impress(work: Work) -> dict[str, Loop]:
    """IMPRESS, which takes one picture at a time: as released with LPIPS on VGG16 (here with random weights), loaded in
    each call; at equal work with our distance, loaded before, on its network as published."""
    distance = published_distance(work.model.device)
    half = {".half()": f".to({work.dtype})"}
    random = half | {LPIPS: LPIPS[:-1] + ", pnet_rand=True, verbose=False)"}
    given = half | {f"{LPIPS}.to(X_adv.device)": "the_distance"}
    sides = {
        "released": work.script(IMPRESS, random)["impress"],
        "equal": work.script(IMPRESS, given, the_distance=lambda x, y: distance((x + 1) / 2, (y + 1) / 2))["impress"],
    }
    settings = {"eps": 0.1, "lr": 0.01, "pur_alpha": 0.1, "noise": 0.05, "clamp_min": -1, "clamp_max": 1}

    def loop(purify: Callable[..., object]) -> Loop:
        vae = work.model.pipe.vae
        return silent(lambda: [purify(x, model=vae, iters=work.steps, **settings) for x in work.scaled.split(1)])

    return {side: loop(purify) for side, purify in sides.items()}


def dreambooth(work: Work, prior: bool = False) -> dict[str, Loop]:
    """diffusers' script, from reading the model to writing it; it encodes pictures and prompts anew in each step.

    ``prior``: with class pictures and the text encoder in training.
    """
    # It has the libraries tell what they load and save, to where standard error was when they were imported.
    levels = {
        f"{library}.utils.logging.set_verbosity_{level}()": f"{library}.utils.logging.set_verbosity_error()"
        for library, level in (("diffusers", "info"), ("transformers", "warning"))
    }
    script = work.script(DREAMBOOTH, levels)
    n = len(work.x)
    subject, others, whole = (work.room / name for name in ("subject", "others", "model"))
    write_pictures(subject, numbered(work.x))
    write_pictures(others, numbered(work.x))
    copy.deepcopy(work.model.pipe).to(torch.float32).save_pretrained(whole)  # it takes no other precision
    said = {
        "pretrained_model_name_or_path": whole, "instance_data_dir": subject, "output_dir": work.room / "out",
        "instance_prompt": work.prompts[0], "resolution": work.model.size, "train_batch_size": n, "learning_rate": 1e-5,
        "max_train_steps": work.steps, "lr_warmup_steps": 0, "checkpointing_steps": work.steps + 1,
    }  # fmt: skip
    flags = ["center_crop"]
    if prior:
        said |= {"class_data_dir": others, "class_prompt": work.prompts[1], "num_class_images": n}
        flags += ["with_prior_preservation", "train_text_encoder"]
    words = [word for name, value in said.items() for word in (f"--{name}", str(value))]
    words += [f"--{name}" for name in flags]
    return {"released": silent(lambda: script["main"](script["parse_args"](words)))}


def dreambooth_prior(work: Work) -> dict[str, Loop]:
    """``dreambooth`` with class pictures and text encoder; with one picture in a step ASPL's surrogate, too."""
    found = dreambooth(work, prior=True)
    if len(work.x) == 1:
        script, args, rest = _aspl(work)
        data = 2 * work.x.to(work.model.device) - 1

        def train(parts: list[Any]) -> object:
            return script["train_one_epoch"](args, parts, *rest, data, work.steps)

        found["aspl"] = _with_parts(work, True, train)
    return found


def generate(work: Work) -> dict[str, Loop]:
    """diffusers' pipeline as it comes, called for one picture after the other."""
    pipe = work.model.assembled(type(work.model.pipe))
    settings = {"guidance_scale": 2.0, "num_inference_steps": work.steps}
    return {"released": lambda: [pipe(work.prompts[0], **settings) for _ in work.x]}


def features(work: Work) -> dict[str, Loop]:
    """clean-fid's loop over as many sizes as steps (one process, its own resize), N pictures at a time, with our
    network: its own would be a download."""
    from cleanfid.fid import get_folder_features
    from cleanfid.resize import make_resizer

    sizes, sized = work.room / "sizes", (resize(work.x, work.model.size + k % 5) for k in range(work.steps))
    write_pictures(sizes, numbered(y for pictures in sized for y in pictures))
    network, device = load_published("lite0").to(work.model.device), work.model.device
    resizer = make_resizer("PIL", quantize_after=False, filter="bicubic", output_size=(FEATURES, FEATURES))
    settings = {"num_workers": 0, "batch_size": len(work.x), "device": device, "mode": "clean", "verbose": False}

    def loop() -> object:
        return get_folder_features(str(sizes), lambda x: network(x / 255), custom_fn_resize=resizer, **settings)

    return {"released": loop}


SIDES: dict[str, Callable[[Work], dict[str, Loop]]] = {
    side.__name__: side for side in (perturb, photoguard, impress, dreambooth, dreambooth_prior, generate, features)
}
