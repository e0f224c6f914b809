"""A photograph of the picture on a screen or on paper, emulated: the channel that INSIGHT starts from (An et al.,
"Rethinking the Invisible Protection", USENIX Security 2024), who took real ones by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from udpbench.attack.each import EachPicture
from udpbench.core.codecs import recompress
from udpbench.core.component import check_numbers
from udpbench.core.pixels import smooth, warped
from udpbench.interfaces import Run


@dataclass(kw_only=True)
class ScreenCamera(EachPicture):
    """What is left of a picture after a screen, a lens, a sensor and a codec, aligned by hand afterwards.

    An emulation, and all of it our choice: a perspective that alignment left over, blur of the lens, light that falls
    off to the corners, colour gains and gamma of screen and camera, noise of the sensor, JPEG. Perspective, gains,
    gamma and noise are drawn for each picture. Real photographs: ``attack=folder``.

    Args:
        tilt: largest displacement of a corner, as a fraction of the sides.
        blur: standard deviation in pixels.
        vignette: light that is missing in the corners, 0 to below 1.
        colour: largest relative change of a channel's gain and of the gamma.
        noise: standard deviation of 255.
        quality: of the JPEG.
    """

    tilt: float
    blur: float
    vignette: float
    colour: float
    noise: float
    quality: int

    def __post_init__(self) -> None:
        who = "attack screen_camera"
        check_numbers(who, least=0, below=0.25, tilt=self.tilt)
        check_numbers(who, least=0, below=1, vignette=self.vignette, colour=self.colour)
        check_numbers(who, least=0, most=255, blur=self.blur, noise=self.noise)
        check_numbers(who, least=1, most=100, quality=self.quality)

    def pure(self, x: Tensor, name: str, run: Run) -> Tensor:
        rng, (height, width) = run.rng("screen_camera", name), x.shape[-2:]
        shift = 2 * self.tilt * (2 * torch.rand(2, generator=rng) - 1)
        slant = self.tilt * (2 * torch.rand(2, generator=rng) - 1)
        matrix = torch.eye(3)
        matrix[:2, 2], matrix[2, :2] = shift / 2, slant / 2
        shown = smooth(warped(x, matrix)[None], self.blur)[0]
        down, across = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None]
        light = 1 - self.vignette * (down.square() + across.square()) / 2
        gain, gamma = (1 + self.colour * (2 * torch.rand(n, 1, 1, generator=rng) - 1) for n in (3, 1))
        seen = (shown.clamp(0, 1) ** gamma * gain * light).clamp(0, 1)
        sensed = seen + self.noise / 255 * torch.randn(x.shape, generator=rng)
        return recompress(sensed.clamp(0, 1), "jpeg", self.quality)
