"""DIA: an attack on DDIM inversion, with which editing of real pictures begins (ICCV 2025, arXiv 2510.00778)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.component import check_choice, check_numbers
from udpbench.interfaces import Owner, Run
from udpbench.models.diffusion import Cond
from udpbench.models.latent import LatentDiffusion
from udpbench.models.reverse import ddim
from udpbench.optim.chains import OFFSET, img2img_steps, recomputed
from udpbench.optim.pgd import Ascent, first_length

AIMS = ("trajectory", "reconstruction")


@dataclass(kw_only=True)
class DIA(Ascent):
    """Ascend ``|inverted(z) - z|_2`` (DIA-PT), or ``|D(denoised(inverted(z))) - x|_2`` (DIA-R), ``z = E(x)``, where the
    latents or the picture that are subtracted are the perturbed ones, taken as constants.

    ``inverted`` takes the latents to noise by the steps of DDIM in reverse (Song et al. 2021), each with the prediction
    at the latents it starts from; ``denoised`` goes the same way back.

    The paper's and its supplement's: both objectives, what is subtracted without a gradient, ten steps, the empty
    prompt, no guidance. The code could not be read; where others quote it, the norm is L2, of pictures in [-1,1],
    DIA-PT starts at random and DIA-R at the clean picture (``random_start`` false, as in ``dia_r_released``), and
    time steps are 1, 112, ..., 999, each with the one 100 before it. Our choices: time steps 1, 101, ..., 901, as
    diffusers counts; each step of the inversion is predicted at the time step it leads to; the whole chain is
    differentiated, evaluations recomputed in the backward pass (the recomputation is not counted); a random start of
    both aims in the preset ``matched``.

    Args:
        aim: ``trajectory`` (DIA-PT) or ``reconstruction`` (DIA-R, twice as many evaluations).
        iterations: of ascent.
        sample_steps: UNet evaluations of one inversion.
        step_size: length of one step, of 255; None: an eighth of the budget, or longer where so few steps could not
            cross it: twice the budget over their number.
        random_start: start from uniform noise within the budget.
    """

    aim: str
    iterations: int
    sample_steps: int
    random_start: bool = True

    version = 3  # 2: a few steps are long enough for the budget; 3: what is subtracted is perturbed and has no gradient
    needs = frozenset({"denoise", "latent", "text"})

    def __post_init__(self) -> None:
        check_choice("dia: unknown aim", self.aim, AIMS)
        check_numbers("dia", least=1, iterations=self.iterations, sample_steps=self.sample_steps)

    def check_model(self, model: LatentDiffusion) -> None:
        model.check_steps("dia", OFFSET, sample_steps=self.sample_steps)

    def model_prompts(self, prompts: Sequence[str]) -> list[str]:
        return [""]

    def lengths(self, budget: Budget, n: int) -> list[float]:
        return [first_length(self.step_size, budget.eps * max(1, 16 / n))] * n

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        model, back = surrogate, self.aim == "reconstruction"
        empty = model.embed([""])

        def loss(x: Tensor, index: list[int]) -> Tensor:
            z, cond = model.encode(x), empty.repeat(len(x))
            run.tally("unet_image", len(x) * self.sample_steps * (2 if back else 1))
            noise = walked(model, z, cond, self.sample_steps, invert=True)
            if not back:
                return (noise - z.detach()).flatten(1).norm(dim=1)
            made = model.decode(walked(model, noise, cond, self.sample_steps))[..., : x.shape[-2], : x.shape[-1]]
            return (2 * (made - x.detach())).flatten(1).norm(dim=1)

        return self.ascended(owner, loss, budget, run, self.iterations, at_random=self.random_start)


def walked(model: LatentDiffusion, z: Tensor, cond: Cond, steps: int, invert: bool = False) -> Tensor:
    """Latents ``z`` after ``steps`` steps of DDIM: from noise to a picture or, with ``invert``, the other way."""
    times, a = img2img_steps(model, 1.0, steps)
    t = times[:, None].expand(-1, len(z))
    for k in reversed(range(steps)) if invert else range(steps):
        here, there = (k + 1, k) if invert else (k, k + 1)
        output = recomputed(model, z, t[k], cond)
        z = ddim(output, z, a[here], a[there], model.prediction)
    return z
