"""Data set of the embedded world: one style, shown on a dozen different objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch

from udpbench.core.folders import numbered, write_pictures
from udpbench.core.images import write_masks, write_metadata
from udpbench.interfaces import Run
from udpbench.world import renderer, styles

MOST = 128  # different (noun, colour, texture) that a draw surely holds


class ToyWorldStyle:
    """The pretraining world in a style that no caption can name: pictures by an artist whose hand a thief wants.

    ``train`` shows different objects of the pretraining world, none of them held out, each captioned with all that
    words can say: object, colour, texture, scene, and the rare token, which stands for the style. ``reference``,
    ``validation`` and ``heldout`` show further objects, captioned as ``prompts`` are: every noun in every scene, with
    the token, nothing about the style. Styles 0 and 1 are for development, the others for tests (udpbench.world.styles).

    The class prompt, which is what an owner writes who knows only what kind of pictures these are, is ``a photo``: the
    objects differ, so any noun would be wrong in most pictures, and the embedded model takes these two words as it
    takes no words at all. ``subject`` is the style's number: the unit of replication. In ``data.json``, ``truth`` holds
    the style's number and, by prompt, the shape and the scene that it asks for. The pictures do not depend on the run's
    seed.
    """

    version: ClassVar[int] = 2
    has_masks: ClassVar[bool] = True
    truth: ClassVar[str] = "style"

    def __init__(
        self,
        style: int,
        size: int = 64,
        train: int = 12,
        reference: int = 200,
        validation: int = 128,
        heldout: int = 200,
        token: str = "sks",
    ) -> None:
        if size < 16 or not 1 <= train <= MOST or min(reference, validation, heldout) < 0:
            raise ValueError(
                f"data toyworld_style: size must be >= 16, train 1 to {MOST}, the other numbers >= 0, "
                f"given {size}, {train}, {reference}, {validation}, {heldout}"
            )
        styles.check_style(style)
        self.subject, self.size, self.token = style, size, token
        self.sizes = {"train": train, "reference": reference, "validation": validation, "heldout": heldout}

    def __call__(self, out: Path, run: Run) -> None:
        """Write ``out`` as a data folder."""
        with run.log.bar("render", sum(self.sizes.values()), "img") as advance:
            for part, n in self.sizes.items():
                if not n:
                    continue
                rng = Run(0).rng("toyworld_style", self.subject, part)
                scenery = different_objects(n, rng) if part == "train" else renderer.draw(n, rng)
                made = styles.stylise(renderer.render(scenery, self.size), self.subject)
                names = write_pictures(out / part, numbered(made), advance)
                if part == "train":
                    write_masks(out / "masks", names, renderer.silhouettes(scenery, self.size))
                texts = self.captions(scenery, whole=part == "train")
                write_metadata(out / part, {name: {"text": text} for name, text in zip(names, texts, strict=True)})
        (out / "data.json").write_text(json.dumps(self.facts(), indent=1, sort_keys=True))

    def captions(self, s: renderer.Scenery, whole: bool) -> list[str]:
        """One caption a picture: the token, the noun and the scene, and if ``whole`` colour and texture, too."""
        return [
            renderer.caption(
                renderer.SHAPES[shape],
                renderer.COLORS[color] if whole else "",
                renderer.TEXTURES[texture] if whole else "",
                renderer.SCENES[scene],
                self.token,
            )
            for shape, color, texture, scene in zip(*(getattr(s, k).tolist() for k in NAMEABLE), strict=True)
        ]

    def facts(self) -> dict[str, Any]:
        """What ``data.json`` says."""
        content = {
            renderer.caption(noun, scene=place, token=self.token): {"shape": i, "scene": j}
            for j, place in enumerate(renderer.SCENES)
            for i, noun in enumerate(renderer.SHAPES)
        }
        return {
            "name": f"toyworld style {self.subject}: {tuple(styles.STYLES)[self.subject]}",
            "instance_prompt": renderer.caption("", token=self.token),
            "class_prompt": "a photo",
            "prompts": list(content),
            "truth": {"style": self.subject, "content": content},
            "sets": True,
        }


NAMEABLE = ("shape", "color", "texture", "scene")


def different_objects(n: int, rng: torch.Generator) -> renderer.Scenery:
    """``n`` (at most MOST) pictures of the pretraining world, no two of the same noun, colour and texture."""
    s = renderer.draw(4 * MOST, rng)
    first: dict[tuple[int, ...], int] = {}
    for i, named in enumerate(zip(*(getattr(s, k).tolist() for k in NAMEABLE[:3]), strict=True)):
        first.setdefault(named, i)
    return s.take(torch.tensor(list(first.values())[:n]))
