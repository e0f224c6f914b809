"""Errors in a configuration: collected, and told in the words of the part that found them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from math import inf
from typing import Any, TypeVar

from hydra.errors import InstantiationException
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

T = TypeVar("T")


class ConfigError(ValueError):
    """What is wrong with a configuration: one line for each error, all of them at once."""


class Stopped(KeyboardInterrupt):
    """The process was asked to end, and its work can be resumed."""


class Busy(Exception):
    """Other processes are computing everything that could be done now."""


class Errors(list[str]):
    """Collects errors instead of stopping at the first."""

    def attempt(self, do: Callable[..., T], *arguments: Any) -> T | None:
        """``do(*arguments)``, or None and one more line in the list."""
        try:
            return do(*arguments)
        except InstantiationException as error:
            self.append(_root(error))
        except ConfigError as error:
            self.extend(str(error).splitlines())
        except InterpolationKeyError as error:
            self.append(unresolved(error))
        except (ValueError, OSError, OmegaConfBaseException) as error:
            self.append(first_line(error))
        except SystemExit as error:
            self.append(f"a method tried to end the process (SystemExit {error.code}) while it was looked at")
        return None

    def raise_any(self) -> None:
        """Raise ConfigError with each line once, if there are any."""
        if self:
            raise ConfigError("\n".join(dict.fromkeys(self)))


def first_line(error: BaseException) -> str:
    """One line for an error: one of the system names its file, one without a message gives the name of its class."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def class_and_line(error: BaseException) -> str:
    """The class of an error and the first line of its message, with where it happened if a note says that: for one that
    nobody foresaw."""
    line = f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no message')}"
    notes: list[str] = vars(error).get("__notes__", [])
    return next((note for note in notes if note.startswith(f"{line} (in ")), line)


def unresolved(error: InterpolationKeyError) -> str:
    """The line for a setting that refers to one that there is not."""
    word = f"{error.full_key}: {str(error).splitlines()[0]}"
    return f"{word}; ${{NAME}} is the setting of that name, and no text can hold ${{"


def instead(given: str, allowed: Sequence[str], rest: str = "") -> str:
    """The end of a line on a name that there is not: the nearest ones, then all of them, or ``rest`` in their place."""
    as_written = {name.lower(): name for name in reversed(allowed)}
    near = [as_written[name] for name in get_close_matches(given.lower(), list(as_written), 3)]
    meant = f" did you mean {' or '.join(filter(None, (', '.join(near[:-1]), near[-1])))}?" if near else ""
    if not rest:
        rest = f"allowed are {', '.join(allowed)}" if allowed else "there are none here"
    return f";{meant} {rest}"


def check_whole(name: str, value: object, least: int, most: float = inf) -> None:
    """ConfigError if a setting is no whole number from ``least`` to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        allowed = f">= {least}" if most == inf else f"from {least} to {most}"
        raise ConfigError(f"{name}: must be a whole number {allowed}, given {value!r}")


def _root(error: BaseException) -> str:
    """The line of the innermost cause: the component's own words, not Hydra's (but for those that say too little)."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return first_line(cause) if isinstance(cause, ValueError | OSError) else " ".join(str(error).split())
