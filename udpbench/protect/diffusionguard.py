"""DiffusionGuard: enlarge the first noise prediction of inpainting (Choi et al., ICLR 2025, arXiv 2410.05694)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import cKDTree
from skimage.measure import approximate_polygon, find_contours
from torch import Tensor

from udpbench.core.component import check_numbers
from udpbench.interfaces import Run
from udpbench.models.diffusion import Cond
from udpbench.optim.chains import Inpainting
from udpbench.optim.masked import MaskedAscent


@dataclass(kw_only=True)
class DiffusionGuard(MaskedAscent):
    """Ascend ``|eps(noise, T, E(x * kept), kept)|_2``, the UNet's prediction in the first step, from pure noise.

    The kept part is shrunk anew at every iteration (``shrunk``), so that the perturbation does not rely on one mask;
    outside the whole kept part pictures stay as they are.

    The paper's and the released code's: the objective, one noise and one mask an iteration, the empty prompt, the time
    step of the first of four steps. Our choices: the posterior mean; a random start, of the kept part, in the preset
    ``matched``; for a UNet that takes latents alone see ``Inpainting``.

    Args: those of ``MaskedAscent``, and
        contour_strength: largest reach of a contour's offsets, in radii of the kept part: sqrt(pi area / 2), as in the
            released code, which means those of a disc of its area, sqrt(area / pi).
        contour_smoothness: standard deviation of the filter over the offsets, in radii.
        contour_iterations: the contour is moved from once to one time less than that (1 is as 2); 0: not at all.
    """

    contour_strength: float = 1.1
    contour_smoothness: float = 0.1
    contour_iterations: int = 15

    version = 4  # 2: radii as in the released code; 3: so are contours and their offsets; 4: so is which piece is taken
    name = "diffusionguard"
    wrappable = False  # other terms would move what is painted anew, too

    def __post_init__(self) -> None:
        super().__post_init__()
        lengths = {"contour_strength": self.contour_strength, "contour_smoothness": self.contour_smoothness}
        check_numbers(self.name, least=0, contour_iterations=self.contour_iterations, **lengths)

    def model_prompts(self, prompts: Sequence[str]) -> list[str]:
        return [""]

    def repainted(self, anew: Tensor, rng: torch.Generator) -> Tensor:
        return 1 - self.shrunk(1 - anew, rng)

    def raised(self, seen: Inpainting, cond: Cond, noise: Tensor, run: Run) -> Tensor:
        output = seen.first_prediction(cond.repeat(len(noise)), noise, self.sample_steps)
        return output.flatten(1).norm(dim=1)

    def shrunk(self, kept: Tensor, rng: torch.Generator) -> Tensor:
        """A smaller kept part, (1, H, W) of 0 and 1, in ``kept``: from once to ``contour_iterations`` - 1 times, the
        corners of the contour of its largest piece are moved by smoothed whole offsets; those that leave it, back onto
        it.

        It is drawn from ``rng`` how often, and how far they may be moved at most.
        """
        inside = whole = kept[0].cpu().numpy() > 0
        if not self.contour_iterations:
            return kept
        radius = float(np.sqrt(inside.sum() * np.pi / 2))
        moves, far = torch.rand(2, generator=rng).tolist()
        reach, sigma = int(far * self.contour_strength * radius), max(self.contour_smoothness * radius, 1e-3)
        for _ in range(1 + int(moves * (self.contour_iterations - 1))):
            contour = _corners(inside)
            offsets = torch.randint(-reach, reach + 1, contour.shape, generator=rng).double().numpy()
            moved = (contour + np.trunc(gaussian_filter1d(offsets, sigma, axis=0))).astype(int)
            moved = np.clip(moved, 0, np.array(inside.shape) - 1)
            left = ~inside[moved[:, 0], moved[:, 1]]
            moved[left] = contour[cKDTree(contour).query(moved[left])[1]]
            smaller = _filled(moved, inside.shape)
            if not (smaller & whole).any():
                break
            inside = smaller
        return torch.from_numpy((inside & whole)[None]).to(kept)


def _filled(corners: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """The polygon of these pixels, its outline included, as (height, width) of bool."""
    height, width = size
    drawn = Image.new("1", (width, height))
    points = [(int(x), int(y)) for y, x in corners]
    ImageDraw.Draw(drawn).polygon(points if points[1:] else 2 * points, fill=1, outline=1)
    return np.array(drawn)


def _area(contour: np.ndarray) -> float:
    """What a closed contour (N, 2) encloses, in pixels (the shoelace formula)."""
    y, x = (contour - contour[0]).T
    return float(abs(y[:-1] @ x[1:] - x[:-1] @ y[1:])) / 2


def _corners(inside: np.ndarray) -> np.ndarray:
    """Pixels (N, 2) of the contour of the piece of the largest area, without those within straight runs (OpenCV's
    CHAIN_APPROX_SIMPLE)."""
    # A hole's contour encloses less than that of the piece around it, so it is never the largest.
    pixels = max(find_contours(np.pad(inside, 1).astype(float), 0.999), key=_area).round() - 1
    corners: np.ndarray = approximate_polygon(pixels, 1e-9).astype(int)
    return corners[:-1] if len(corners) > 1 else corners  # the last is the first again
