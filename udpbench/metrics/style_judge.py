"""The judge of styles: is a picture in the style, and does it show what its prompt asks for?"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from udpbench.core.folders import read_data_facts
from udpbench.interfaces import Run
from udpbench.metrics.judge import TruthMetric
from udpbench.models.micro.judge import judged


class StyleJudge(TruthMetric):
    """``style_acc``: fraction of pictures that are in the style; ``content_acc``: fraction that show the shape and the
    scene that their prompts ask for.

    They are two scores because they differ: a victim that has memorised its pictures has the style and not the
    content, a pretrained model the reverse. A picture the judge is unsure of counts as wrong in both; one whose prompt
    is not among those of the truth has no content to be right about. The judge is a classifier trained on renderings
    only.
    """

    judge = "style_judge"
    truth = "style"
    scores = {"style_acc": "down", "content_acc": "down"}

    def __call__(self, got: Path, ref: Path, run: Run) -> dict[str, float]:
        """Score the pictures in ``got`` against the truth in ``ref/data.json``."""
        truth = read_data_facts(ref)["truth"]
        found = list(judged(self.judge, got, run))
        style = [answer["style"] == truth["style"] for _, answer in found]
        pairs = [(answer, asked) for text, answer in found if (asked := truth["content"].get(text))]
        content = [all(answer[k] == asked[k] for k in asked) for answer, asked in pairs]
        scores = {"style_acc": fmean(style)}
        return scores | ({"content_acc": fmean(content)} if content else {})
