"""What the stages hand one another: the run (seed, device, log), the owner's pictures, and the interfaces of the
methods."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor


class Log:
    """Where a stage says what it is doing.

    This one says nothing; ``udpbench.tracking.console`` has the one that prints, ``udpbench.tracking.track`` those that plot and send.
    """

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "it") -> Iterator[Callable[[int], None]]:
        """A progress bar over ``total`` units; yields ``advance(n)``."""
        yield lambda n: None

    def scalar(self, name: str, value: Tensor | float, step: int) -> None:
        """One number of a curve (a loss).

        Tensors are kept unread until they are shown, so the device is never waited for.
        """

    def say(self, text: str) -> None:
        """One line for a person."""


class Titled(Log):
    """Another log, with a title before every name: whose bar and whose curve it is."""

    def __init__(self, log: Log, title: str) -> None:
        self.log, self.title = log, title

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "it") -> Iterator[Callable[[int], None]]:
        with self.log.bar(f"{self.title}: {title}", total, unit) as advance:
            yield advance

    def scalar(self, name: str, value: Tensor | float, step: int) -> None:
        self.log.scalar(f"{self.title}/{name}", value, step)

    def say(self, text: str) -> None:
        self.log.say(f"{self.title}: {text}")


@dataclass(frozen=True)
class Run:
    """What every stage gets beside its inputs.

    Random draws come from ``rng`` and belong to the item they are for, never to the batch: the generator of a key is
    the same whatever else is computed, on whatever device (it lives on the CPU).
    """

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    log: Log = field(default_factory=Log)
    batch: int = 32  # pictures through a network at once; outside the keys: it may change speed and memory only
    grad_batch: int = 32  # the same for gradients with respect to pictures: they keep every layer in memory
    count: dict[str, int] = field(default_factory=dict)  # work done, e.g. UNet evaluations: written to the record
    scratch: Path | None = None  # a folder that an interrupted attempt at the same work left its state in
    # N losses of NCHW pictures that a protection keeps low beside its own aim (see protect/consistent.py)
    penalty: Callable[[Tensor], Tensor] | None = None

    def rng(self, *key: object) -> torch.Generator:
        """The generator that belongs to ``key`` under this run's seed."""
        text = "/".join([str(self.seed), *map(str, key)])
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1)

    def tally(self, what: str, n: int) -> None:
        """Count ``n`` more units of work."""
        self.count[what] = self.count.get(what, 0) + n


@dataclass
class Owner:
    """What the protector holds."""

    images: list[Tensor]  # CHW float32 [0,1]; sizes may differ
    names: list[str]  # one per picture; random draws are keyed by them
    prompts: list[str]  # one per picture: what the owner thinks the thief will write
    class_prompt: str = ""
    like: list[Tensor] | None = None  # a protection's saved pictures, for controls that match its strength
