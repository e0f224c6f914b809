"""Data set of the embedded world: one subject, rendered."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from udpbench.core.folders import Facts
from udpbench.interfaces import Run
from udpbench.world import renderer
from udpbench.world.rendered import Rendered


@dataclass(kw_only=True)
class ToyWorld(Rendered):
    """A subject that was never seen in pretraining: six pictures to train on, further ones to compare with.

    ``train`` is what the owner has, ``reference`` what generated pictures are compared with, ``validation`` what the
    thief may choose by, ``heldout`` what a perfect victim would make (the upper bound). Scenes are as frequent in all
    of them. ``masks`` holds the object's silhouette in every training picture. The truth is in ``data.json``. Subjects
    0-9 are for development, 100 and up for tests.

    Prompts hold the rare token, the class noun and words for the scene, and nothing that says how the subject looks.

    Args:
        subject: its number.
        token: the rare word that names the subject.
    """

    subject: int = field()  # a field of its own: without a default
    size: int = 64
    train: int = 6
    reference: int = 256
    validation: int = 128
    heldout: int = 256
    token: str = "sks"

    version = 4
    has_masks = True
    truth = "subject"
    option = "toyworld"

    def __post_init__(self) -> None:
        super().__post_init__()
        renderer.subject(self.subject)

    def write(self, out: Path, run: Run) -> None:
        truth = renderer.subject(self.subject)
        instance = renderer.caption(truth.noun, token=self.token)
        said = {name: renderer.caption(truth.noun, token=self.token, scene=name) for name in renderer.SCENES}

        def texts(part: str, s: renderer.Scenery) -> list[str]:
            owned = part in ("train", "extra_clean")
            return [instance if owned else said[renderer.SCENES[i]] for i in s.scene]

        def draw(part: str, n: int) -> renderer.Scenery:
            return renderer.draw(n, Run(0).rng("toyworld", self.subject, part), truth)

        self.render(out, run, draw, texts)
        name, class_prompt = f"toyworld subject {self.subject}: {truth.describe()}", renderer.caption(truth.noun)
        Facts(name, instance, class_prompt, list(said.values()), truth=vars(truth)).write(out)
