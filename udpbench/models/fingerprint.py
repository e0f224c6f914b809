"""Whether work left a model as it was: in a process all that uses a model has the same object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

HOOKS = {
    "a forward hook": ("_forward_hooks", "_forward_pre_hooks"),
    "a backward hook": ("_backward_hooks", "_backward_pre_hooks"),
}  # torch's names, in every module
ABSENT = object()


class Fingerprint:
    """What other work depends on of a model (a ``Diffusion``, loaded), as it is now: the bits of parameters, buffers
    and noise schedule, and what its networks' modules do beside what their class says.

    The weights are read once and not copied: as long as adding them up takes.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.weights, self.states = _sums(model), dict(_states(model))

    def changed(self) -> str:
        """What of the model is not as it was when this was made, in words that name one place of each kind; nothing:
        ""."""
        weights, states = _sums(self.model), dict(_states(self.model))
        places = [name for name in {**self.weights, **weights} if self.weights.get(name) != weights.get(name)]
        kinds: dict[str, list[str]] = {"": places} if places else {}
        for kind, place in {**self.states, **states}:
            if self.states.get((kind, place), ABSENT) != states.get((kind, place), ABSENT):
                kinds.setdefault(kind, []).append(place)
        return "; ".join(_in_words(kind, places) for kind, places in kinds.items())

    def check(self, who: str, argument: str, discard: Callable[[], object]) -> None:
        """ValueError if ``who`` changed the model, which it was given as ``argument``, after ``discard`` was called.

        The model is loaded anew when it is next used.
        """
        if changed := self.changed():
            discard()
            for loaded in ("pipe", "alpha_bar", "_alpha_bar_there"):
                vars(self.model).pop(loaded, None)
            todo = f"put it back, or work on a copy: {argument}.trainable(...)"
            raise ValueError(f"{who}: changed its model ({changed}); {todo}")


def _in_words(kind: str, places: list[str]) -> str:
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return f"{kind} of {places[0]}{more}" if kind else f"{places[0]}{more}"


def _networks(model: Any) -> Mapping[str, nn.Module]:
    return {name: part for name, part in model.pipe.components.items() if isinstance(part, nn.Module)}


@torch.no_grad()
def _sums(model: Any) -> dict[str, bytes]:
    """Name -> digest of every parameter, buffer and of the noise schedule; the device is waited for once."""
    found: dict[str, Tensor] = {"alpha_bar": _sums_of_bits(model.alpha_bar)}
    for part, network in _networks(model).items():
        for named in (network.named_parameters(part), network.named_buffers(part)):
            found |= {name: _sums_of_bits(weight) for name, weight in named}
    together = torch.cat([sums.to(model.device) for sums in found.values()]).cpu()
    digests = together.split([len(sums) for sums in found.values()])
    return {name: digest.numpy().tobytes() for name, digest in zip(found, digests, strict=True)}


def _sums_of_bits(weight: Tensor) -> Tensor:
    """The bits as whole numbers, added up in every row, modulo 2^64: any one change changes a sum. Sums of floats would
    take ten times as long on a CPU, or round small changes away."""
    values = weight.contiguous().view(-1)
    if values.storage_offset():  # words of eight bytes must begin where one does in memory
        values = values.clone()
    words = values.view(torch.int64 if values.nbytes % 8 == 0 else torch.uint8)
    if weight.ndim < 2 or not words.numel():
        return words.long()
    rows = weight.shape[0]
    return words.view(rows if words.numel() % rows == 0 else 1, -1).sum(1)


def _states(model: Any) -> Iterator[tuple[tuple[str, str], Any]]:
    """((kind, place), value) of all that is no weight; values are equal if nothing was exchanged."""
    for name, part in model.pipe.components.items():
        yield ("another object", name), part
    for part, network in _networks(model).items():
        for name, weight in network.named_parameters(part):
            yield ("requires_grad", name), weight.requires_grad
        for name, module in network.named_modules(prefix=part):
            own = vars(module)
            for kind, dicts in HOOKS.items():
                yield (kind, name), [hook for each in dicts for hook in own[each].values()]
            yield ("another class", name), type(module)
            yield ("another forward", name), own.get("forward")
            if "processor" in own:  # of diffusers' attention
                yield ("another attention processor", name), own["processor"]
            if _matters(module):
                yield ("the training mode", name), module.training


def _matters(module: nn.Module) -> bool:
    """Whether it computes otherwise in training mode."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    dropout = vars(module).get("dropout")  # of transformers' attention
    return isinstance(module, nn.modules.batchnorm._NormBase) or (isinstance(dropout, float) and dropout > 0)
