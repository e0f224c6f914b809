"""Progress in the terminal: what is shown, how often, and how fast it says the work is."""

from __future__ import annotations

import io

import pytest

from udpbench.core.text import clock_text
from udpbench.tracking.console import Console


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> Console:
    """A console that writes to no terminal."""
    return Console(io.StringIO(), every=5, clock=clock)


def lines(log: Console) -> list[str]:
    assert isinstance(log._stream, io.StringIO)
    return log._stream.getvalue().splitlines()


def test_without_a_terminal_a_plain_line_every_few_seconds(log: Console, clock: Clock) -> None:
    with log.bar("train clean", 200, "step") as advance:
        advance(0)
        for _ in range(200):
            clock.now += 0.25
            advance(1)
    shown = lines(log)
    assert shown[0] == "train clean  20/200 step  4/s  eta 0:45"
    assert shown[-1] == "train clean  200/200 step  4/s  in 0:50"
    assert len(shown) == 10


def test_a_resumed_training_is_not_counted_as_speed(log: Console, clock: Clock) -> None:
    with log.bar("train", 200, "step") as advance:
        advance(100)
        clock.now = 10.0
        advance(20)
    assert lines(log)[0] == "train  120/200 step  2/s  eta 0:40"


def test_slow_units_are_shown_as_seconds_per_unit(log: Console, clock: Clock) -> None:
    with log.bar("protect", 4, "image") as advance:
        advance(0)
        clock.now = 8.0
        advance(1)
    assert lines(log)[0] == "protect  1/4 image  8 s/image  eta 0:24"


def test_short_inner_bars_leave_no_line_and_broken_ones_are_closed(log: Console) -> None:
    def work() -> None:
        with log.bar("outer", 2) as outer, log.bar("inner", 3) as inner:
            inner(3)
            outer(1)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        work()
    assert lines(log) == ["outer  1/2 it"]
    assert log._bars == []


def test_in_a_terminal_there_are_bars_and_lines_above_them(clock: Clock) -> None:
    log = Console(Terminal(), clock=clock)
    with log.bar("outer", 2) as outer, log.bar("inner [x]", 3) as inner:
        assert log._progress is not None
        assert [task.total for task in log._progress.tasks] == [2, 3]
        inner(3)
        outer(1)
        assert [task.completed for task in log._progress.tasks] == [1, 3]
        assert log._progress.tasks[1].description.startswith("inner [x]  3/3 it")
        log.say("a line [with brackets]")
    assert log._progress is None
    assert "a line [with brackets]" in log._stream.getvalue()  # type: ignore[union-attr]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (20.4, "0:20"), (59.6, "1:00"), (3723, "1:02:03")])
def test_clock_text(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


def test_lines_cannot_come_faster_than_time() -> None:
    with pytest.raises(ValueError, match="every must be >= 0"):
        Console(every=-1)
