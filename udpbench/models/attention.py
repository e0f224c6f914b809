"""What the attention layers of a UNet look at, read while it runs, differentiably."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from udpbench.models.headers import read_json

KINDS = {"self": "attn1", "cross": "attn2"}  # diffusers' names in a transformer block


def refuse_compiled(who: str, model: Any) -> None:
    """ValueError if ``model`` (a ``Diffusion``, which is not loaded) is to be compiled: a compiled network does not run
    the hooks by which ``who`` reads its layers."""
    if model.compile != "none":
        todo = f"give model {model.name} compile=none"
        raise ValueError(f"{who}: reads layers of the UNet, which a compiled one hides; {todo}")


def check_attention(who: str, model: Any) -> None:
    """ValueError if the UNet of ``model`` (a latent ``Diffusion``, which is not loaded) has no transformer blocks for
    ``who`` to read; of a model that is not on this machine nothing is known."""
    refuse_compiled(who, model)
    if not (folder := model.folder):
        return
    unet = read_json(folder / "unet" / "config.json")
    blocks = [unet.get(f"{part}_types", "CrossAttn") for part in ("down_block", "up_block")]  # as diffusers has it
    if "CrossAttn" not in str([*blocks, unet.get("mid_block_type", "CrossAttn")]):
        raise ValueError(f"{who}: reads what the UNet attends to, and that of model {model.name} has no attention")


@dataclass
class Attention:
    """What one layer computed for N inputs: ``query`` (N, places, width), ``key`` and ``value`` (N, tokens, width), all
    heads side by side, and its ``output`` (N, places, channels). ``kind``: self (tokens are places) | cross (tokens of
    the prompt)."""

    layer: str
    kind: str
    heads: int
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor

    def probabilities(self) -> Tensor:
        """softmax(Q K^T / sqrt(width of a head)), (N, heads, places, tokens) float32; each row sums to 1."""
        query, key = (x.float().unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.query, self.key))
        return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)


@contextmanager
def read_attention(unet: nn.Module, kind: str = "cross") -> Iterator[list[Attention]]:
    """Within the block, every forward pass of ``unet`` adds an ``Attention`` for each of its layers of ``kind`` (self |
    cross), in the order in which they run. What was read stays differentiable; ``clear()`` the list between passes.

    Raises ValueError if the UNet has no such layer.
    """
    read: list[Attention] = []
    layers = {name: layer for name, layer in unet.named_modules() if name.endswith(f".{KINDS[kind]}")}
    if not layers:
        raise ValueError(f"attention: the UNet has no {kind}-attention to read")

    with ExitStack() as hooks:
        for name, layer in layers.items():
            seen: dict[str, Tensor] = {}  # of the pass that is running
            for part in ("to_q", "to_k", "to_v"):
                hooks.callback(getattr(layer, part).register_forward_hook(_keep(seen, part)).remove)

            def done(module: Any, _: Any, output: Tensor, name: str = name, seen: dict[str, Tensor] = seen) -> None:
                query, key, value = (seen.pop(part) for part in ("to_q", "to_k", "to_v"))
                read.append(Attention(name, kind, module.heads, query, key, value, output))

            hooks.callback(layer.register_forward_hook(done).remove)
        yield read


def _keep(seen: dict[str, Tensor], part: str) -> Any:
    def hook(module: nn.Module, given: Any, output: Tensor) -> None:
        seen[part] = output

    return hook


def mean_map(read: Sequence[Attention], places: int) -> Tensor:
    """Mean of the probabilities of N inputs over heads and layers, (N, places, tokens); each row sums to 1.

    Of the layers, those of one resolution: the one whose number of places is nearest to ``places``.
    """
    nearest = min((a.query.shape[1] for a in read), key=lambda n: abs(n - places))
    chosen = [a.probabilities().mean(1) for a in read if a.query.shape[1] == nearest]
    return torch.stack(chosen).mean(0)
