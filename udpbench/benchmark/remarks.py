"""What somebody should know of a checked cell that is no error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from udpbench.benchmark.cell import Cell, setting_at
from udpbench.core.precision import NOTABLE, bf16_cost


def remarks(cell: Cell, device: torch.device) -> Iterator[str]:
    """What is said of a cell before it starts: metrics that it will lack, and why, and what ``of_run`` says."""
    for name, reason in cell.absent.items():
        yield f"absent: {name}: {reason}"
    yield from of_run(cell, device)


def of_run(cell: Cell, device: torch.device) -> Iterator[str]:
    """Those of ``remarks`` that a run says, too: that nothing will rank it, that pictures are not of the victim's size,
    and what is slow on ``device``."""
    if cell.unranked:
        yield f"no primary score can be measured: {cell.unranked}"
    yield from _other_size(cell)
    yield from _no_window(cell)
    yield from slow_here(cell, device)


def _no_window(cell: Cell) -> Iterator[str]:
    """A line if nothing says whether the clean victim learned, for want of held-out pictures."""
    data, task = cell.data.component, cell.task.component
    compared = task.trains and data.compares_sets and bool(data.sizes.get("reference"))
    if compared and "upper_bound" in cell.arms and not data.sizes.get("heldout"):
        lacks = "no held-out pictures (data.heldout), so no arm upper_bound"
        yield f"data {cell.data.name}: {lacks}: nothing says whether the clean victim learned"


def _other_size(cell: Cell) -> Iterator[str]:
    """A line if pictures are resized between the owner and the victim."""
    side, known = cell.data.component.shortest_side(), cell.victim.component.known_size
    if side is None or known is None or side == known:
        return
    what = "training" if cell.task.component.trains else "editing"
    if side > known:
        how = f"they are protected and attacked at that size and reduced to the victim's {known} px for {what}"
        yield f"data {cell.data.name}: pictures have {side} px or more; {how}; data.size={known} keeps them one size"
    else:
        how = f"such are enlarged to the victim's {known} px for {what}"
        todo = f"give larger ones (data.size={known}, if that is less), or a victim of that size"
        yield f"data {cell.data.name}: the smallest picture has a side of {side} px; {how}; {todo}"


def slow_here(cell: Cell, device: torch.device, only: str | None = None) -> Iterator[str]:
    """A line for settings of a cell, or of one of its methods (``only``: protect | attack), that ask for bfloat16 of a
    CPU that is made for float32."""
    if device.type != "cpu":
        return
    asking: list[str] = []
    for place, (part, model, _) in cell.methods.items():
        if only in (None, place):
            asking += _in_bf16(part.settings, place)
            asking += _in_bf16(model.settings, f"model {model.name}") if part.component.needs else ()
    if asking and (cost := bf16_cost()) > NOTABLE:
        slow = f"bf16 is slow on this CPU (a small convolution takes {cost:.0f} times as long as in fp32)"
        places = ", ".join(dict.fromkeys(map(setting_at, asking)))
        yield f"{slow}; fp32 is faster and makes stages of its own: {places}"


def _in_bf16(settings: Any, *place: str) -> Iterator[str]:
    """Where in ``settings`` a dtype is bf16."""
    for key, value in settings.items() if isinstance(settings, Mapping) else ():
        if key == "dtype" and value == "bf16":
            yield ".".join((*place, key))
        yield from _in_bf16(value, *place, key)
