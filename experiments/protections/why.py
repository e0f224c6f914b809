"""What goes with a protection's effect: how it moves latents, and what it does to the denoising loss.

    python -m experiments.protections.why [STORE]

measures the protected pictures of the study's records, which STORE (default: outputs/store) holds, with the base model
that nobody has trained on the subject, and writes ``why.json`` (a row for each protection and subject) and ``why.md``
(the table). No victim is trained.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import Tensor

from udpbench import load_records
from udpbench.core.images import read_folder
from udpbench.models.latent import LatentDiffusion

HERE = Path(__file__).parent
EARLY, LATE = (50, 150), (350, 550, 750, 950)  # time steps of 1,000
DRAWS = 2  # of the noise at each of them, the same for all pictures
COLUMNS = {
    "rms": "RMS (/255)",
    "moved": "latents moved",
    "spread": "their SD, of the clean ones'",
    "early": "loss raised at t = 50, 150",
    "late": "at t = 350 to 950",
}


@torch.no_grad()
def losses(model: LatentDiffusion, z: Tensor) -> Tensor:
    """Denoising loss at each of ``EARLY`` and ``LATE``, mean over the latents ``z``."""
    cond = model.embed(["a photo"] * len(z))
    noises = [torch.randn(z.shape, generator=torch.Generator().manual_seed(k)) for k in range(DRAWS)]
    times = [torch.full((len(z),), t) for t in (*EARLY, *LATE)]
    return torch.stack([torch.stack([model.loss(z, cond, t, noise).mean() for noise in noises]).mean() for t in times])


class Seen(NamedTuple):
    """Pictures of a folder, NCHW [0,1], their latents, and their loss at each of ``EARLY`` and ``LATE``."""

    pictures: Tensor
    latents: Tensor
    losses: Tensor


@torch.no_grad()
def seen(model: LatentDiffusion, folder: Path) -> Seen:
    x = torch.stack(list(read_folder(folder).values()))
    z = model.encode(x)
    return Seen(x, z, losses(model, z))


def measured(clean: Seen, protected: Seen) -> dict[str, float]:
    """What the protected pictures are beside the clean ones, by ``COLUMNS``; latents in units of the model's."""
    raised = protected.losses - clean.losses
    return {
        "rms": float((protected.pictures - clean.pictures).square().mean().sqrt()) * 255,
        "moved": float((protected.latents - clean.latents).square().mean().sqrt()),
        "spread": float(protected.latents.std() / clean.latents.std()),
        "early": float(raised[: len(EARLY)].mean()),
        "late": float(raised[len(EARLY) :].mean()),
    }


def rows(store: Path) -> Iterator[dict[str, Any]]:
    """A row for each protection and subject of the records without an attack, and one for noise on each subject."""
    look, told = cache(partial(seen, LatentDiffusion("pkg:micro", "micro"))), set()
    for record in load_records(HERE / "records"):
        cell, arms = record["cell"], record["arms"]
        for arm, name in (("protected", cell["protect"]), ("noise", "noise")):
            if cell["attack"] != "none" or cell["budget"] != "linf_8" or arm not in arms:
                continue
            clean, made = (store.joinpath(*Path(arms[part]["pictures"]).parts[-2:]) for part in ("clean", arm))
            if made in told:
                continue
            told.add(made)
            scores = [arms[part]["metrics"]["kd_efflite0"]["value"] for part in (arm, "clean")]
            found = measured(look(clean / "train"), look(made))
            yield {"protection": name, "subject": cell["subject"], "effect": scores[0] - scores[1], **found}


def table(found: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: means over the subjects that met most protections, in the order of the effect, and each column's rank
    correlation with it."""
    met = Counter(row["subject"] for row in found)
    subjects = sorted(subject for subject in met if met[subject] == max(met.values()))
    means = {
        name: {key: sum(row[key] for row in group) / len(group) for key in ("effect", *COLUMNS)}
        for name in {row["protection"] for row in found}
        if len(group := [row for row in found if row["protection"] == name and row["subject"] in subjects])
        == len(subjects)
    }
    yield f"| protection | effect on kd_efflite0 | {' | '.join(COLUMNS.values())} |"
    yield "|---|" + "--:|" * (1 + len(COLUMNS))
    for name, mean in sorted(means.items(), key=lambda item: -item[1]["effect"]):
        numbers = [f"{mean['rms']:.1f}", *(f"{mean[key]:.2f}" for key in list(COLUMNS)[1:])]
        yield f"| {name} | {mean['effect']:+.1f} | {' | '.join(numbers)} |"
    for subject in subjects:
        group = [row for row in found if row["subject"] == subject and row["protection"] in means]
        effects = [row["effect"] for row in group]
        ranks = [spearmanr([row[key] for row in group], effects).statistic for key in COLUMNS]
        yield f"| *rank correlation, subject {subject}* | | {' | '.join(f'{rank:.2f}' for rank in ranks)} |"


def main(store: str = "outputs/store") -> None:
    found = list(rows(Path(store)))
    (HERE / "why.json").write_text(json.dumps(found, indent=1) + "\n")
    head = """# What goes with a protection's effect

Made by `python -m experiments.protections.why`; what it shows: [README](README.md).

"""
    (HERE / "why.md").write_text(head + "\n".join(table(found)) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
