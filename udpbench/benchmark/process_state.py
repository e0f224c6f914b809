"""What of the process a stage's work must leave as it was, for the stages after it; and whether it drew from generators
that belong to no picture."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch


class _Setting(NamedTuple):
    """A setting of the process: what it is called, how it is read and how it is set."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


def _cwd() -> Path | None:
    with suppress(OSError):  # it is gone
        return Path.cwd()
    return None


def _set_cwd(folder: Path | None) -> None:
    with suppress(OSError):
        os.chdir(folder or ".")


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device == torch.device("cpu") else device)


def _set_benchmark(on: bool) -> None:
    torch.backends.cudnn.benchmark = on


SETTINGS = (
    _Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Setting("torch's default device", torch.get_default_device, _set_default_device),
    _Setting("torch's gradients (set_grad_enabled)", torch.is_grad_enabled, torch.set_grad_enabled),
    _Setting(
        "torch's deterministic algorithms (on, as a warning)",
        _deterministic,
        lambda both: torch.use_deterministic_algorithms(both[0], warn_only=both[1]),
    ),
    _Setting("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    _Setting("torch.backends.cudnn.benchmark", lambda: torch.backends.cudnn.benchmark, _set_benchmark),
    _Setting("the working directory", _cwd, _set_cwd),
)


@contextmanager
def process_left_as_it_was(who: str, discard: Callable[[], object]) -> Iterator[None]:
    """ValueError if the block, the work of ``who``, left any of ``SETTINGS`` changed, after ``discard`` was called;
    whether or not the block failed itself, they are as before once it is left."""
    before = [setting.read() for setting in SETTINGS]
    try:
        yield
        for setting, value in zip(SETTINGS, before, strict=True):
            if (now := setting.read()) != value:
                discard()
                raise ValueError(f"{who}: left {setting.name} at {now}; restore it ({value})")
    finally:
        for setting, value in zip(SETTINGS, before, strict=True):
            if setting.read() != value:
                setting.write(value)


class Generators:
    """The states of the generators of the process: torch's own, NumPy's and Python's."""

    def __init__(self) -> None:
        self.states = _states()

    def moved(self) -> str:
        """The name of one that was drawn from or seeded since; none: ""."""
        now = _states()
        return next((name for name, state in self.states.items() if now[name] != state), "")


def _states() -> dict[str, Any]:
    """Name -> state; of the GPUs' once they are in use."""
    of_numpy: dict[str, Any] = np.random.get_state(legacy=False)["state"]  # type: ignore  # noqa: NPY002
    states = {
        "torch's global generator": torch.get_rng_state().tolist(),
        "numpy's global generator": [np.asarray(part).tolist() for part in of_numpy.values()],
        "Python's global generator": random.getstate(),
    }
    if torch.cuda.is_initialized():
        states["torch's global generator of the GPU"] = [state.tolist() for state in torch.cuda.get_rng_state_all()]
    return states
