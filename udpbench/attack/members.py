"""What attacks have in common that are made of other attacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from udpbench.core.images import as_saved
from udpbench.interfaces import Attack, Images, Run, Texts


@dataclass(kw_only=True)
class Members(Attack):
    """Attacks under names of their own, in the alphabetic order of these.

    Args:
        members: name -> attack; in a configuration ``attack@attack.members.a=jpeg attack.members.a.quality=50``.
        title: what tables call it; empty: the labels of the members.
    """

    members: Mapping[str, Attack]
    title: str = ""

    name: ClassVar[str]  # in messages

    def __post_init__(self) -> None:
        who = f"attack {self.name}"
        if not self.members:
            raise ValueError(f"{who}: give at least one member, e.g. +attack@attack.members.a=jpeg")
        for name, member in self.members.items():
            if not isinstance(member, Attack):
                raise ValueError(f"{who}: member {name} must be an attack, given {member!r}")
        self.needs = frozenset[str]().union(*(member.needs for member in self.ordered))
        self.couples_images = any(member.couples_images for member in self.ordered)

    @property
    def ordered(self) -> list[Attack]:
        """The members in their order."""
        return [self.members[name] for name in sorted(self.members)]

    def joined(self, by: str) -> str:
        """The labels of the members."""
        return by.join(member.known_as for member in self.ordered)

    def check(self) -> None:
        for member in self.ordered:
            member.check()

    def check_model(self, model: Any) -> None:
        for member in self.ordered:
            member.check_model(model)

    def check_victim(self, victim: Any) -> None:
        for member in self.ordered:
            member.check_victim(victim)

    def model_prompts(self) -> list[str]:
        return [prompt for member in self.ordered for prompt in member.model_prompts()]

    def on_clean(self) -> Attack | None:
        clean = {name: member.on_clean() for name, member in self.members.items()}
        known = {name: member for name, member in clean.items() if member}
        return replace(self, members=known) if len(known) == len(clean) else None


def check_purifies(what: str, name: str, attack: Attack) -> None:
    """ValueError if ``attack``, called ``name``, changes anything but pictures, or nothing; ``what``: who it is of."""
    if attack.hooks != {"purify"}:
        does = ", ".join(sorted(attack.hooks)) or "nothing"
        raise ValueError(f"{what} must change pictures only; {name} changes {does}")


def own_run(run: Run, k: int) -> Run:
    """The run of the ``k``-th member: the first one's random numbers are those it would have alone, and no other
    member's."""
    scratch = None if run.scratch is None else run.scratch / f"member_{k}"
    if scratch is not None:
        scratch.mkdir(exist_ok=True)
    return replace(run, scratch=scratch, seed=run.rng("member", k).initial_seed() if k else run.seed)


def purified(attack: Attack, images: Images, names: Texts, prompts: Texts, model: Any, run: Run) -> Iterator[Tensor]:
    """What ``attack`` makes of pictures, as it would be saved."""
    return map(as_saved, attack.purify(images, names, prompts, model if attack.needs else None, run))
