"""UDP's settings against training from scratch: a choice on development pictures, and a trial on others.

    python experiments/udp/choose.py RUNG [NAME ... SEED ... root=DIR]

tries the named settings (without names all of ``SETTINGS``) under the seeds (without any 0 and 1) at the length of a
rung and adds a line for each to ``development/RUNG.jsonl``; what is there is not computed again. All pictures are of
draw 1 of ``data=toyworld_many``, which is for development; of the rung ``test`` each seed is the number of a draw, too;
of the rung ``photos`` they are automobiles and horses of CIFAR-10, other ones for each seed, and a word ``root=DIR``
says where it is (as ``data=cifar10 data.root=DIR``). The budget is 8/255, of the rung ``sixteen`` 16/255.

A try protects pictures, trains a victim from scratch on them and measures what the published objective speaks of, how
far that victim is from the *clean* distribution: its denoising loss on clean pictures that nobody trained on, with
the same (t, noise) for all. Beside the settings are clean pictures and noise. The same seeds for all make the
differences paired.

    python experiments/udp/choose.py table RUNG

says what has been found, as Markdown.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from udpbench.core.budget import Linf, measure
from udpbench.core.images import as_saved, read_folder, write_png
from udpbench.data.cifar10 import Cifar10
from udpbench.interfaces import Owner, Run
from udpbench.models.pixel import FreshPixel, PixelDiffusion
from udpbench.protect.noise import Noise
from udpbench.protect.udp import UDP
from udpbench.results.intervals import generator, paired_interval
from udpbench.task.ddpm import Ddpm
from udpbench.world import renderer

HERE = Path(__file__).parent / "development"
TIMES = 20
SEEDS, TEST_SEEDS = (0, 1), (2, 3, 4)
TESTS = ("test", "photos")
# Side of the pictures, how many, widths of the UNet, steps of the victim.
RUNGS: dict[str, tuple[int, int, list[int], int]] = {
    "short": (16, 200, [16, 32, 32], 400),
    "longer": (16, 200, [16, 32, 32], 1200),
    "wide": (32, 500, [16, 64, 64], 1500),
    "test": (16, 200, [16, 32, 32], 400),
    "photos": (32, 500, [16, 32, 32], 800),
    "sixteen": (16, 200, [16, 32, 32], 400),
}
EPS = {"sixteen": 16}  # the budget's bound; of the other rungs 8
# What differs from a surrogate that trains as long as the victim, in five rounds; "clean" and "noise" are the controls.
LONG: dict[str, Any] = {"rounds": 5, "image_steps": 10, "model_steps": 1 / 5, "surrogate_init": "random"}
SETTINGS: dict[str, dict[str, Any]] = {
    "clean": {},
    "noise": {},
    "third": {"model_steps": 1 / 15},  # of the victim's steps: as in the first study
    "long": {},
    "long_snr": {"times": "snr"},
    "long_alpha_bar": {"times": "alpha_bar"},
    "clean_start": {"start_steps": 1},
    "restarts": {"start_steps": 1, "restart_every": 1},
    "scratch_restarts": {"restart_every": 1},
    "flip": {"flip": True},
    "random_start": {"random_start": True},
    "outer_clean": {"outer": "clean", "start_steps": 1, "model_steps": 1 / 15, "image_steps": 4},
    # Added on the way: what changes pictures more does more harm, and those above use less of the budget than noise.
    "snr_wide_steps": {"times": "snr", "step_size": 4.0},
    "snr_random_start": {"times": "snr", "random_start": True},
    "snr_random_start_wide_steps": {"times": "snr", "random_start": True, "step_size": 4.0},
    "wide_steps": {"step_size": 4.0},
    "more_steps": {"image_steps": 20},
    "snr_more_steps": {"times": "snr", "image_steps": 20},
}


def pictures(part: str, n: int, size: int, draw: int, root: str | None) -> list[torch.Tensor]:
    """The first pictures of a part of a draw, as ``data=toyworld_many data.draw=DRAW`` writes them; with ``root`` the
    draw's photographs, of which no other draw has one (the held-out ones are the same for all)."""
    if root is not None:
        first = draw * n if part == "train" else 0
        classes = ["automobile", "horse"]
        data = Cifar10(root=root, classes=classes, train=first + n, reference=1, heldout=n)
        with tempfile.TemporaryDirectory() as folder:
            data.write(Path(folder), Run(0))
            return list(read_folder(Path(folder) / part).values())[first:]
    scenes = renderer.draw(n, Run(0).rng("toyworld_many", part, draw))
    return [as_saved(x) for x in renderer.render(scenes, size)]


def protect(name: str, owner: Owner, eps: int, steps: int, surrogate: PixelDiffusion, run: Run) -> list[torch.Tensor]:
    """The pictures as a setting leaves them, rounded to 8 bits; ``steps``: of the victim."""
    if name == "clean":
        return owner.images
    if name == "noise":
        return [as_saved(x) for x in Noise().protect(owner, Linf(eps), None, run)]
    settings = {"lr": 1e-3, "weight_decay": 0.0, "batch": 16, "samples": 1, **LONG, **SETTINGS[name]}
    for lengths in ("model_steps", "start_steps"):
        settings[lengths] = round(settings.get(lengths, 0) * steps)
    return [as_saved(x) for x in UDP(**settings).protect(owner, Linf(eps), surrogate, run)]


@torch.no_grad()
def clean_loss(victim: PixelDiffusion, held: list[torch.Tensor]) -> list[float]:
    """Denoising loss on clean pictures at ``TIMES`` time steps, each picture with noise of its own."""
    z, losses = victim.encode(torch.stack(held)), []
    for k in range(TIMES):
        t = torch.full((len(z),), round((k + 0.5) * len(victim.alpha_bar) / TIMES))
        noise = torch.randn(z.shape, generator=Run(0).rng("clean loss", k))
        losses.append(float(victim.loss(z, victim.embed([""] * len(z)), t, noise).mean()))
    return losses


def tried(name: str, rung: str, seed: int, root: str | None) -> dict[str, Any]:
    """One setting under one seed."""
    size, n, widths, steps = RUNGS[rung]
    run, draw = Run(seed), seed if rung in TESTS else 1
    model = FreshPixel("ddpm", size, widths, layers=1, attention=[2], groups=8).on(run)
    names = [f"{i:05d}.png" for i in range(n)]
    owner = Owner(images=pictures("train", n, size, draw, root), names=names, prompts=[""] * n)
    start = time.process_time()
    made = protect(name, owner, EPS.get(rung, 8), steps, model, run)
    spent = time.process_time() - start
    task = Ddpm(
        steps=steps,
        lr=1e-3,
        batch=16,
        weight_decay=0.0,
        warmup=100,
        ema=0.995,
        pictures=1,
        sample_steps=1,
        save_every=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        for file, x in zip(names, made, strict=True):
            write_png(Path(folder) / "train" / file, x)
        task.train(Path(folder) / "train", Path(folder) / "out", model, run)
        victim = model.with_tuned(Path(folder) / "out" / f"step_{steps}")
        losses = clean_loss(victim, pictures("heldout", n, size, draw, root))
    rms = sum(measure(a, b)["rms"] for a, b in zip(owner.images, made, strict=True)) / n
    return {
        "setting": name, "seed": seed, "loss": sum(losses) / TIMES, "losses": losses, "rms": rms,
        "protect_cpu_s": spent, "cpu_s": time.process_time() - start, "settings": SETTINGS[name], "count": run.count,
    }  # fmt: skip


def table(rung: str) -> Iterator[str]:
    """Markdown: harm, by how many thousandths a victim's loss is above that of the clean victim of its seed; beside
    noise's as mean over the seeds with its t interval."""
    rows = [json.loads(line) for line in (HERE / f"{rung}.jsonl").read_text().splitlines()]
    seeds = sorted({row["seed"] for row in rows})
    clean = {row["seed"]: row["loss"] for row in rows if row["setting"] == "clean"}
    harm = {(row["setting"], row["seed"]): 1000 * (row["loss"] - clean[row["seed"]]) for row in rows}
    yield f"| setting | RMS (/255) | {' | '.join(f'seed {seed}' for seed in seeds)} | above noise | CPU s |"
    yield "|:--|--:|" + "--:|" * (len(seeds) + 2)
    for name in [name for name in SETTINGS if name != "clean" and any(key[0] == name for key in harm)]:
        mine = [row for row in rows if row["setting"] == name]
        means = [sum(row[key] for row in mine) / len(mine) for key in ("rms", "cpu_s")]
        each = [f"{harm[name, seed]:.2f}" if (name, seed) in harm else "-" for seed in seeds]
        beside = {("", seed): harm[name, seed] - harm["noise", seed] for seed in seeds if (name, seed) in harm}
        found = paired_interval(beside, generator(0, name))
        bounds = "" if found.low is None else f" [{found.low:+.2f}, {found.high:+.2f}]"
        above = "" if name == "noise" else f"{found.mean:+.2f}{bounds}"
        yield f"| {name} | {means[0]:.2f} | {' | '.join(each)} | {above} | {means[1]:.0f} |"


def main(rung: str, *names: str) -> None:
    if rung == "table":
        sys.stdout.writelines(f"{line}\n" for line in table(*names))
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    file = HERE / f"{rung}.jsonl"
    file.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    seeds = [int(name) for name in names if name.isdigit()] or (TEST_SEEDS if rung in TESTS else SEEDS)
    root = next((name.removeprefix("root=") for name in names if name.startswith("root=")), None)
    if (root is None) == (rung == "photos"):
        sys.exit("error: the rung photos, and no other, takes a word root=DIR, the folder of CIFAR-10")
    settings = [name for name in names if not name.isdigit() and not name.startswith("root=")]
    if unknown := set(settings) - SETTINGS.keys():
        sys.exit(f"error: unknown settings: {', '.join(sorted(unknown))}; there are {', '.join(SETTINGS)}")
    for seed in seeds:
        for name in settings or SETTINGS:
            if any((row["setting"], row["seed"]) == (name, seed) for row in rows):
                continue
            row = tried(name, rung, seed, root)
            said = f"{rung} seed {seed} {name}: {row['loss']:.5f}, rms {row['rms']:.2f}, {row['cpu_s']:.0f} s"
            sys.stdout.write(said + "\n")
            sys.stdout.flush()
            with file.open("a") as out:
                out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
