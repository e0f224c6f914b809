"""Attacks one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from udpbench.attack.members import Members, own_run, purified
from udpbench.interfaces import Images, Run, Texts


@dataclass(kw_only=True)
class Chain(Members):
    """Each member changes what the one before made: the pictures, saved in 8 bits in between, the model, the pictures
    of a training step, the arguments of the generation. The order is part of the attack."""

    name = "chain"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sampling()

    @property
    def label(self) -> str:
        return self.title or self.joined("+")

    @property
    def hooks(self) -> frozenset[str]:
        """All that the members change."""
        return frozenset[str]().union(*(member.hooks for member in self.ordered))

    def purify(self, images: Images, names: Texts, prompts: Texts, model: Any, run: Run) -> list[Tensor]:
        made = list(images)
        for k, member in enumerate(self.ordered):
            if "purify" in member.hooks:
                made = list(purified(member, made, names, prompts, model, own_run(run, k)))
        return made

    def adapt(self, victim: Any, images: Sequence[Tensor], run: Run) -> Any:
        for k, member in enumerate(self.ordered):
            victim = member.adapt(victim, images, own_run(run, k))
        return victim

    def augment(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        for member in self.ordered:
            batch = member.augment(batch, rng)
        return batch

    def sampling(self) -> dict[str, Any]:
        """The arguments of all members; ValueError if two give the same one."""
        given = [member.sampling() for member in self.ordered]
        names = [name for one in given for name in one]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"attack chain: two members give {', '.join(twice)} to the generation; leave one out")
        return {name: value for one in given for name, value in one.items()}
