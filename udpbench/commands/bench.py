"""``python -m udpbench bench``: how fast the hot loops are, each beside a plain loop (see ``commands/loops.py``).

They run on the embedded model and on one of Stable Diffusion's shape for 256 px with random weights, on a GPU on one of
Stable Diffusion 1.5's for 512 px, too.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from udpbench.commands.common import Parser, write_json
from udpbench.commands.telling import one_line_errors

if TYPE_CHECKING:
    from udpbench.models.latent import LatentDiffusion

NAMES = ("perturb", "photoguard", "impress", "dreambooth", "dreambooth_prior", "generate", "features")
MODELS = ("micro", "small", "sd15")
SIDES = {"released": "the released one", "equal": "that at equal work", "aspl": "that of ASPL's surrogate"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line per loop and write all of them as JSON. Exit status: 0 fine, 2 wrong input, 130 interrupted."""
    parser = Parser("bench", "Time the hot loops, each beside a plain loop; takes minutes.")
    out, loops = Path("outputs/bench.json"), list(NAMES)
    parser.add_argument("--out", type=Path, default=out, metavar="FILE", help=f"for the numbers (default: {out})")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="the median counts (default: 3)")
    parser.add_argument("--loops", nargs="+", choices=NAMES, default=loops, help="those to time (default: all)")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16], metavar="N", help="(default: 1 4 16)")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="of the shorter of two calls (default: 10)")
    models = "(default: micro small, on a GPU sd15, too)"
    parser.add_argument("--models", nargs="+", choices=MODELS, help=models)
    theirs = "a folder with clones of released code, timed, too (see experiments/bench)"
    parser.add_argument("--released", type=Path, metavar="DIR", help=theirs)
    args = parser.parse_args(arguments)
    with one_line_errors():
        if min(args.steps, *args.batches) < 1:
            raise ValueError(f"--steps and --batches: must be at least 1, given {args.steps} and {args.batches}")
        if args.repeats < 1:
            raise ValueError(f"--repeats: must be at least 1, given {args.repeats}")
        _bench(args)


def _bench(args: argparse.Namespace) -> None:
    from udpbench.commands.loops import compare
    from udpbench.core.device import prepare_device
    from udpbench.core.memory import keep_freed_memory
    from udpbench.core.provenance import provenance
    from udpbench.interfaces import Run

    keep_freed_memory()
    device = prepare_device("auto")
    names, run = args.models or MODELS[: 2 if device.type == "cpu" else 3], Run(0, device, batch=64)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, batch, loop in product(names, args.batches, args.loops):
            model = _model(name, Path(folder)).to(device)
            row = compare(loop, model, run, batch, args.steps, args.repeats, args.released)
            rows.append(row)
            write_json(args.out, {"rows": rows, "provenance": provenance(device)})
            unit = "ms of the processor" if device.type == "cpu" else "ms"
            took = f"{1e3 * row['seconds_per_step']:9.1f} {unit} a step, {row['seconds_per_call']:6.2f} s a call"
            ratios = {"the plain step": row["ratio"]}
            ratios |= {text: row[f"{side}_ratio"] for side, text in SIDES.items() if f"{side}_ratio" in row}
            than = ", ".join(f"{ratio:.2f} x {text}" for text, ratio in ratios.items())
            print(f"{name:6} {loop:16} {batch:3} {took}, {than}", flush=True)  # noqa: T201


@cache
def _model(name: str, folder: Path) -> LatentDiffusion:
    """The embedded model, or one of Stable Diffusion's shape with random weights; that of 1.5 in bf16."""
    import torch

    from udpbench.models.latent import LatentDiffusion
    from udpbench.models.shaped import SD15, SMALL, random_pipeline

    if name == "micro":
        return LatentDiffusion("pkg:micro", "micro")
    dtype = "bf16" if name == "sd15" else "fp32"
    made = random_pipeline(SD15 if name == "sd15" else SMALL)
    made.to(dtype=torch.bfloat16 if name == "sd15" else torch.float32).save_pretrained(folder / name)
    return LatentDiffusion(str(folder / name), name, dtype=dtype)
