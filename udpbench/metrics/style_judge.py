"""What the judge of styles reads in a picture: is it in the style, and does it show what was asked for?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from udpbench.core.digest import folder_digest
from udpbench.core.images import iterate, read_metadata, resize
from udpbench.interfaces import Run
from udpbench.models.micro.judge import WEIGHTS, load_style_judge

if TYPE_CHECKING:
    pass


class StyleJudge:
    """``style_acc``: share of pictures that are in the asked style; ``content_acc``: share that show the shape and the
    scene that their prompts ask for.

    Apart, because they part: a victim that has memorised its pictures has the style and not the content, an pretrained
    model the reverse. A picture the judge is unsure of counts as wrong in both; one whose prompt asks for nothing that
    the truth knows has no content to be right about. The judge is a classifier trained on renderings only.
    """

    version: ClassVar[int] = 1
    against: ClassVar[str] = "truth"
    truth: ClassVar[str] = "style"  # the kind of truth it needs the data to have
    scores: ClassVar[dict[str, str]] = {"style_acc": "down", "content_acc": "down"}
    minimum: ClassVar[int] = 1

    def check(self) -> None:
        """ValueError saying what to do if the weights are missing; nothing is loaded."""
        if not (WEIGHTS / "style_judge" / "style_judge.safetensors").is_file():
            how = "python -m udpbench.world.training.train style_judge --steps 7500, then export"
            raise ValueError(f"style_judge: weights are missing in {WEIGHTS}; train them: {how}")

    def identity(self) -> dict[str, str]:
        """Digest of the judge's weights."""
        return {"judge": folder_digest(WEIGHTS / "style_judge")}

    def __call__(self, got: Path, ref: Path, run: Run) -> dict[str, float]:
        """Score the pictures in ``got`` against the truth in ``ref/data.json``."""
        truth = json.loads((ref / "data.json").read_text())["truth"]
        prompts, judge = read_metadata(got), load_style_judge(run.device)
        style: list[Tensor] = []
        content: list[bool] = []
        for names, x in iterate(got, run.batch):
            told = {k: v.cpu() for k, v in judge.classify(resize(x.to(run.device), 64)).items()}
            style.append(told["style"] == truth["style"])
            for i, name in enumerate(names):
                if asked := truth["content"].get(prompts.get(name, {}).get("text")):
                    content.append(all(int(told[k][i]) == asked[k] for k in asked))
        scores = {"style_acc": float(torch.cat(style).float().mean())}
        if content:
            scores["content_acc"] = sum(content) / len(content)
        return scores
