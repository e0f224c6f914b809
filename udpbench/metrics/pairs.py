"""What a change does to each picture: the changed folder against the original one, paired by file name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from udpbench.core import images
from udpbench.core.budget import measure
from udpbench.interfaces import Run
from udpbench.models.efficientnet import weights_path
from udpbench.models.perceptual import TRUNKS, PerceptualLite1, _trunk_file, load_lpips

Measure = Callable[[Tensor, Tensor], dict[str, Tensor]]  # changed, original: NCHW [0,1] -> score -> (N,)


class PairMetric:
    """One number per score and picture, averaged over pictures.

    What the owner wants: a change that nobody sees.
    """

    version: ClassVar[int] = 1
    against: ClassVar[str] = "input"
    minimum: ClassVar[int] = 1
    scores: dict[str, str]  # score name -> what the owner wants

    def check(self) -> None:
        """ValueError saying what to do if weights are missing; nothing is loaded."""

    def prepare(self, device: torch.device) -> Measure:
        """What measures a batch; loads the network if there is one."""
        raise NotImplementedError

    def per_image(self, got: Path, ref: Path, run: Run) -> dict[str, dict[str, float]]:
        """File name -> what ``prepare`` measures, sorted by file name, of the folder ``got`` (changed) against ``ref``
        (original)."""
        measured: dict[str, dict[str, float]] = {}
        measure_batch = self.prepare(run.device)
        with torch.inference_mode():
            for files, changed, original in _pairs(got, ref, run.batch):
                values = measure_batch(changed.to(run.device), original.to(run.device))
                rows = zip(*(value.tolist() for value in values.values()), strict=True)
                for file, row in zip(files, rows, strict=True):
                    measured[file] = dict(zip(values, row, strict=True))
        return dict(sorted(measured.items()))

    def __call__(self, got: Path, ref: Path, run: Run) -> dict[str, float]:
        """Means over the pictures; a score whose mean is not a finite number is left out."""
        rows = list(self.per_image(got, ref, run).values())
        means = {score: sum(row[score] for row in rows) / len(rows) for score in self.scores}
        return {score: value for score, value in means.items() if math.isfinite(value)}


def _pairs(got: Path, ref: Path, batch: int) -> Iterator[tuple[list[str], Tensor, Tensor]]:
    ours, theirs = ({path.name for path in images.list_images(folder)} for folder in (got, ref))
    if odd := sorted(ours ^ theirs):
        raise ValueError(f"pairs: {got} and {ref} must hold the same names; {len(odd)} are in one only, e.g. {odd[0]}")
    batches = zip(images.iterate(got, batch), images.iterate(ref, batch), strict=False)
    for (names, changed), (others, original) in batches:
        # Both are sorted by size, then by name: where they part, some picture has two sizes.
        if names != others or changed.shape != original.shape:
            raise ValueError(f"pairs: pictures of one name must be of one size in {got} and {ref}; see {names[0]}")
        yield names, changed, original


def _check_side(name: str, x: Tensor, least: int) -> None:
    if min(x.shape[-2:]) < least:
        raise ValueError(f"{name}: pictures must have at least {least} x {least} pixels, given {tuple(x.shape[-2:])}")


class Psnr(PairMetric):
    """Peak signal-to-noise ratio in dB over all pixels and channels of a picture, peak 1; infinite if unchanged."""

    def __init__(self) -> None:
        self.scores = {"psnr": "up"}

    def prepare(self, device: torch.device) -> Measure:
        return lambda changed, original: {"psnr": -10 * (changed - original).double().square().mean((1, 2, 3)).log10()}


class Ssim(PairMetric):
    """Structural similarity (Wang et al. 2004), mean over RGB and all places where its window fits.

    Gaussian window of 11 pixels, sigma 1.5; ValueError for smaller pictures. torchmetrics also counts padded places
    and so differs a little.
    """

    def __init__(self) -> None:
        self.scores = {"ssim": "up"}

    def prepare(self, device: torch.device) -> Measure:
        from udpbench.core.visibility import ssim

        def values(changed: Tensor, original: Tensor) -> dict[str, Tensor]:
            _check_side("ssim", changed, 11)
            rows = [ssim(clean, protected) for clean, protected in zip(original, changed, strict=True)]
            return {"ssim": torch.tensor(rows, dtype=torch.float64)}

        return values


class Vif(PairMetric):
    """Pixel-domain visual information fidelity (Sheikh & Bovik 2006), by torchmetrics; 1 for equal pictures.

    ValueError for pictures with a side under 41 pixels: its coarsest scale would have nothing left.
    """

    def __init__(self) -> None:
        self.scores = {"vif": "up"}

    def prepare(self, device: torch.device) -> Measure:
        from torchmetrics.functional.image import visual_information_fidelity

        def values(changed: Tensor, original: Tensor) -> dict[str, Tensor]:
            _check_side("vif", changed, 41)
            pairs = zip(changed.split(1), original.split(1), strict=True)  # on the scale of levels, as its noise is
            return {"vif": torch.stack([visual_information_fidelity(255 * x, 255 * y) for x, y in pairs])}

        return values


class PerceptualDistance(PairMetric):
    """``dist_lite1``: see ``PerceptualLite1``; its weights come from a package.

    It is not LPIPS.
    """

    def __init__(self) -> None:
        self.scores = {"dist_lite1": "down"}

    def check(self) -> None:
        weights_path("lite1")

    def prepare(self, device: torch.device) -> Measure:
        distance = PerceptualLite1().to(device)
        return lambda changed, original: {"dist_lite1": distance(changed, original)}


class Lpips(PairMetric):
    """``lpips_alex`` (what the field reports), ``lpips_vgg`` or ``lpips_squeeze``: see ``LpipsDistance``.

    ``weights``: file of the trunk; None: the torch hub's checkpoints.
    """

    def __init__(self, net: str = "alex", weights: str | None = None) -> None:
        if net not in TRUNKS:
            raise ValueError(f"lpips: unknown net {net!r}; allowed are {', '.join(TRUNKS)}")
        self.net = net
        self.weights = weights
        self.scores = {f"lpips_{net}": "down"}

    def check(self) -> None:
        _trunk_file(self.net, self.weights)

    def prepare(self, device: torch.device) -> Measure:
        distance = load_lpips(self.net, self.weights, device)
        return lambda changed, original: {f"lpips_{self.net}": distance(changed, original)}


class PerturbationSize(PairMetric):
    """How large the change is, in 8-bit levels: ``linf`` and ``rms_max`` of the worst picture, ``rms`` averaged over
    pictures."""

    version: ClassVar[int] = 2

    def __init__(self) -> None:
        self.scores = {"linf": "down", "rms": "down", "rms_max": "down"}

    def prepare(self, device: torch.device) -> Measure:
        def values(changed: Tensor, original: Tensor) -> dict[str, Tensor]:
            rows = [measure(clean, protected) for clean, protected in zip(original, changed, strict=True)]
            return {norm: torch.tensor([row[norm] for row in rows], dtype=torch.float64) for norm in ("linf", "rms")}

        return values

    def __call__(self, got: Path, ref: Path, run: Run) -> dict[str, float]:
        """The largest of each, and the mean ``rms``."""
        rows = self.per_image(got, ref, run).values()
        linf, rms = ([row[norm] for row in rows] for norm in ("linf", "rms"))
        return {"linf": max(linf), "rms": sum(rms) / len(rms), "rms_max": max(rms)}
