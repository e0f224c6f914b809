"""Data set of the embedded world: one subject, rendered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from udpbench.core.folders import numbered, write_pictures
from udpbench.core.images import write_masks, write_metadata
from udpbench.interfaces import Run
from udpbench.world import renderer


class ToyWorld:
    """A subject never seen in pretraining: six pictures to train on, further ones to compare with.

    ``train`` is what the owner has, ``reference`` what generated pictures are compared with, ``validation`` what the
    thief may choose by, ``heldout`` what a perfect victim would make (the upper_bound). Scenes are as frequent in all of
    them. ``masks`` holds the object's silhouette in every training picture. The truth is in ``data.json``. Subjects
    0-9 are for development, 100 and up for tests. The pictures do not depend on the run's seed.

    Prompts hold the rare token, the class noun and words for the scene: nothing that says what the subject looks
    like.
    """

    version: ClassVar[int] = 4
    has_masks: ClassVar[bool] = True
    truth: ClassVar[str] = "subject"

    def __init__(
        self,
        subject: int,
        size: int = 64,
        train: int = 6,
        reference: int = 256,
        validation: int = 128,
        heldout: int = 256,
        token: str = "sks",
    ) -> None:
        if size < 16 or train < 1 or min(reference, validation, heldout) < 0:
            raise ValueError(
                "data toyworld: size must be >= 16, train >= 1, the other numbers >= 0, "
                f"given {size}, {train}, {reference}, {validation}, {heldout}"
            )
        renderer.subject(subject)
        self.subject, self.size, self.token = subject, size, token
        self.sizes = {"train": train, "reference": reference, "validation": validation, "heldout": heldout}

    def __call__(self, out: Path, run: Run) -> None:
        """Write ``out`` as a data folder."""
        truth = renderer.subject(self.subject)
        said = {name: renderer.caption(truth.noun, token=self.token, scene=name) for name in renderer.SCENES}
        with run.log.bar("render", sum(self.sizes.values()), "img") as advance:
            for part, n in self.sizes.items():
                scenery = renderer.draw(n, Run(0).rng("toyworld", self.subject, part), truth)
                names = write_pictures(out / part, numbered(renderer.render(scenery, self.size)), advance)
                if part == "train":
                    write_masks(out / "masks", names, renderer.silhouettes(scenery, self.size))
                instance = renderer.caption(truth.noun, token=self.token)
                texts = [said[renderer.SCENES[i]] if part != "train" else instance for i in scenery.scene]
                write_metadata(out / part, {name: {"text": text} for name, text in zip(names, texts, strict=True)})
        facts = {
            "name": f"toyworld subject {self.subject}: {truth.describe()}",
            "instance_prompt": renderer.caption(truth.noun, token=self.token),
            "class_prompt": renderer.caption(truth.noun),
            "prompts": list(said.values()),
            "truth": vars(truth),
            "sets": True,
        }
        (out / "data.json").write_text(json.dumps(facts, indent=1, sort_keys=True))
