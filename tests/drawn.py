"""What tests that draw inputs share: how many they draw, damage, values that nobody can mean, one clear line."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, seed, settings

from udpbench.commands.telling import WRONG_WORDS, lines_of

T = TypeVar("T")
FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
DRAWS = int(os.environ.get("UDPBENCH_DRAWS", "0"))  # how many, if that is more than usual
SEED = os.environ.get("UDPBENCH_SEED")  # which; None: others in every run, but for what takes long


def draws(usual: int) -> Callable[[Any], Any]:
    """A test of so many examples, or of $UDPBENCH_DRAWS if that is more; it has the longer time of those, too."""
    n = max(usual, DRAWS)
    drawn, patient = settings(max_examples=n, deadline=None, suppress_health_check=FIXTURES), pytest.mark.timeout(3600)
    same = seed(int(SEED)) if SEED else lambda test: test
    return lambda test: patient(same(drawn(test)))


def sampled(population: list[T], usual: int, one_of: int = 1) -> list[tuple[T, float]]:
    """So many of them, or one of ``one_of`` of $UDPBENCH_DRAWS if that is more, each with a number in [0,1); none comes
    a second time before all have come once. They are the same in every run of one $UDPBENCH_SEED."""
    rng, n = random.Random(int(SEED or 0)), max(usual, DRAWS // one_of)
    rounds = [rng.sample(population, len(population)) for _ in range(-(-n // len(population)))]
    return [(case, rng.random()) for case in list(chain.from_iterable(rounds))[:n]]


# How -> the damaged bytes of a file, at a place in [0,1) of it; None: it is gone.
DAMAGE: dict[str, Callable[[bytes, float], bytes | None]] = {
    "flip": lambda whole, at: flipped(whole, int(at * len(whole))),
    "truncate": lambda whole, at: whole[: int(at * len(whole))],
    "empty": lambda whole, at: b"",
    "delete": lambda whole, at: None,
}


def flipped(whole: bytes, at: int) -> bytes:
    """With another byte ``at`` a place."""
    return whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]


def spoil(file: Path, made: bytes | None) -> None:
    """Write what became of a file."""
    if made is None:
        file.unlink()
    else:
        file.write_bytes(made)


def one_line(error: BaseException) -> str:
    """The first line of an error in the input; fails if it is of another kind, or no line for a person."""
    assert isinstance(error, WRONG_WORDS), repr(error)
    lines = lines_of(error)  # type: ignore[arg-type]
    assert lines
    for line in lines:
        assert line.strip(), lines
        assert "Traceback" not in line
        assert len(line) < 1000, line
    return lines[0]
