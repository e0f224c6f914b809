"""A cell of the benchmark: its configured parts, built and checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from udpbench.benchmark.arms import DEFAULT
from udpbench.core.component import Component
from udpbench.core.source import source_digests

ROLES = ("surrogate", "victim", "purifier")  # models: the owner's, the thief's, and the one the thief purifies with


@dataclass(frozen=True)
class Part:
    """One configured component: its option's name, the settings it was built from, and the object."""

    name: str
    settings: Mapping[str, Any]
    component: Any
    preset: str = "matched"  # or "released": settings as the authors published them

    @cached_property
    def key(self) -> dict[str, Any]:
        """What of it goes into a cache key: settings, version, the digests of what it reads from disk (``identity``)
        and, of a class from outside the package, of its source; version and digests of components inside it.

        Settings that say where a thing lies and not what it is (``places``) are no part of it: digests are. Nor are
        those that came later (``later``) where they are as if they had not. Both also apply to components inside.
        """
        return self._now()

    def _now(self) -> dict[str, Any]:
        """What ``key`` would be now."""
        inside: dict[str, Any] = {}
        settings = _settings_in_key(self.settings, self.component, inside)
        found = {"settings": settings, "version": self.component.version, "identity": self.component.identity()}
        return found | ({"inside": inside} if inside else {}) | self.source

    def check_unchanged(self, discard: Callable[[], object]) -> None:
        """ValueError if what it reads from disk is no longer what ``key`` says: it was exchanged since; after
        ``discard`` was called, for the files may be put back."""
        if self._now() != self.key:
            discard()
            raise ValueError(f"{self.name}: the files that it reads changed meanwhile; run the same command again")

    @cached_property
    def source(self) -> dict[str, Any]:
        """Digests of the user's own modules that it is made of, if there are any."""
        digests = source_digests(self.settings)
        return {"source": digests} if digests else {}


def setting_at(place: str) -> str:
    """The setting that changes what stands at ``place``, such as ``protect.inner.steps``: what a wrapper is made of is
    set as ``inner``, for its own settings refer to that."""
    return re.sub(r"^(protect|like)\.inner\.", "inner.", place)


def _settings_in_key(settings: Any, held: Any, inside: dict[str, Any], *at: str) -> Any:
    """Of ``settings``, from which ``held`` (a component, or a mapping or list of some) was built, what goes into a key.

    Version and digests of components ``inside`` it are added to these, by their places, of which ``at`` is the first.
    """
    if isinstance(held, list | tuple) and isinstance(settings, list | tuple) and len(held) == len(settings):
        pairs = enumerate(zip(settings, held, strict=True))
        return [_settings_in_key(value, one, inside, *at, str(i)) for i, (value, one) in pairs]
    if not (isinstance(settings, Mapping) and isinstance(held, Component | Mapping)):
        return settings
    if isinstance(held, Mapping):
        return {k: _settings_in_key(v, held.get(k), inside, *at, k) for k, v in settings.items()}
    if at:
        inside[".".join(at)] = {"version": held.version, "identity": held.identity()}
    apart, before = held.places, held.later.items()
    kept = {k: v for k, v in settings.items() if k not in apart and (k, v) not in before}
    return {k: _settings_in_key(v, getattr(held, k, None), inside, *at, k) for k, v in kept.items()}


@dataclass(frozen=True)
class Cell:
    """One cell of the benchmark, everything built and checked."""

    data: Part
    budget: Part
    protect: Part
    noise: Part
    noise_rms: Part
    attack: Part
    task: Part
    surrogate: Part
    victim: Part
    purifier: Part
    seed: int
    family: str = "micro"  # of models whose settings the parts have: micro | sd | ddpm32 | ddpm_cifar
    like: Part | None = None  # the protection whose strength protect=noise_rms matches
    arms: tuple[str, ...] = DEFAULT
    protected_fraction: float = 1.0  # of the training pictures that stay changed; the others are clean in every arm
    owner_prompt: str = "class"  # class | data | empty: what the owner writes as prompt while protecting
    metrics: Mapping[str, Part] = field(default_factory=dict)
    perturbation_metrics: Mapping[str, Part] = field(default_factory=dict)
    primary: tuple[str, ...] = ()  # names of scores
    absent: Mapping[str, str] = field(default_factory=dict)  # metrics that cannot be computed here, and why

    @property
    def methods(self) -> dict[str, tuple[Part, Part, str]]:
        """Protection, attack and task by their groups, each with the model that it would take and the role of that."""
        return {
            "protect": (self.protect, self.surrogate, "surrogate"),
            "attack": (self.attack, self.purifier, "purifier"),
            "task": (self.task, self.victim, "victim"),
        }

    @property
    def names(self) -> dict[str, Any]:
        """The cell in words, as records and tables show it."""
        parts = ("protect", "attack", "task", "surrogate", "victim", "purifier")
        partly = {"protected_fraction": self.protected_fraction} if self.protected_fraction < 1 else {}
        return {
            "data": self.data.name,
            "subject": str(self.data.component.subject),
            "budget": self.budget.component.name,
            **{name: vars(self)[name].name for name in parts},
            "owner_prompt": self.owner_prompt,
            **partly,
            "seed": self.seed,
        }

    @property
    def unranked(self) -> str | None:
        """Why none of its primary scores can be measured, if none can; known once it is checked."""
        measured = {score for metric in self.metrics.values() for score in metric.component.scores}
        if not self.primary or measured & set(self.primary):
            return None
        return "; ".join(dict.fromkeys(self.absent.values()))

    def protected_of(self, n: int) -> int:
        """How many of ``n`` training pictures stay changed."""
        return round(self.protected_fraction * n)
