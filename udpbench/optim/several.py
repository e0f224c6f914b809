"""Protections that use further surrogates beside the cell's, and works of several models in lockstep."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

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

    def check(self) -> None:
        super().check()
        for name, model in self.further.items():
            if lacking := sorted(self.needs - {"class_images"} - model.capabilities):
                raise ValueError(f"{name} of further: model {model.name} lacks {', '.join(lacking)}")
            self.check_model(model)

    def models(self, surrogate: Any, run: Run) -> list[Any]:
        """The cell's surrogate and the further ones, on ``run.device``."""
        return [surrogate, *(model.on(run) for model in self.further.values())]


class _Kernels:
    """Switches of the process that say which kernels of attention are allowed, as they were when this was made.

    ``sdpa_kernel`` changes them, and works that take turns enter it and leave it crosswise: each would find what
    another has set, and the last to leave would keep what the first had set.
    """

    def __init__(self) -> None:
        of = torch.backends.cuda
        self.switches = (
            (of.enable_flash_sdp, of.flash_sdp_enabled()),
            (of.enable_mem_efficient_sdp, of.mem_efficient_sdp_enabled()),
            (of.enable_math_sdp, of.math_sdp_enabled()),
            (of.enable_cudnn_sdp, of.cudnn_sdp_enabled()),
        )

    def restore(self) -> None:
        for enable, before in self.switches:
            enable(before)


class _Failed(Exception):
    """Another of the works did."""


class _Turns:
    """Works that run one at a time, in their order, and the tensors that they agree on."""

    def __init__(self, n: int) -> None:
        self.n, self.gate, self.turn, self.failed = n, threading.Condition(), 0, False
        self.given, self.mean = [torch.empty(0)] * n, torch.empty(0)
        self.kernels = _Kernels()

    def do(self, k: int, work: Callable[[Agree], Any]) -> Any:
        """The whole of the ``k``-th work, whenever it is its turn."""
        try:
            self._wait(k)
            self.kernels.restore()
            made = work(partial(self._agree, k))
        except BaseException:
            self.give_up()
            raise
        self._pass_on(k)
        return made

    def give_up(self) -> None:
        """Ends all works that wait for their turn."""
        with self.gate:
            self.failed = True
            self.gate.notify_all()

    def _agree(self, k: int, mine: Tensor) -> Tensor:
        self.given[k] = mine
        if k == self.n - 1:
            self.mean = torch.stack(self.given).mean(0)
        kernels = _Kernels()
        self._pass_on(k)
        self._wait(k)
        kernels.restore()
        return self.mean

    def _wait(self, k: int) -> None:
        with self.gate:
            self.gate.wait_for(lambda: self.turn == k or self.failed)
            if self.failed:
                raise _Failed

    def _pass_on(self, k: int) -> None:
        with self.gate:
            self.turn = (k + 1) % self.n
            self.gate.notify_all()


def lockstep(works: Sequence[Callable[[Agree], Any]]) -> list[Any]:
    """What the works return. Each is called with an ``agree`` of its own, and whenever one calls that with a tensor it
    waits until all have: the answer is the mean of what they gave. All must call it equally often.

    One work runs at a time, in their order (on a thread of its own), so that the outcome is that of a single thread.
    Each has its own choice of attention's kernels; afterwards those of before are allowed.
    """
    turns = _Turns(len(works))
    try:
        with ThreadPoolExecutor(len(works)) as pool:
            running = [pool.submit(turns.do, k, work) for k, work in enumerate(works)]
            try:
                errors = [error for future in running if (error := future.exception())]
            except BaseException:  # interrupted: the others are not waited for
                turns.give_up()
                raise
    finally:
        turns.kernels.restore()
    for error in errors:
        if not isinstance(error, _Failed):
            raise error
    return [future.result() for future in running]
