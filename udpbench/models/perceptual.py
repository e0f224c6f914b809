"""Perceptual distances between pictures: LPIPS, and one whose network needs no download."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from udpbench.models.efficientnet import load, weights_path
from udpbench.models.weights import weights_file

Distance = Callable[[Tensor, Tensor], Tensor]  # two NCHW [0,1] of one size -> (N,)
PERCEPTUAL = ("lpips_vgg", "lpips_alex", "lpips_squeeze", "lite1")
TRUNKS = {"alex": "alexnet-owt-7be5be79.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth", "vgg": "vgg16-397923af.pth"}
TAPS = (0, 1, 2, 4, 6)  # the stages whose end is the last of its resolution: 1/2, 1/4, 1/8, 1/16, 1/32


class PerceptualLite1(nn.Module):
    """The ``lite1`` distance: LPIPS's construction (Zhang et al. 2018, eq. 1) on EfficientNet-Lite1, unweighted.

    Feature maps of five resolutions are scaled to unit length along the channels; the squared difference is summed
    over channels, averaged over space, then over the maps. In [0,4]; 0 for equal pictures. It is *not* LPIPS and its
    numbers do not compare.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = load("lite1")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances (N,) between ``x`` and ``y``, NCHW in [0,1] of one size; differentiable in both."""
        if x.shape != y.shape:
            given = f"{tuple(x.shape)} and {tuple(y.shape)}"
            raise ValueError(f"lite1 distance: pictures must be of the same size, given {given}")
        # One after the other, so that a picture that needs no gradient keeps no activations.
        ours, theirs = self._unit_maps(x), self._unit_maps(y)
        return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in zip(ours, theirs, strict=True)]).mean(0)

    def _unit_maps(self, x: Tensor) -> list[Tensor]:
        maps = self.network.maps(x)
        chosen = [maps[i].float() for i in TAPS]
        # The square root has no finite slope at 0, hence the small number inside it and not outside.
        return [m / (m.square().sum(1, keepdim=True) + 1e-10).sqrt() for m in chosen]


class LpipsDistance(nn.Module):
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
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances (N,) between ``x`` and ``y``, NCHW float32 in [0,1] of one size; differentiable in both."""
        return self.network(x, y, normalize=True).flatten()  # normalize: from [0,1] to the [-1,1] it was trained on


def load_lpips(net: str, weights: str | Path | None, device: torch.device) -> LpipsDistance:
    """LPIPS on ``device``.

    ``weights``: file of the trunk; None: the torch hub's checkpoints. Nothing is downloaded. Raises ValueError if the
    trunk is missing.
    """
    trunk = torch.load(trunk_file(net, weights), map_location="cpu", weights_only=True)
    return LpipsDistance(net, trunk).to(device)


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


def load_distance(name: str, weights: str | None, device: torch.device) -> Distance:
    """The perceptual distance ``name``: NCHW [0,1] pictures -> (N,), differentiable; frozen, on ``device``.

    Raises ValueError if the network's weights are missing: nothing else is used in its place.
    """
    if name == "lite1":
        return PerceptualLite1().to(device).eval().requires_grad_(False)
    return load_lpips(name.removeprefix("lpips_"), weights, device)
