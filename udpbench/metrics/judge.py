"""What the judge of the embedded world reads in a picture: is it the subject, is it the scene that was asked for?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from udpbench.core.digest import folder_digest
from udpbench.core.images import iterate, read_metadata, resize
from udpbench.interfaces import Run
from udpbench.models.micro.judge import WEIGHTS, load_judge
from udpbench.world.renderer import SCENES

if TYPE_CHECKING:
    pass


class JudgeMetric:
    """``subject_acc``: share of pictures whose shape, both colours and texture are all the subject's; ``scene_acc``:
    share whose scene is the prompt's.

    A picture the judge is unsure of counts as wrong in both. The judge is a classifier trained on renderings only.
    """

    version: ClassVar[int] = 1
    against: ClassVar[str] = "truth"
    truth: ClassVar[str] = "subject"  # the kind of truth it needs the data to have
    scores: ClassVar[dict[str, str]] = {"subject_acc": "down", "scene_acc": "down"}
    minimum: ClassVar[int] = 1

    def identity(self) -> dict[str, str]:
        """Digest of the judge's weights."""
        return {"judge": folder_digest(WEIGHTS / "judge")}

    def __call__(self, got: Path, ref: Path, run: Run) -> dict[str, float]:
        """Score the pictures in ``got`` against the truth in ``ref/data.json``."""
        truth = json.loads((ref / "data.json").read_text())["truth"]
        prompts, judge = read_metadata(got), load_judge(run.device)
        subject: list[Tensor] = []
        scene: list[Tensor] = []
        for names, x in iterate(got, run.batch):
            told = judge.classify(resize(x.to(run.device), 64))
            subject.append(
                torch.stack([told[k] == truth[k] for k in ("shape", "color", "second", "texture")]).all(0).cpu()
            )
            asked = torch.tensor([_scene(prompts.get(name, {}).get("text", "")) for name in names])
            scene.append((told["scene"].cpu() == asked)[asked >= 0])
        scores = {"subject_acc": float(torch.cat(subject).float().mean())}
        if len(torch.cat(scene)):
            scores["scene_acc"] = float(torch.cat(scene).float().mean())
        return scores


def _scene(prompt: str) -> int:
    """Index of the scene a prompt asks for; -1 if it names none."""
    return next((i for i, name in enumerate(SCENES) if name in prompt), -1)
