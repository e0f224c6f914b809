"""Purifications that change one picture at a time, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from udpbench.interfaces import Attack, Run


class EachPicture(Attack):
    """An attack that is given by what it makes of one picture."""

    def pure(self, x: Tensor, name: str, run: Run) -> Tensor:
        """What it makes of ``x`` (CHW [0,1]), the picture ``name``."""
        raise NotImplementedError

    def purify(
        self, images: Sequence[Tensor], names: Sequence[str], prompts: Sequence[str], model: Any, run: Run
    ) -> list[Tensor]:
        """``pure`` of each picture; prompts and model are not used."""
        made = []
        with run.log.bar(self.label, len(images), "img") as advance:
            for x, name in zip(images, names, strict=True):
                made.append(self.pure(x, name, run))
                advance(1)
        return made
