"""``python -m udpbench bench``: how fast the hot loops are, each beside a plain loop (see ``benchmark/loops.py``).

On a GPU the loops also run on a model of Stable Diffusion 1.5's shape with random weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from udpbench.commands.common import Parser, told, write_json

if TYPE_CHECKING:
    import torch

    from udpbench.models.latent import LatentDiffusion

NAMES = ("perturb", "impress", "dreambooth", "generate", "features")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line per loop and write all of them as JSON. Exit status: 0 fine, 2 wrong input, 130 interrupted."""
    parser = Parser("bench", "Time the hot loops, each beside a plain loop; takes minutes.")
    out, loops = Path("outputs/bench.json"), list(NAMES)
    parser.add_argument("--out", type=Path, default=out, metavar="FILE", help=f"for the numbers (default: {out})")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="the median counts (default: 3)")
    parser.add_argument("--loops", nargs="*", choices=NAMES, default=loops, help="those to time (default: all)")
    args = parser.parse_args(arguments)
    with told():
        if args.repeats < 1:
            raise ValueError(f"--repeats: must be at least 1, given {args.repeats}")
        _bench(args.loops, args.repeats, args.out)


def _bench(loops: Sequence[str], repeats: int, out: Path) -> None:
    import torch

    from udpbench.commands.loops import compare
    from udpbench.core.provenance import provenance
    from udpbench.interfaces import Run

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run, rows = Run(0, device, batch=64), []
    with tempfile.TemporaryDirectory() as folder:
        for model, n, steps in _models(Path(folder), device):
            for name in loops:
                row = compare(name, model.to(device), run, n, steps, repeats)
                rows.append(row)
                what, speed = next((k.replace("_", " "), v) for k, v in row.items() if k.endswith("_per_second"))
                print(f"{model.name:10} {name:10} {speed:9.2f} {what}, {row['ratio']:.2f} x the plain loop", flush=True)  # noqa: T201
    write_json(out, {"rows": rows, "provenance": provenance(device)})


def _models(folder: Path, device: torch.device) -> list[tuple[LatentDiffusion, int, int]]:
    """(model, batch, steps): the embedded one, and on a GPU one of Stable Diffusion 1.5's shape with random weights,
    in bf16."""
    import torch

    from udpbench.models.latent import LatentDiffusion

    found = [(LatentDiffusion("pkg:micro", "micro"), 6, 10)]
    if device.type == "cuda":
        from udpbench.models.shaped import SD15, random_pipeline

        random_pipeline(SD15).to(dtype=torch.bfloat16).save_pretrained(folder / "sd15")
        found.append((LatentDiffusion(str(folder / "sd15"), "sd15-shaped", dtype="bf16"), 4, 10))
    return found
