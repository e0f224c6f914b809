"""A diffusion bridge from protected to clean pictures, learnt from leaked pairs.

BridgePure (Wang et al., NeurIPS 2025, arXiv 2412.21061) with the bridges of Zhou et al. (ICLR 2024, "Denoising
Diffusion Bridge Models").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udpbench.attack.each import in_batches
from udpbench.core.component import check_numbers
from udpbench.core.digest import files_digest, known_sha256
from udpbench.core.images import list_images, read
from udpbench.core.memory import queued
from udpbench.core.paired import read_paired
from udpbench.core.pixels import padded
from udpbench.interfaces import Attack, Dataset, Images, Run, Texts
from udpbench.models.networks import initialised_by
from udpbench.optim.fit import FitSettings, fit
from udpbench.optim.samples import normal

STATE = "bridge.ckpt"


def between(x0: Tensor, x: Tensor, ratio: Tensor | float, scale: Tensor | float, noise: Tensor) -> Tensor:
    """The bridge at time s between ``x0`` at time 0 and ``x`` at t > s, ``ratio`` = (s / t)^2, ``scale`` = t: normal of
    mean ``x0 + ratio (x - x0)`` and variance ``s^2 (1 - ratio)`` (Zhou et al., table 1, variance exploding)."""
    return x0 + ratio * (x - x0) + scale * (ratio * (1 - ratio)) ** 0.5 * noise


@dataclass(kw_only=True)
class Bridge(FitSettings, Attack):
    """Train ``net`` to tell clean pictures ``x_0`` from points of the bridge between them and their protected twins
    ``x_T``: ``mean (x_T + net(x_t, t, x_T) - x_0)^2``, t uniform, pixels in [-1,1]. Then walk a picture's bridge from
    ``x_T`` down, each step with the ``x_0`` that the network tells.

    The thief has pairs: pictures of his own that he had protected by the owner's tool (``udpbench protect``); none of
    those that are to be purified. The training is a part of this stage. The paper's: the bridge, the pairs. Our
    choices: the variance-exploding bridge with T = 1 (in the released code 80), an equal weight of all times, the
    difference as what is predicted, exact steps of the bridge in place of the hybrid sampler (there 40 of Heun's, with
    churn, guidance and an average of the weights), no noise on the pairs, a small network, crops.

    Args: those of ``FitSettings``, and
        clean, protected: folders of the pairs, by name.
        widths: channels of the network's levels, multiples of 8.
        batch, crop: pictures in a training step, and the side in pixels of what it sees of them.
        noise: T, twice the bridge's greatest standard deviation, in [-1,1].
        sample_steps: of the walk.
    """

    clean: str | Path
    protected: str | Path
    widths: Sequence[int]
    batch: int
    crop: int
    noise: float
    sample_steps: int

    places: ClassVar[tuple[str, ...]] = ("clean", "protected", "save_every")
    couples_images = True  # by its training, which is one for all: they are handed over together
    version = 2  # 2: the network begins at the protected picture
    called = "bridge"

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = {"batch": self.batch, "crop": self.crop, "sample_steps": self.sample_steps}
        check_numbers("attack bridge", least=1, steps=self.steps, **counts)
        check_numbers("attack bridge", least=0, noise=self.noise)
        if not self.widths or any(width < 8 or width % 8 for width in self.widths):
            raise ValueError(f"attack bridge: widths must be multiples of 8, given {list(self.widths)}")

    def identity(self) -> dict[str, str]:
        """Digests of the pairs."""
        folders = {"clean": self.clean, "protected": self.protected}
        return {name: files_digest(list_images(Path(folder).expanduser())) for name, folder in folders.items()}

    def check_data(self, data: Dataset) -> None:
        """ValueError naming a picture of the pairs that is one of the data's: its clean version is what he is after."""
        theirs = {known_sha256(path): path for path in data.files()}
        for path in list_images(Path(self.clean).expanduser()):
            if (same := theirs.get(known_sha256(path))) is not None:
                todo = "give pairs of other pictures"
                raise ValueError(f"attack bridge: {path} of the pairs is {same}, which is to be purified; {todo}")

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Clean and protected pictures, CHW [0,1]; ValueError if one has no twin of its size."""
        files = list_images(Path(self.clean).expanduser())
        clean, folder = [read(file) for file in files], Path(self.protected).expanduser()
        return list(zip(clean, read_paired(folder, [file.name for file in files], clean), strict=True))

    def purify(self, images: Images, names: Texts, prompts: Texts, model: Any, run: Run) -> list[Tensor]:
        predict = self.learnt(run)

        def pure(index: list[int]) -> Tensor:
            x = torch.stack([images[i] for i in index]).to(run.device) * 2 - 1
            made = self.walk(x, predict, [run.rng("bridge", names[i]) for i in index])
            return (made / 2 + 0.5).clamp(0, 1).cpu()

        with torch.no_grad():
            return in_batches(images, run, self.label, pure)

    def walk(self, end: Tensor, predict: Callable[..., Tensor], rngs: Sequence[torch.Generator]) -> Tensor:
        """From ``end`` (NCHW [-1,1]) at T to time 0, in equal steps."""
        x, n = end, self.sample_steps
        for k in range(n, 0, -1):
            x0 = predict(x, torch.full((len(x),), k / n, device=x.device), end)
            x = between(x0, x, ((k - 1) / k) ** 2, self.noise * k / n, normal(rngs, 1, x))
        return x

    def learnt(self, run: Run) -> Callable[..., Tensor]:
        """What tells x_0 from (x_t, t / T, x_T); an interrupted training goes on."""
        with initialised_by(run.rng("bridge", "weights")):
            net = network(self.widths).to(run.device)

        def predict(x: Tensor, time: Tensor, end: Tensor) -> Tensor:
            height, width = x.shape[-2:]
            both = padded(torch.cat([x, end], 1), 2 ** (len(self.widths) - 1))
            return end + net(both, 1000 * time).sample.float()[..., :height, :width]

        pairs = self.pairs()

        def loss(step: int) -> Tensor:
            rng = run.rng("bridge", step)
            x0, end = (2 * queued(part, run.device) - 1 for part in self.crops(pairs, rng))
            drawn = torch.rand(len(x0), generator=rng), torch.randn(x0.shape, generator=rng)
            time, noise = (queued(part, run.device) for part in drawn)
            x = between(x0, end, time.view(-1, 1, 1, 1) ** 2, self.noise, noise)
            return F.mse_loss(predict(x, time, end), x0)

        checkpoint = None if run.scratch is None else run.scratch / STATE
        fit(list(net.train().parameters()), loss, self, run, title="bridge", checkpoint=checkpoint)
        net.eval()
        return predict

    def crops(self, pairs: Sequence[tuple[Tensor, Tensor]], rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same crops of ``batch`` pairs, drawn from ``rng``; no larger than the smallest picture."""
        side = min(self.crop, *(min(clean.shape[-2:]) for clean, _ in pairs))
        drawn = []
        for i in torch.randint(len(pairs), (self.batch,), generator=rng).tolist():
            places = (int(torch.randint(extent - side + 1, (), generator=rng)) for extent in pairs[i][0].shape[-2:])
            top, left = places
            drawn.append(tuple(x[:, top : top + side, left : left + side] for x in pairs[i]))
        clean, protected = zip(*drawn, strict=True)
        return torch.stack(clean), torch.stack(protected)


def network(widths: Sequence[int]) -> nn.Module:
    """A UNet without attention, six channels in and three out, for any size that its levels can halve.

    Its last layer begins at zero, so that the protected picture itself is predicted at first: from a random layer a
    training of 600 steps comes no further than that.
    """
    from diffusers import UNet2DModel

    levels = len(widths)
    made = UNet2DModel(
        in_channels=6, out_channels=3, layers_per_block=1, block_out_channels=list(widths), norm_num_groups=8,
        down_block_types=["DownBlock2D"] * levels, up_block_types=["UpBlock2D"] * levels, add_attention=False,
    )  # fmt: skip
    nn.init.zeros_(made.conv_out.weight)
    nn.init.zeros_(made.conv_out.bias)
    return made
