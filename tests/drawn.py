"""What tests that draw inputs share: how many they draw, values that nobody can mean, one clear line."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from udpbench.commands.common import WRONG_WORDS, lines_of

FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]


def draws(usual: int) -> Callable[[Any], Any]:
    """A test of so many examples, or of $UDPBENCH_DRAWS if that is more; it has the longer time of those, too."""
    n = max(usual, int(os.environ.get("UDPBENCH_DRAWS", "0")))
    drawn, patient = settings(max_examples=n, deadline=None, suppress_health_check=FIXTURES), pytest.mark.timeout(3600)
    return lambda test: patient(drawn(test))


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
