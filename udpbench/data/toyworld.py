"""Data set of the embedded world: one subject, rendered."""

from __future__ import annotations

from dataclasses import dataclass, field

from udpbench.core.folders import Facts
from udpbench.interfaces import Run
from udpbench.world import renderer
from udpbench.world.rendered import OWNED, Rendered


@dataclass(kw_only=True)
class ToyWorld(Rendered):
    """A subject that was never seen in pretraining: six pictures to train on, further ones to compare with.

    ``train`` is what the owner has, ``reference`` what generated pictures are compared with, ``validation`` what the
    thief may choose by, ``heldout`` what a perfect victim would make (the upper bound). Scenes are as frequent in all
    of them. ``masks`` holds the object's silhouette in every training picture. The truth is in ``data.json``. Subjects
    0-99 are for development, 100 and up for tests.

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
    name = "toyworld"

    def __post_init__(self) -> None:
        super().__post_init__()
        renderer.subject(self.subject)

    def scenery(self, part: str, n: int) -> renderer.Scenery:
        return renderer.draw(n, Run(0).rng("toyworld", self.subject, part), renderer.subject(self.subject))

    def captions(self, part: str, s: renderer.Scenery) -> list[str]:
        facts = self.facts()
        return [facts.instance_prompt if part in OWNED else facts.prompts[i] for i in s.scene]

    def facts(self) -> Facts:
        truth = renderer.subject(self.subject)
        name, noun = f"toyworld subject {self.subject}: {truth.describe()}", truth.noun
        said = [renderer.caption(noun, token=self.token, scene=scene) for scene in renderer.SCENES]
        instance = renderer.caption(noun, token=self.token)
        return Facts(name, instance, renderer.caption(noun), said, truth=vars(truth))
