"""Perceptual distances between pictures: LPIPS, and one whose network needs no download."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from udpbench.models.efficientnet import EfficientNetLite, load, weights_path
from udpbench.models.weights import weights_file

ToOriginal = Callable[[Tensor], Tensor]  # NCHW [0,1] -> (N,), the distances to given pictures
PERCEPTUAL = ("lpips_vgg", "lpips_alex", "lpips_squeeze", "lite1")
TRUNKS = {"alex": "alexnet-owt-7be5be79.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth", "vgg": "vgg16-397923af.pth"}
TAPS = (0, 1, 2, 4, 6)  # the stages whose end is the last of its resolution: 1/2, 1/4, 1/8, 1/16, 1/32


class Perceptual(nn.Module):
    """A distance of pictures by what a network makes of them."""

    def maps(self, x: Tensor) -> list[Tensor]:
        """What is compared of ``x``, NCHW [0,1]; differentiable."""
        raise NotImplementedError

    def between(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        """Distances (N,) between pictures with these ``maps``."""
        raise NotImplementedError

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances (N,) between ``x`` and ``y``, NCHW float32 in [0,1] of one size; differentiable in both."""
        if x.shape != y.shape:
            given = f"{tuple(x.shape)} and {tuple(y.shape)}"
            raise ValueError(f"perceptual distance: pictures must be of the same size, given {given}")
        return self.between(self.maps(x), self.maps(y))

    def to_original(self, y: Tensor) -> ToOriginal:
        """The distances of pictures to ``y``, whose maps are computed once: for many steps of an optimisation."""
        with torch.no_grad():
            theirs = self.maps(y)
        return lambda x: self.between(self.maps(x), theirs)


class PerceptualLite1(Perceptual):
    """The ``lite1`` distance: LPIPS's construction (Zhang et al. 2018, eq. 1) on EfficientNet-Lite1, unweighted.

    Feature maps of five resolutions are scaled to unit length along the channels; the squared difference is summed
    over channels, averaged over space, then over the maps. In [0,4]; 0 for equal pictures. It is *not* LPIPS and its
    numbers do not compare.

    ``network``: another form of EfficientNet-Lite1; None: the one that runs fast.
    """

    def __init__(self, network: EfficientNetLite | None = None) -> None:
        super().__init__()
        self.network = load("lite1") if network is None else network

    def maps(self, x: Tensor) -> list[Tensor]:
        found = self.network.maps(x)
        chosen = [found[i].float() for i in TAPS]
        # The square root has no finite slope at 0, hence the small number inside it and not outside.
        return [m / (m.square().sum(1, keepdim=True) + 1e-10).sqrt() for m in chosen]

    def between(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in zip(ours, theirs, strict=True)]).mean(0)


class LpipsDistance(Perceptual):
    """LPIPS 0.1 (arXiv:1801.03924): the lpips package's heads on torchvision's trunk ``net``, frozen."""

    def __init__(self, net: str, trunk: dict[str, Tensor]) -> None:
        super().__init__()
        import lpips

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torchvision")  # lpips calls its old names
            self.network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        # lpips cuts the trunk into slices but keeps torchvision's numbers: slice2.3.weight was features.3.weight.
        kept = {name: trunk[f"features.{name.partition('.')[2]}"] for name in self.network.net.state_dict()}
        self.network.net.load_state_dict(kept)
        self.normalize = lpips.normalize_tensor
        self.requires_grad_(False).eval()

    def maps(self, x: Tensor) -> list[Tensor]:
        scaled = self.network.scaling_layer(2 * x - 1)  # from [0,1] to the [-1,1] it was trained on
        return [self.normalize(found) for found in self.network.net(scaled)]

    def between(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        found = zip(self.network.lins, ours, theirs, strict=True)
        return torch.stack([head((a - b).square()).mean((1, 2, 3)) for head, a, b in found]).sum(0)


def trunk_file(net: str, weights: str | Path | None) -> Path:
    """The file with the weights of LPIPS's trunk ``net``; ValueError if it is missing."""
    return weights_file(f"lpips_{net}", TRUNKS[net], "https://download.pytorch.org/models", weights)


def check_distance(name: str, weights: str | None) -> None:
    """ValueError saying what to do if the weights of the perceptual distance ``name`` are missing; nothing is
    loaded."""
    if name == "lite1":
        weights_path("lite1")
    else:
        trunk_file(name.removeprefix("lpips_"), weights)


def load_distance(name: str, weights: str | Path | None, device: torch.device) -> Perceptual:
    """The perceptual distance ``name``: NCHW [0,1] pictures -> (N,), differentiable; frozen, on ``device``. Loaded
    once a process.

    ``weights``: file of LPIPS's trunk; None: the torch hub's checkpoints. Raises ValueError if the network's weights
    are missing: nothing is downloaded, and nothing else is used in its place.
    """
    net = name.removeprefix("lpips_")
    file = weights_path(name) if name == "lite1" else trunk_file(net, weights)
    return _loaded(net, file, file.stat().st_mtime_ns, device)


@lru_cache(maxsize=2)
def _loaded(net: str, file: Path, written: int, device: torch.device) -> Perceptual:
    if net == "lite1":
        return PerceptualLite1().to(device).eval().requires_grad_(False)
    return LpipsDistance(net, torch.load(file, map_location="cpu", weights_only=True)).to(device)
