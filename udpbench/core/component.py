"""What every configured part of a cell has: a version, a name, what it reads, what it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import inf, isfinite
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


def inside(value: object) -> Iterable[tuple[Any, Any]]:
    """(key or index, item) of what a value holds."""
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, list | tuple) else ()


def held_in(value: object) -> Iterable[tuple[Any, Any]]:
    """(attribute, key or index; item) of what a component, or a value as for ``inside``, holds."""
    return inside(vars(value) if isinstance(value, Component) else value)


def texts_in(value: object) -> Iterator[str]:
    """The texts in a value of plain types, at any depth."""
    if isinstance(value, str):
        yield value
    for _, inner in inside(value):
        yield from texts_in(inner)


def check_plain(value: object, where: str, *at: str) -> None:
    """Refuse what JSON cannot say or would say differently when read again; ValueError names its place, ``at``."""
    place = ".".join(at)
    if isinstance(value, Mapping) and (odd := [name for name in value if not isinstance(name, str)]):
        raise ValueError(f"{where}: key {odd[0]!r} of {place} is not text; JSON keys are")
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(f"{where}: {place} is {value}; allowed are finite numbers")
    if not isinstance(value, str | int | float | None | Mapping | list | tuple):
        raise ValueError(f"{where}: {place} is a {type(value).__name__}; allowed are text, numbers, true, false, null")
    for name, inner in inside(value):
        check_plain(inner, where, *at, str(name))


class Component:
    """Base of protections, attacks, tasks, metrics, data sets, budgets and models; every attribute has a default."""

    version: ClassVar[int] = 1  # part of the cache key: raise it whenever the numbers change
    # Settings that say where a thing lies and not what it is. They are no part of the cache key: ``identity`` is. Files
    # of weights whose names hold a part of their checksum are no part of ``identity``: they can only be those.
    places: ClassVar[tuple[str, ...]] = ()
    # Settings that came later, each with the value that means what was before: at it they are no part of the key.
    later: ClassVar[Mapping[str, Any]] = {}
    unbounded: ClassVar[tuple[str, ...]] = ()  # settings that may be negative, or larger than any count or rate is

    nonzero: ClassVar[tuple[str, ...]] = ()  # settings of which 0 means nothing

    called: ClassVar[str] = ""  # its ``label``, with settings by their names: ``jpeg_{quality}``

    @property
    def label(self) -> str:
        """What tables call it, such as ``jpeg_75``; empty: the name of its option."""
        return self.called.format(**vars(self))

    @property
    def known_as(self) -> str:
        """The label, or the name of the class: for those that do not know their option."""
        return self.label or type(self).__name__.lower()

    def identity(self) -> dict[str, Any]:
        """Digests of everything that is read from disk, as plain JSON values: part of the cache key.

        Raises ValueError in one line if something to read is missing.
        """
        return {}

    def check(self) -> None:
        """Raise ValueError in one line, saying what to do, if something is missing on this machine.

        Called before any work; loads nothing.
        """
