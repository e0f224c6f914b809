"""Protections that use further surrogates beside the cell's, and works of several models in lockstep."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from udpbench.interfaces import Protection, Run
from udpbench.models.diffusion import Diffusion

Agree = Callable[[Tensor], Tensor]


@dataclass(kw_only=True)
class Several(Protection):
    """A protection with further models.

    Args:
        further: the surrogates beside the cell's, by names of one's own.
    """

    further: Mapping[str, Diffusion]

    places: ClassVar[tuple[str, ...]] = ("further",)  # ``identity`` says what they are

    def check(self) -> None:
        super().check()
        for name, model in self.further.items():
            if lacking := sorted(self.needs - {"class_images"} - model.capabilities):
                raise ValueError(f"{name} of further: model {model.name} lacks {', '.join(lacking)}")
            self.check_model(model)

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"further": {name: model.identity() for name, model in self.further.items()}}

    def models(self, surrogate: Any, run: Run) -> list[Any]:
        """The cell's surrogate and the further ones, on ``run.device``."""
        return [surrogate, *(model.on(run) for model in self.further.values())]


class _Failed(Exception):
    """Another of the works did."""


def lockstep(works: Sequence[Callable[[Agree], Any]]) -> list[Any]:
    """What the works return. Each is called with an ``agree`` of its own, and whenever one calls that with a tensor it
    waits until all have: the answer is the mean of what they gave. All must call it equally often.

    One work runs at a time, in their order (on a thread of its own), so that the outcome is that of a single thread.
    """
    n, gate, given = len(works), threading.Condition(), [torch.empty(0)] * len(works)
    turn, mean, failed = 0, torch.empty(0), False

    def wait(k: int) -> None:
        with gate:
            gate.wait_for(lambda: turn == k or failed)
            if failed:
                raise _Failed

    def pass_on(k: int) -> None:
        nonlocal turn
        with gate:
            turn = (k + 1) % n
            gate.notify_all()

    def give_up() -> None:
        nonlocal failed
        with gate:
            failed = True
            gate.notify_all()

    def do(k: int) -> Any:
        def agree(mine: Tensor) -> Tensor:
            nonlocal mean
            given[k] = mine
            if k == n - 1:
                mean = torch.stack(given).mean(0)
            pass_on(k)
            wait(k)
            return mean

        try:
            wait(k)
            made = works[k](agree)
        except BaseException:
            give_up()
            raise
        pass_on(k)
        return made

    with ThreadPoolExecutor(n) as pool:
        running = [pool.submit(do, k) for k in range(n)]
        try:
            errors = [error for future in running if (error := future.exception())]
        except BaseException:  # interrupted: the others are not waited for
            give_up()
            raise
        for error in errors:
            if not isinstance(error, _Failed):
                raise error
        return [future.result() for future in running]
