"""``python -m udpbench.commands.protect IN OUT [GROUP=OPTION KEY=VALUE ...]``: protect a folder of one's own pictures, at their
own size.

The same protections and settings as in a study (``protect=eudp budget.eps=8 model=micro``); no victim is trained.
Says how visible the change is and how much of it survives what a website does to pictures. What a number here does
not say: that anybody is stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from udpbench.commands.common import CONF, told

if TYPE_CHECKING:
    from udpbench.benchmark.stages import Cell
    from udpbench.benchmark.store import Store

SURVIVES = (("jpeg", 90), ("jpeg", 75), ("webp", 80))


def main() -> None:
    """Exit status: 0 fine, 2 wrong input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m udpbench.commands.protect", description=__doc__.split("\n\n")[0])
    parser.add_argument("source", type=Path, metavar="IN", help="folder with pictures of any format and size")
    parser.add_argument("target", type=Path, metavar="OUT", help="folder for the protected PNGs")
    parser.add_argument("--prompt", default="a photo", help="what the pictures show, for protections that read prompts")
    parser.add_argument("overrides", nargs="*", help="as for python -m udpbench, e.g. protect=eudp budget.eps=8")
    args = parser.parse_intermixed_args()
    try:
        if args.target.resolve() == args.source.resolve():
            raise ValueError(f"{args.target}: the protected pictures would replace your own; give another folder")
        with told("interrupted; the same command goes on where this one stopped"):
            cell, store = _build(args.source, args.prompt, args.overrides)
            _cloak(cell, store, args.target)
    except (ValueError, OSError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


def _build(source: Path, prompt: str, overrides: list[str]) -> tuple[Cell, Store]:
    from hydra import compose, initialize_config_dir

    from udpbench.benchmark.build import build, find_device
    from udpbench.benchmark.store import Store
    from udpbench.tracking.console import Console

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["data=folder", *overrides], return_hydra_config=True)
    # Not as overrides: names of folders and sentences may hold what Hydra's grammar gives a meaning.
    cfg.data.path, cfg.data.prompt, cfg.data.class_prompt = str(source.resolve()), prompt, prompt
    cell = build(cfg, cfg.hydra.runtime.choices)
    sizes = cfg.runtime.batch, cfg.runtime.grad_batch
    store = Store(Path(cfg.runtime.store), find_device(cfg.runtime.device), Console(), *sizes)
    return cell, store


def _cloak(cell: Cell, store: Store, target: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from udpbench.benchmark.stages import data_stage, protected_stage
    from udpbench.core.images import read_folder, write_png
    from udpbench.core.visibility import survival, visibility

    clean_folder, cloaked_folder = store.do(data_stage(cell), protected_stage(cell))
    clean, protected = read_folder(clean_folder / "train"), read_folder(cloaked_folder)
    target.mkdir(parents=True, exist_ok=True)
    codecs = [f"{codec} {quality}" for codec, quality in SURVIVES]
    table = Table(title=f"{cell.protect.name}, {cell.budget.thing.name}, surrogate {cell.surrogate.name}")
    for column in ("picture", "largest change", "rms", "PSNR dB", "SSIM", *(f"survives {c}" for c in codecs)):
        table.add_column(column, justify="left" if column == "picture" else "right")
    for name, picture in protected.items():
        write_png(target / name, picture)
        seen = visibility(clean[name], picture)
        left = [survival(clean[name], picture, codec, quality) for codec, quality in SURVIVES]
        numbers = [_text(seen[k], "{:.1f}") for k in ("linf", "rms", "psnr")] + [_text(seen["ssim"], "{:.3f}")]
        table.add_row(name, *numbers, *(_text(v, "{:.0%}") for v in left))
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    console.print(f"{len(protected)} protected pictures in {target}. Changes in 8-bit levels (1/255).")
    console.print("'survives': share of the change's energy left after saving in that format. That promises nothing.")


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


if __name__ == "__main__":
    main()
