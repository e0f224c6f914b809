"""What every configured part of a cell has: a version, a name, what it reads, what it lacks."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Any, ClassVar


def check_choice(what: str, value: object, allowed: Iterable[str]) -> None:
    """ValueError that ``what`` (``method: unknown setting``) is ``value``, unless that is one of ``allowed``."""
    if value not in (choices := list(allowed)):
        raise ValueError(f"{what} {value!r}; allowed are {', '.join(choices)}")


def check_numbers(
    who: str, *, least: float = -inf, above: float = -inf, most: float = inf, below: float = inf, **settings: object
) -> None:
    """ValueError unless every setting (name=value) of ``who`` is a number >= least, > above, <= most and < below."""
    bounds = {">=": least, ">": above, "<=": most, "<": below}
    allowed = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds.items() if abs(bound) < inf)
    for name, value in settings.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (least <= value <= most and above < value < below):  # type: ignore[operator]
            raise ValueError(f"{who}: {name} must be {allowed}, given {value!r}")


class Component:
    """Base of protections, attacks, tasks, metrics, data sets, budgets and models; every attribute has a default."""

    version: ClassVar[int] = 1  # part of the cache key: raise it whenever the numbers change
    # Settings that say where a thing lies and not what it is. They are no part of the cache key: ``identity`` is.
    places: ClassVar[tuple[str, ...]] = ()

    @property
    def label(self) -> str:
        """What tables call it, such as ``jpeg_75``; empty: the name of its option."""
        return ""

    def identity(self) -> dict[str, Any]:
        """Digests of everything that is read from disk, as plain JSON values: part of the cache key.

        Raises ValueError in one line if something to read is missing.
        """
        return {}

    def check(self) -> None:
        """Raise ValueError in one line, saying what to do, if something is missing on this machine.

        Called before any work; loads nothing.
        """
