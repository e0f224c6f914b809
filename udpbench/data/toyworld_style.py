"""Data set of the embedded world: one style, shown on a dozen different objects."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from udpbench.core.folders import Facts
from udpbench.interfaces import Run
from udpbench.world import renderer, styles
from udpbench.world.rendered import OWNED, Rendered

MOST = 128  # different (noun, colour, texture) that a draw surely holds


@dataclass(kw_only=True)
class ToyWorldStyle(Rendered):
    """The pretraining world in a style that no caption can name: pictures by an artist whose style a thief wants.

    ``train`` shows different objects of the pretraining world, none of them held out, each captioned with all that
    words can say: object, colour, texture, scene, and the rare token, which stands for the style. ``extra_clean`` is
    the same with other objects and poses. ``reference``, ``validation`` and ``heldout`` show further objects,
    captioned as ``prompts`` are: every noun in every scene, with the token, nothing about the style. Styles 0 and 1
    are for development, the others for tests (udpbench.world.styles).

    The class prompt, which is what an owner writes who knows only the kind of the pictures, is ``a photo``: the
    objects differ, so any noun would be wrong in most pictures, and the embedded model takes these two words as it
    takes no words at all. ``subject`` is the style's number: the unit of replication. In ``data.json``, ``truth`` holds
    the style's number and, by prompt, the shape and the scene that it asks for.

    Args:
        style: its number.
        token: the rare word that names the style.
    """

    style: int
    size: int = 64
    train: int = 12
    reference: int = 200
    validation: int = 128
    heldout: int = 200
    token: str = "sks"

    version = 2
    has_masks = True
    truth = "style"
    name = "toyworld_style"
    most = MOST

    def __post_init__(self) -> None:
        super().__post_init__()
        styles.check_style(self.style)
        self.subject = self.style

    def scenery(self, part: str, n: int) -> renderer.Scenery:
        rng = Run(0).rng("toyworld_style", self.style, part)
        return different_objects(n, rng) if part == "train" else renderer.draw(n, rng)

    def finished(self, x: Tensor) -> Tensor:
        return styles.stylise(x, self.style)

    def facts(self) -> Facts:
        shown = product(enumerate(renderer.SCENES), enumerate(renderer.SHAPES))
        content = {self.caption(noun, scene=place): {"shape": i, "scene": j} for (j, place), (i, noun) in shown}
        name, truth = tuple(styles.STYLES)[self.style], {"style": self.style, "content": content}
        return Facts(f"toyworld style {self.style}: {name}", self.caption(""), "a photo", list(content), truth)

    def caption(self, noun: str, **further: str) -> str:
        """``renderer.caption`` with the token."""
        return renderer.caption(noun, token=self.token, **further)

    def captions(self, part: str, s: renderer.Scenery) -> list[str]:
        """One caption a picture: the token, the noun and the scene, and of the owner's pictures colour and texture,
        too."""
        said = [renderer.words(s, i) for i in range(len(s))]
        if part not in OWNED:
            said = [{"noun": words["noun"], "scene": words["scene"]} for words in said]
        return [self.caption(**words) for words in said]


def different_objects(n: int, rng: torch.Generator) -> renderer.Scenery:
    """``n`` (at most MOST) pictures of the pretraining world, no two of the same noun, colour and texture."""
    s = renderer.draw(4 * MOST, rng)
    first: dict[tuple[int, ...], int] = {}
    for i, named in enumerate(zip(s.shape.tolist(), s.color.tolist(), s.texture.tolist(), strict=True)):
        first.setdefault(named, i)
    return s.take(torch.tensor(list(first.values())[:n]))
