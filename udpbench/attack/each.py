"""Purifications that change one picture at a time, without a model, and those that take pictures of a size together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from udpbench.interfaces import Attack, Images, Run, Texts
from udpbench.optim.pgd import chunks


class EachPicture(Attack):
    """An attack that is given by what it makes of one picture."""

    def pure(self, x: Tensor, name: str, run: Run) -> Tensor:
        """What it makes of ``x`` (CHW [0,1]), the picture ``name``."""
        raise NotImplementedError

    def purify(self, images: Images, names: Texts, prompts: Texts, model: Any, run: Run) -> list[Tensor]:
        """``pure`` of each picture; prompts and model are not used."""
        made = []
        with run.log.bar(self.known_as, len(images), "img") as advance:
            for x, name in zip(images, names, strict=True):
                made.append(self.pure(x, name, run))
                advance(1)
        return made


def in_batches(
    images: Sequence[Tensor], run: Run, title: str, pure: Callable[[list[int]], Iterable[Tensor]]
) -> list[Tensor]:
    """The pictures, each as ``pure`` makes it, which is given the indices of up to ``run.batch`` of one size."""
    out = list(images)
    with run.log.bar(title, len(images), "img") as advance:
        for index in chunks(images, run.batch):
            for i, x in zip(index, pure(index), strict=True):
                out[i] = x
            advance(len(index))
    return out
