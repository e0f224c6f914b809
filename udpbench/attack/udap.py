"""UDAP: latents that the denoiser's own reconstruction brings back to the picture (AAAI 2026, arXiv 2601.07253)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from udpbench.core.component import check_numbers
from udpbench.core.pixels import smooth
from udpbench.interfaces import Attack, Images, Run, Texts
from udpbench.models.diffusion import Cond
from udpbench.models.latent import LatentDiffusion
from udpbench.models.reverse import ddim
from udpbench.optim.chains import recomputed


@dataclass(kw_only=True)
class Udap(Attack):
    """Minimise ``1000 mean |x - D(R_d(z))|^2`` over latents z, from ``E(blur(x))`` on; the result is ``D(z)``.

    R_d inverts DDIM over d steps of a schedule of ``ddim_steps`` and samples back (2 d evaluations of the UNet), d from
    1 to ``depth`` drawn anew in each iteration; the prompt is empty. It stops once the mean square is below ``enough``.
    Our choices: the gradient goes through all of R_d, whose evaluations are recomputed for it, squares are of pixels in
    [-1,1].

    Args:
        iterations, lr: of AdamW.
        ddim_steps, depth: as above; ``depth`` at most ``ddim_steps`` - 1.
        kernel, blur: taps (odd) and standard deviation in pixels of the blur; 1 tap: none.
        enough: as above; 0: all iterations.
    """

    iterations: int
    lr: float
    ddim_steps: int
    depth: int
    kernel: int
    blur: float
    enough: float

    needs = frozenset({"denoise", "latent", "text"})

    def __post_init__(self) -> None:
        check_numbers("attack udap", least=1, iterations=self.iterations, kernel=self.kernel)
        check_numbers("attack udap", above=0, lr=self.lr, blur=self.blur)
        check_numbers("attack udap", least=0, enough=self.enough)
        check_numbers("attack udap", least=1, below=self.ddim_steps, depth=self.depth)
        if self.kernel % 2 == 0:
            raise ValueError(f"attack udap: kernel must be odd, given {self.kernel}")

    def purify(self, images: Images, names: Texts, prompts: Texts, model: LatentDiffusion, run: Run) -> list[Tensor]:
        """As the interface says; prompts are not used."""
        with run.log.bar("udap", len(images), "img") as advance:
            out = []
            for x, name in zip(images, names, strict=True):
                out.append(self.pure(x[None].to(run.device), run.rng("udap", name), model, run)[0].cpu())
                advance(1)
        return out

    def pure(self, x: Tensor, rng: torch.Generator, model: LatentDiffusion, run: Run) -> Tensor:
        """What it makes of one picture, 1CHW [0,1]."""
        height, width = x.shape[-2:]
        with torch.no_grad():
            cond, start = model.embed([""]), model.encode(self.blurred(x))
        z = start.clone().requires_grad_(True)
        adam = torch.optim.AdamW([z], lr=self.lr)
        for step in range(self.iterations):
            depth = 1 + int(torch.randint(self.depth, (), generator=rng))
            back = model.decode(self.reconstructed(z, cond, depth, model))[..., :height, :width]
            error = (2 * (back - x)).square().mean()
            run.tally("unet_purify", 2 * depth)
            run.log.scalar("udap/error", error.detach(), step)
            if self.enough and float(error.detach()) < self.enough:  # which waits for a GPU
                break
            (z.grad,) = torch.autograd.grad(1000 * error, z)
            adam.step()
        with torch.no_grad():
            return model.decode(z)[..., :height, :width].clamp(0, 1)

    def blurred(self, x: Tensor) -> Tensor:
        """NCHW under the Gaussian of ``kernel`` taps."""
        return smooth(x, self.blur, self.kernel // 2)

    def reconstructed(self, z: Tensor, cond: Cond, depth: int, model: LatentDiffusion) -> Tensor:
        """``z`` after ``depth`` steps of DDIM up and the same down."""
        times = [k * len(model.alpha_bar) // self.ddim_steps for k in range(depth + 1)]
        levels = [float(model.alpha_bar[t]) for t in times]
        for k, to in [*pairwise(range(depth + 1)), *pairwise(range(depth, -1, -1))]:
            t = torch.full((len(z),), times[k], device=z.device)
            z = ddim(recomputed(model, z, t, cond), z, levels[k], levels[to], model.prediction)
        return z
