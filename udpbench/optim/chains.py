"""Chains of DDIM steps through a model, differentiable: what protections against editing look ahead to."""

from __future__ import annotations

import json
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from udpbench.models.diffusion import Cond
from udpbench.models.latent import LatentDiffusion
from udpbench.models.reverse import ddim
from udpbench.models.sample import make_solver

OFFSET = 1


def img2img_steps(model: LatentDiffusion, strength: float, steps: int) -> tuple[Tensor, Tensor]:
    """Time steps (``steps``,) of img2img with DDIM from ``strength``, and alpha_bar at each and at the end
    (``steps`` + 1,), both on the model's device.

    As diffusers' img2img counts: the last ``steps`` of ``steps / strength`` that are evenly spaced over the schedule,
    all ``OFFSET`` later, as in diffusers' pipelines of Stable Diffusion, whatever a folder says: so there are fewer of
    them than time steps.
    """
    scheduler = model.pipe.scheduler
    unsaid = tuple(scheduler.config.get("_use_default_values", ()))  # which become the new scheduler's own
    return _img2img_steps(scheduler.to_json_string(), unsaid, strength, steps, model.device)


@lru_cache(maxsize=32)  # a scheduler takes 2 ms to make, which a loss of the embedded model is called for in each step
@torch.inference_mode(False)  # whoever asks next may want gradients
def _img2img_steps(
    config: str, unsaid: tuple[str, ...], strength: float, steps: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    solver = make_solver("ddim", json.loads(config) | {"_use_default_values": list(unsaid)})
    solver.register_to_config(steps_offset=OFFSET)
    solver.set_timesteps(round(steps / strength))
    t = solver.timesteps[-steps:].cpu()
    end = t[-1] - solver.config.num_train_timesteps // solver.num_inference_steps
    last = solver.alphas_cumprod[end] if end >= 0 else solver.final_alpha_cumprod
    return t.to(device), torch.cat([solver.alphas_cumprod[t], last.view(1)]).to(device)


def recomputed(model: LatentDiffusion, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """``model.predict`` of its own UNet, recomputed in the backward pass, so that a chain keeps one evaluation only."""
    return checkpoint(model.predict, z, t, cond, use_reentrant=False, preserve_rng_state=False)


class Inpainting:
    """What the UNet makes of N pictures ``x`` (NCHW [0,1]) that are painted anew where ``anew`` (N, 1, H, W) is 1.

    A UNet that takes masks is given, beside what it denoises, the mask and the latents of the picture, grey where it is
    painted anew. For one that takes latents alone the kept part of these is the picture's, noised, as in diffusers'
    pipeline; other than there, whose first input is noise alone, already at the first step: without that it would not
    depend on the picture. Only the kept part of the pictures gets a gradient, since nothing else is seen.

    ``latents``: those of the pictures; what noise must be shaped like.
    """

    def __init__(self, model: LatentDiffusion, x: Tensor, anew: Tensor) -> None:
        self.model = model
        hidden = torch.full_like(x, 0.5) if model.takes_masks else x.detach()
        self.latents = model.encode(torch.where(anew > 0, hidden, x))
        self.anew = model.padded(anew)
        self.mask = F.interpolate(self.anew, self.latents.shape[-2:])

    def given(self, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the UNet is given at time steps ``t`` (N,) for the noisy latents ``z``; ``noise``: of the kept part."""
        if self.model.takes_masks:
            return torch.cat([z, self.mask, self.latents], 1)
        return self.kept(self.model.noised(self.latents, t, noise), z)

    def kept(self, picture: Tensor, z: Tensor) -> Tensor:
        """``z`` where it is painted anew, elsewhere ``picture``."""
        return torch.where(self.mask > 0, z, picture)

    def first_prediction(self, cond: Cond, noise: Tensor, steps: int) -> Tensor:
        """What the UNet predicts in the first of ``steps`` steps, which starts from ``noise``."""
        t = img2img_steps(self.model, 1.0, steps)[0][:1].expand(len(noise))
        return self.model.predict(self.given(noise, t, noise), t, cond)

    def edited(self, cond: Cond, empty: Cond, noise: Tensor, steps: int, guidance: float) -> Tensor:
        """The pictures after ``steps`` steps of DDIM from ``noise`` with classifier-free guidance between ``empty`` and
        ``cond`` (Ho & Salimans 2022), NCHW, about [0,1]; UNet evaluations are recomputed in the backward pass.

        With a guidance of 1 the empty prompt is left out.
        """
        model, z = self.model, noise
        times, a = img2img_steps(model, 1.0, steps)
        for k, t in enumerate(times[:, None].expand(-1, len(z))):
            given = self.given(z, t, noise)
            output = recomputed(model, given, t, cond)
            if guidance != 1:
                without = recomputed(model, given, t, empty)
                output = without + guidance * (output - without)
            noisy = z if model.takes_masks else given
            z = ddim(output, noisy, a[k], a[k + 1], model.prediction)
        return model.decode(z if model.takes_masks else self.kept(self.latents, z))
