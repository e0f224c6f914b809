"""The judge of the embedded world: does a picture show the subject, and the scene of its prompt?"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import ClassVar

from udpbench.core.digest import folder_digest
from udpbench.core.folders import read_data_facts
from udpbench.interfaces import Metric, Run
from udpbench.models.micro.judge import WEIGHTS, check_judge, judged
from udpbench.world.renderer import SCENES


class TruthMetric(Metric):
    """What scores by an embedded judge have in common."""

    against = "truth"
    judge: ClassVar[str]  # its name

    def check(self) -> None:
        check_judge(self.judge)

    def identity(self) -> dict[str, str]:
        return {"judge": folder_digest(WEIGHTS / self.judge)}


class JudgeMetric(TruthMetric):
    """``subject_acc``: fraction of pictures whose shape, both colours and texture are all the subject's; ``scene_acc``:
    fraction whose scene is the prompt's.

    A picture the judge is unsure of counts as wrong in both. The judge is a classifier trained on renderings only.
    """

    judge = "judge"
    truth = "subject"
    scores = {"subject_acc": "down", "scene_acc": "down"}

    def __call__(self, got: Path, ref: Path, run: Run) -> dict[str, float]:
        """Score the pictures in ``got`` against the truth in ``ref/data.json``."""
        truth, right = read_data_facts(ref)["truth"], ("shape", "color", "second", "texture")
        found = list(judged(self.judge, got, run))
        subject = [all(answer[k] == truth[k] for k in right) for _, answer in found]
        scene = [answer["scene"] == asked for text, answer in found if (asked := _scene(text)) >= 0]
        scores = {"subject_acc": fmean(subject)}
        return scores | ({"scene_acc": fmean(scene)} if scene else {})


def _scene(prompt: str) -> int:
    """Index of the scene a prompt asks for; -1 if it names none."""
    return next((i for i, name in enumerate(SCENES) if name in prompt), -1)
