"""Feature networks: folder of pictures -> (N, d). Extracted once per folder and process, shared by every metric.

The extractors hold numbers only (equal numbers = equal features) and load their network when called. What one of them
computes is part of the numbers of every metric built on it: a change here raises the ``version`` of those metrics.
"""

from __future__ import annotations

import pkgutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from udpbench.core import images, pixels
from udpbench.core.component import check_numbers
from udpbench.core.digest import files_digest
from udpbench.core.pixels import smooth
from udpbench.interfaces import Features, Run
from udpbench.models.efficientnet import load, weights_path
from udpbench.models.weights import weights_file

Network = Callable[[Tensor], Tensor]  # NCHW float32 on the device, as ``prepared`` -> (N, d)
Item = TypeVar("Item")
EMBEDDED = 32  # side in pixels of what EfficientNet-Lite0 sees of pictures of the embedded world
KEPT = 16  # folders whose features stay in memory; 1,000 pictures are 8 MB or less (VGG16: 16 MB)
# Numbers of the reference Inception go by their public names; "x1000" because the libraries print a KID unscaled.
PUBLIC = {
    "fd_inception": "fid", "kd_inception": "kid_x1000",
    "fd_inception_clean": "fid_clean", "kd_inception_clean": "kid_clean_x1000",
}  # fmt: skip
_memo: OrderedDict[tuple[str, int, Extractor, str, int | None], Tensor] = OrderedDict()


@dataclass(frozen=True)
class Extractor(Features):
    """A feature network and the treatment of the pictures before it."""

    name: ClassVar[str]

    @property
    def suffix(self) -> str:
        """The end of the names of the scores."""
        return self.name

    def score_name(self, kind: str) -> str:
        """The name of a score ``kind`` (``fd``) of these features: ``kind_network``, or the public one (``fid``)."""
        name = f"{kind}_{self.suffix}"
        return PUBLIC.get(name, name)

    def extract(self, folder: Path, run: Run, side: int | None = None) -> Tensor:
        """As the interface says; not to be changed in place.

        Kept for the last few folders: a finished folder does not change (one that was written again is recognised by
        its time).
        """
        folder = Path(folder).resolve()
        key = (str(folder), folder.stat().st_mtime_ns, self, str(run.device), side)
        if key not in _memo:
            _memo[key] = self._extract(folder, run, side)
            while len(_memo) > KEPT:
                _memo.popitem(last=False)
        _memo.move_to_end(key)
        return _memo[key]

    def _extract(self, folder: Path, run: Run, side: int | None) -> Tensor:
        place = {path.name: i for i, path in enumerate(images.list_images(folder))}
        found, network = torch.empty(0), _loaded(self, run.device)
        with torch.inference_mode(), run.log.bar(f"features {self.suffix}", len(place), "image") as advance:
            for names, x in ahead(self._batches(folder, run, side)):
                rows = network(x).float().cpu()
                if not len(found):  # one block, filled in turn: a list of rows would be all of it once more
                    with torch.inference_mode(False):  # whoever gets it may want gradients
                        found = torch.empty(len(place), rows.shape[1])
                found[[place[name] for name in names]] = rows
                advance(len(names))
        return found

    def _batches(self, folder: Path, run: Run, side: int | None) -> Iterator[tuple[list[str], Tensor]]:
        """Names and what ``prepared`` makes of their pictures, by what size that has: the sizes of the pictures may be
        many."""
        held: list[tuple[list[str], Tensor]] = []
        for names, x, most in self._pieces(folder, run, side):
            if held and (x.shape[1:] != held[0][1].shape[1:] or sum(len(n) for n, _ in held) + len(names) > most):
                yield _joined(held)
                held = []
            held.append((names, x))
        if held:
            yield _joined(held)

    def _pieces(self, folder: Path, run: Run, side: int | None) -> Iterator[tuple[list[str], Tensor, int]]:
        """Names, what ``prepared`` makes of their pictures, and how many of that size the network takes at once, which
        is the most in a piece: small pictures may be large as it sees them."""
        for names, pictures in images.iterate(folder, run.batch, side):
            x = self.prepared(pictures.to(run.device))
            most = images.at_once(run.batch, *x.shape[-2:])
            for first in range(0, len(names), most):
                yield names[first : first + most], x[first : first + most], most

    def prepared(self, x: Tensor) -> Tensor:
        """What ``network`` is given for pictures ``x`` of one size, NCHW [0,1], as stored: the treatment before it."""
        return x

    def check(self) -> None:
        """ValueError saying what to do if the weights are missing; nothing is loaded."""
        raise NotImplementedError

    def network(self, device: torch.device) -> Network:
        """Load the network, which takes what ``prepared`` gives; ValueError as ``check``."""
        raise NotImplementedError

    def identity(self) -> dict[str, str]:
        """What a key must hold of the weights beside ``name``; nothing where the file's name is its checksum."""
        return {}


def _joined(pieces: Sequence[tuple[list[str], Tensor]]) -> tuple[list[str], Tensor]:
    names, parts = zip(*pieces, strict=True)
    return list(chain.from_iterable(names)), torch.cat(parts)


@dataclass(frozen=True)
class EfficientNetLite0(Extractor):
    """EfficientNet-Lite0 (ImageNet), 1280 pooled features; its weights come from a package.

    ``blur_sigma``: Gaussian smoothing of the stored picture, in its pixels, before the resize (0: none): VAEs differ
    from renderings in the finest detail first, and that is not what a score of content should see. ``size``: side of
    the square the network sees, in pixels; other than the 32 of the embedded world, it is part of the scores' names.
    """

    name = "efflite0"
    size: int = 224
    blur_sigma: float = 0.0

    @property
    def suffix(self) -> str:
        return self.name if self.size == EMBEDDED else f"{self.name}_{self.size}"

    def __post_init__(self) -> None:
        check_numbers("efflite0", least=16, size=self.size)
        check_numbers("efflite0", least=0, most=16, blur_sigma=self.blur_sigma)

    def check(self) -> None:
        weights_path("lite0")

    def network(self, device: torch.device) -> Network:
        return load("lite0").to(device)

    def prepared(self, x: Tensor) -> Tensor:
        return pixels.resize(smooth(x, self.blur_sigma), self.size)


@dataclass(frozen=True)
class PlacedExtractor(Extractor):
    """A network whose weights somebody has put in place.

    ``weights``: the file; None: the torch hub's checkpoints.
    """

    file: ClassVar[str]
    source: ClassVar[str]
    weights: str | None = None

    def path(self) -> Path:
        """The file with the weights."""
        return weights_file(self.name, self.file, self.source, self.weights)

    def check(self) -> None:
        self.path()


@dataclass(frozen=True)
class FidelityExtractor(PlacedExtractor):
    """A network of torch-fidelity, which resizes 8-bit pictures itself (bilinear, as TensorFlow 1 does)."""

    kind: ClassVar[str]  # its class
    layer: ClassVar[str]  # whose output the features are

    def network(self, device: torch.device) -> Network:
        path = self.path()
        # torch-fidelity unpickles whatever the file holds, so it is first read in the mode that lets only tensors pass.
        torch.load(path, map_location="cpu", weights_only=True)
        build = pkgutil.resolve_name(f"torch_fidelity.{self.kind}")
        network = build(self.layer, [self.layer], feature_extractor_weights_path=str(path)).to(device)
        return lambda x: network(images.to_uint8(x))[0]


@dataclass(frozen=True)
class Inception(FidelityExtractor):
    """The Inception network of the FID (TensorFlow's, 2048 pooled features), resized to 299 pixels."""

    name = "inception"
    file = "weights-inception-2015-12-05-6726825d.pth"
    source = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"
    kind = "feature_extractor_inceptionv3:FeatureExtractorInceptionV3"
    layer = "2048"


@dataclass(frozen=True)
class Vgg16(FidelityExtractor):
    """The network of improved precision and recall: second fully connected layer of a VGG16, after its ReLU (4096).

    torchvision's weights; resized to 224 pixels.
    """

    name = "vgg16"
    file = "vgg16-397923af.pth"
    source = "https://download.pytorch.org/models"
    kind = "feature_extractor_vgg16:FeatureExtractorVGG16"
    layer = "fc2_relu"


@dataclass(frozen=True)
class InceptionClean(PlacedExtractor):
    """Inception as TorchScript behind clean-fid's resize (mode "clean", Pillow's bicubic in float): ``fid_clean``.

    Only clean-fid's resize and network are used: its own distance needs an argument that SciPy 1.18 has no longer.
    """

    name = "inception_clean"
    file = "inception-2015-12-05.pt"
    source = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics"

    def path(self) -> Path:
        path = super().path()
        if path.name != self.file:  # clean-fid is told the folder and knows the name
            raise ValueError(f"inception_clean: clean-fid wants the weights in a file named {self.file}, given {path}")
        return path

    def identity(self) -> dict[str, str]:
        """The digest of the file, whose name says nothing of what it holds."""
        try:
            return {"weights": files_digest([self.path()])}
        except ValueError:  # not in place: then the metric is absent
            return {}

    def network(self, device: torch.device) -> Network:
        folder = self.path().parent
        from cleanfid.inception_torchscript import InceptionV3W

        return InceptionV3W(str(folder), download=False).to(device).eval()

    def prepared(self, x: Tensor) -> Tensor:
        """Resized, NCHW float32 in [0,255]."""
        from cleanfid.resize import build_resizer

        resizer, pictures = build_resizer("clean"), images.to_uint8(x).permute(0, 2, 3, 1).cpu().numpy()
        resized = torch.stack([torch.from_numpy(resizer(picture)) for picture in pictures])
        return resized.permute(0, 3, 1, 2).contiguous().to(x.device)


@lru_cache(maxsize=4)
def _loaded(extractor: Extractor, device: torch.device) -> Network:
    """The network of an extractor, loaded once a process."""
    return extractor.network(device)


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """``items``, the next of which is made in another thread while this one is worked on."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
