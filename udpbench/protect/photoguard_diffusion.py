"""PhotoGuard's diffusion attack: move the result of img2img to a target (Salman et al., ICML 2023, 2302.06588)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from udpbench.core.budget import Budget
from udpbench.core.component import check_choice, check_numbers
from udpbench.interfaces import Owner, Run
from udpbench.models.diffusion import Cond
from udpbench.models.latent import LatentDiffusion
from udpbench.models.reverse import ddim
from udpbench.optim.chains import OFFSET, img2img_steps, recomputed
from udpbench.optim.pgd import Ascent
from udpbench.optim.samples import normal
from udpbench.optim.target import Targeted

PROMPTS = ("empty", "owner")


@dataclass(kw_only=True)
class PhotoGuardDiffusion(Targeted, Ascent):
    """Descend ``mean |f(x) - target|^2``, pixels in [-1,1], through the whole chain ``f`` (the paper's equation 5).

    ``f`` encodes the picture, noises it to ``strength``, denoises it in a few DDIM steps and decodes it.

    The paper's: the objective, a grey target, few steps. The released code runs ``f`` through an inpainting model
    (from pure noise, beside the masked picture), with eta 1, and descends the norm, not its square (for one sample
    the direction is the same). Our choices: img2img, which every model of Stable Diffusion's shape can do, with the
    posterior mean; no guidance, which with the empty prompt would change nothing. UNet evaluations are recomputed in
    the backward pass, so that memory is that of one of them; the recomputation is not counted.

    Args:
        iterations: of descent; every one draws new noise.
        strength: fraction of the noise schedule that the picture is noised by, above 0, at most 1.
        sample_steps: UNet evaluations of the chain.
        samples: chains per picture and iteration, averaged, in one pass; 10 (L2) and 5 (L-infinity) in the released
            code.
        eta: fraction of DDIM's random noise, 0 to 1.
        prompt: ``empty``, or the ``owner``'s prompts.
        step_size: length of one step, of 255; None: an eighth of the budget.
        target: file of the target picture; None: grey (zeros in [-1,1], the released default).
        random_start: start from uniform noise within the budget; the released code starts at the picture.
    """

    iterations: int
    strength: float
    sample_steps: int
    samples: int = 1
    eta: float = 0.0
    prompt: str = "empty"
    random_start: bool = False

    version = 2  # 2: latents of the picture alone; targets are resized
    needs = frozenset({"denoise", "latent", "text"})
    name = "photoguard_diffusion"
    default = "grey"

    def __post_init__(self) -> None:
        who, counts = self.name, {"iterations": self.iterations, "sample_steps": self.sample_steps}
        check_numbers(who, least=1, samples=self.samples, **counts)
        check_numbers(who, above=0, most=1, strength=self.strength)
        check_numbers(who, least=0, most=1, eta=self.eta)
        check_choice(f"{who}: unknown prompt", self.prompt, PROMPTS)

    def check_model(self, model: LatentDiffusion) -> None:
        whole = round(self.sample_steps / self.strength)
        model.check_steps(self.name, OFFSET, **{"sample_steps / strength": whole})

    def model_prompts(self, prompts: Sequence[str]) -> list[str]:
        return list(prompts) if self.prompt == "owner" else []

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        cond = surrogate.embed(owner.prompts if self.prompt == "owner" else [""] * len(owner.images))
        rngs = [run.rng("photoguard_diffusion", name) for name in owner.names]
        goals = {size: self._goal(size, run.device) for size in {tuple(x.shape[-2:]) for x in owner.images}}

        def loss(x: Tensor, index: list[int]) -> Tensor:
            many = cond.take(torch.tensor(index)).repeat(self.samples)
            made = self.edited(x, many, [rngs[i] for i in index], surrogate)
            run.tally("unet_image", len(made) * self.sample_steps)
            each = (2 * (made - goals[tuple(x.shape[-2:])])).square().flatten(1).mean(1)
            return -each.view(len(x), self.samples).mean(1)

        start = self.random_start
        return self.ascended(owner, loss, budget, run, self.iterations, at_random=start, samples=self.samples)

    def edited(self, x: Tensor, cond: Cond, rngs: Sequence[torch.Generator], model: LatentDiffusion) -> Tensor:
        """``f`` of each of N pictures ``x`` (NCHW [0,1]), ``samples`` times in a row: about [0,1], not clamped;
        differentiable.

        ``cond`` has a row for each result. The noise of a picture, of the start and then, with ``eta``, of each step,
        comes from its own generator.
        """
        z = checkpoint(model.encode, x, use_reentrant=False, preserve_rng_state=False)
        t, a = img2img_steps(model, self.strength, self.sample_steps)
        many = t[:, None].expand(-1, len(z) * self.samples)
        start = normal(rngs, self.samples, z)
        z = model.noised(z.repeat_interleave(self.samples, 0), many[0], start)
        for k, now in enumerate(many):
            output = recomputed(model, z, now, cond)
            noise = normal(rngs, self.samples, z) if self.eta else None
            z = ddim(output, z, a[k], a[k + 1], model.prediction, self.eta, noise)
        return model.decode(z)[..., : x.shape[-2], : x.shape[-1]]

    def _goal(self, size: tuple[int, ...], device: torch.device) -> Tensor:
        """The target for pictures of ``size`` (height, width), NCHW [0,1]; or grey."""
        picture = self.picture(size)
        return torch.full((), 0.5, device=device) if picture is None else picture.to(device)
