"""Measurements of the embedded models, for their developers: the numbers of ``measured.json`` beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from experiments.embedded_models import pictures
from udpbench.attack.diffpure import DiffPure
from udpbench.core.codecs import pillow_resize
from udpbench.core.images import as_saved
from udpbench.core.pixels import resize
from udpbench.core.visibility import psnr
from udpbench.interfaces import Run
from udpbench.metrics.frechet_distance import frechet_distance
from udpbench.metrics.kernel_distance import kernel_distance
from udpbench.metrics.ssim import Ssim
from udpbench.models.features import EfficientNetLite0
from udpbench.models.latent import LatentDiffusion
from udpbench.models.micro.judge import Judge
from udpbench.models.perceptual import load_distance
from udpbench.models.pixel import PixelDiffusion
from udpbench.models.sample import sample, sample_pixels
from udpbench.models.upscaler import Upscaler
from udpbench.world import renderer, styles

WORLD, SUBJECT = 128, 16  # pictures of the pretraining world, and of each subject, that an autoencoder is measured on


@torch.no_grad()
def measure_vae(vae: AutoencoderKL) -> dict[str, float]:
    """PSNR of the round trip on the pretraining world, on held-out subjects and on photographs that no training has
    seen."""
    vae.eval()
    rng = torch.Generator().manual_seed(1)
    subjects = held_out_subjects(rng)
    return {
        "psnr_world": round_trip(vae, renderer.render(renderer.draw(WORLD, rng))),
        "psnr_subjects": round_trip(vae, subjects),
        "psnr_photographs": round_trip(vae, unseen_photographs()),
    }


def held_out_subjects(rng: torch.Generator) -> Tensor:
    """``SUBJECT`` pictures of each of the ten development subjects, NCHW [0,1]."""
    return torch.cat([renderer.render(renderer.draw(SUBJECT, rng, renderer.subject(k))) for k in range(10)])


@torch.no_grad()
def round_trip(vae: AutoencoderKL, x: Tensor) -> float:
    """PSNR in dB of what an autoencoder makes of pictures, NCHW [0,1], as they are saved."""
    back = vae.decode(vae.encode(x * 2 - 1).latent_dist.mean).sample / 2 + 0.5
    return float(psnr(as_saved(back), x).mean())


def unseen_photographs() -> Tensor:
    """Crops of the four photographs that no training reads (see udpbench.data.photos), NCHW [0,1], 64 px."""
    import skimage.data

    crops = []
    for name in ("chelsea", "coffee", "astronaut", "rocket"):
        photo = torch.from_numpy(getattr(skimage.data, name)().copy()).permute(2, 0, 1).float() / 255
        side = min(photo.shape[1:])
        for part in (side, side // 2):
            top, left = (photo.shape[1] - part) // 2, (photo.shape[2] - part) // 2
            crops.append(resize(photo[None, :, top : top + part, left : left + part], pictures.SIZE))
    return torch.cat(crops)


def measure_prompts(model: LatentDiffusion, judge: Judge, n: int = 300) -> dict[str, float]:
    """Fraction of ``n`` pictures in which the judge finds what the prompt names: class, colour, texture, scene, and all
    four; 20 steps of DDIM, guidance 3."""
    truth = renderer.draw(n, torch.Generator().manual_seed(3))
    said = renderer.captions(truth, torch.Generator().manual_seed(3), drop=0.0)
    made = torch.cat(list(sample(model, said, range(n), Run(0, batch=50), steps=20, guidance=3.0)))
    told = judge.classify(made)
    right = {name: told[name] == getattr(truth, name) for name in ("shape", "color", "texture", "scene")}
    return accuracies(right | {"all": torch.stack(list(right.values())).all(0)})


def accuracies(right: Mapping[str, Tensor]) -> dict[str, float]:
    """Fractions of what is right, by name."""
    return {f"acc_{name}": float(v.float().mean()) for name, v in right.items()}


@torch.no_grad()
def measure_judge(judge: Judge, change: Callable[[Tensor], Tensor] = lambda x: x) -> dict[str, float]:
    """Accuracy by attribute and of the subject (shape, both colours, texture together) on held-out subjects 0-39,
    after ``change``."""
    judge.eval()
    rng = torch.Generator().manual_seed(2)
    right: dict[str, list[Tensor]] = {}
    for k in range(40):
        truth = renderer.draw(16, rng, renderer.subject(k))
        told = judge.classify(change(renderer.render(truth)))
        for name, value in told.items():
            right.setdefault(name, []).append(value == getattr(truth, name))
    found = {name: torch.cat(v) for name, v in right.items()}
    found["subject"] = found["shape"] & found["color"] & found["second"] & found["texture"]
    unsure = (judge.classify(pictures.garbage(512, rng))["shape"] < 0).float().mean()
    return accuracies(found) | {"garbage_unsure": float(unsure)}


@torch.no_grad()
def measure_style_judge(
    judge: Judge, change: Callable[[Tensor], Tensor] = lambda x: x, n: int = 10
) -> dict[str, float]:
    """Accuracy of the judge of styles by attribute and of the content (shape and scene together), after ``change``.

    On ``n`` pictures of each style and of none, of the pretraining world and of each of the held-out subjects 0-9; the
    worst style's accuracy, too, and the fractions of these pictures and of garbage, in every style, of which it is
    unsure.
    """
    judge.eval()
    rng, styled = torch.Generator().manual_seed(4), range(len(styles.STYLES) + 1)
    right: dict[str, list[Tensor]] = {}
    for subject in (None, *map(renderer.subject, range(10))):
        for k in styled:
            truth = renderer.draw(n, rng, subject)
            x = renderer.render(truth)
            told = judge.classify(change(styles.stylise(x, k) if k < len(styles.STYLES) else x))
            for name in ("shape", "scene"):
                right.setdefault(name, []).append(told[name] == getattr(truth, name))
            right.setdefault("style", []).append(told["style"] == k)
            right.setdefault("unsure", []).append(told["style"] < 0)
    by_style = torch.stack(right["style"]).view(-1, len(styled), n).float().mean((0, 2))
    found = {name: torch.cat(v) for name, v in right.items()}
    found["content"] = found["shape"] & found["scene"]
    unsure = found.pop("unsure").float().mean()
    garbage = judge.classify(pictures.in_styles(pictures.garbage(512, rng), rng)[0])["style"] < 0
    return {
        **accuracies(found),
        "acc_worst_style": float(by_style.min()),
        "world_unsure": float(unsure),
        "garbage_unsure": float(garbage.float().mean()),
    }


@torch.no_grad()
def measure_pixel(model: PixelDiffusion, n: int = 256) -> dict[str, float]:
    """Distances in features of ``efflite0`` from ``n`` held-out pictures of the training mix to as many that the model
    draws (50 steps of DDIM) and, the least there can be, to as many others of the mix; PSNR of world, held-out subjects
    and unseen photographs after noise of 100 time steps and as many steps back, and what the noise alone leaves."""
    rng = torch.Generator().manual_seed(6)
    held, other = (torch.cat([pictures.autoencoder_batch(16, rng) for _ in range(n // 16)]) for _ in range(2))
    drawn = torch.cat(list(sample_pixels(model, range(n), Run(0, batch=32), steps=50, solver="ddim")))
    lite0 = EfficientNetLite0(size=32, blur_sigma=1.0)  # as in conf/features/efflite0.yaml
    network = lite0.network(torch.device("cpu"))
    told = [torch.cat([network(lite0.prepared(x)) for x in part.split(32)]) for part in (held, other, drawn)]
    found = {}
    for name, features in (("held_out", told[1]), ("drawn", told[2])):
        found[f"fd_{name}"] = float(frechet_distance(features, told[0]))
        found[f"kd_{name}"] = float(kernel_distance(features, told[0]))
    attack, run = DiffPure(sampler="ddpm", t=100), Run(0, batch=32)
    subjects = torch.cat([renderer.render(renderer.draw(4, rng, renderer.subject(k))) for k in range(8)])
    sets = {"world": renderer.render(renderer.draw(32, rng)), "subjects": subjects, "photographs": unseen_photographs()}
    for name, x in sets.items():
        made = attack.purify(list(x), [str(i) for i in range(len(x))], [""] * len(x), model, run)
        found[f"psnr_{name}_100"] = float(psnr(torch.stack(made), x).mean())
    a = float(model.alpha_bar[99])
    noisy = sets["world"] + ((1 - a) / a) ** 0.5 / 2 * torch.randn(sets["world"].shape, generator=rng)
    return found | {"psnr_world_100_noise_alone": float(psnr(noisy.clamp(0, 1), sets["world"]).mean())}


@torch.no_grad()
def measure_upscaler(model: Upscaler) -> dict[str, float]:
    """PSNR, SSIM and perceptual distance (``lite1``) of 64 px made of 16 (no guidance, no noise, true captions) in one
    step, as the presets of attacks have it, and in 20, and of a bicubic resize and Lanczos's alone."""
    rng, found, of_pairs = torch.Generator().manual_seed(7), {}, Ssim().prepare(torch.device("cpu"))
    far, sides = load_distance("lite1", None, torch.device("cpu")), (pictures.SIZE, pictures.SIZE)
    truth, photos = renderer.draw(48, rng), unseen_photographs()
    said = renderer.captions(truth, rng, drop=0.0)
    sets = {"world": (renderer.render(truth), said), "photographs": (photos, [""] * len(photos))}
    for name, (x, said) in sets.items():
        small = as_saved(resize(x, pictures.SIZE // 4))
        made = {
            "_resize": resize(small, pictures.SIZE),
            "_lanczos": torch.stack([pillow_resize(one, sides, "lanczos") for one in small]),
        }
        for what, steps in (("", 1), ("_20_steps", 20)):
            rngs = [Run(0).rng("measure", name, i) for i in range(len(x))]
            made[what] = model.enlarged(small, said, "", rngs, steps=steps, guidance=1.0, noise_level=0)
        for what, got in made.items():
            saved = as_saved(got)
            found[f"psnr_{name}{what}"] = float(psnr(saved, x).mean())
            found[f"ssim_{name}{what}"] = float(of_pairs(saved, x)["ssim"].mean())
            found[f"dist_lite1_{name}{what}"] = float(far(saved, x).mean())
    return found
