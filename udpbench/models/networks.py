"""Copies of networks, and weights drawn from a generator of one's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn


def sharing_copy(module: Any) -> Any:
    """A copy of a network whose layers can be changed or replaced; the weights, of which a large one has gigabytes, are
    the same tensors. It must stay on its device and keep their type: ``to`` would change the original's, too."""
    return copy.deepcopy(module, {id(weight): weight for weight in (*module.parameters(), *module.buffers())})


def trainable_copy(module: nn.Module) -> Any:
    """A float32 copy in training mode."""
    return copy.deepcopy(module).float().requires_grad_(True).train()


def dtype_of(network: nn.Module) -> torch.dtype:
    """The type of a network's weights. diffusers' own property looks through all modules, which takes as long as a
    layer."""
    return next(network.parameters()).dtype


def own_generators() -> AbstractContextManager[None]:
    """Within the block, torch's own generators may be seeded and drawn from; afterwards they are as before: those of
    GPUs, too, if CUDA is in use (reading them would begin to use it, which a driver may be too old for)."""
    return torch.random.fork_rng(devices=range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0))


@contextmanager
def initialised_by(rng: torch.Generator) -> Iterator[None]:
    """Weights that libraries draw within the block from torch's own generator are those of ``rng``; that generator is
    left as it was."""
    with own_generators():
        torch.manual_seed(int(torch.randint(2**62, (), generator=rng)))
        yield
