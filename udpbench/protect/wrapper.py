"""Protections that change what another one ascends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from udpbench.interfaces import Dataset, Owner, Protection


@dataclass(kw_only=True)
class Wrapper(Protection):
    """A protection that hands another one's ascent a term, another loss or another gradient.

    Args:
        inner: the protection.
    """

    inner: Protection

    what: ClassVar[str]  # that the inner protection must heed

    def __post_init__(self) -> None:
        if not self.inner.wrappable:
            why = f"{type(self.inner).__name__} does not heed {self.what}"
            allowed = "whose class says wrappable = True, e.g. udp, eudp, advdm, photoguard, aspl"
            raise ValueError(f"{self.name}: {why}; allowed are protections {allowed}")
        self.needs = self.inner.needs
        self.keeps_budget = self.inner.keeps_budget
        self.class_images = self.inner.class_images
        self.couples_images = self.inner.couples_images

    @property
    def name(self) -> str:
        """Of the wrapper."""
        return type(self).__name__.lower()

    @property
    def label(self) -> str:
        """Name with what is inside."""
        return f"{self.name}_{self.inner.known_as}"

    @property
    def starts_from_weights(self) -> bool:
        return self.inner.starts_from_weights

    @property
    def wants_extra_clean(self) -> bool:
        return self.inner.wants_extra_clean

    def model_prompts(self, prompts: Sequence[str]) -> list[str]:
        return self.inner.model_prompts(prompts)

    def check(self) -> None:
        self.inner.check()

    def check_data(self, data: Dataset) -> None:
        self.inner.check_data(data)

    def check_model(self, model: Any) -> None:
        self.inner.check_model(model)

    def check_texts(self, tokenizer: Any, owner: Owner) -> None:
        self.inner.check_texts(tokenizer, owner)

    def refuse_unless(self, heeded: bool) -> None:
        """ValueError if the inner protection has not heeded what it says it does."""
        if not heeded:
            raise ValueError(f"{self.name}: {type(self.inner).__name__} says that it heeds {self.what} and does not")
