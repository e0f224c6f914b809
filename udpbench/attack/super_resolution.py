"""Super-resolution as a purifier: reduce the pictures, and have a diffusion model enlarge them again.

As used against protections by MetaCloak's authors (CVPR 2024) and after them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from udpbench.attack.each import in_batches
from udpbench.attack.prompted import Prompted
from udpbench.core.component import check_choice, check_numbers
from udpbench.core.images import as_saved, at_once
from udpbench.core.pixels import resize
from udpbench.interfaces import Images, Run, Texts
from udpbench.models.sample import PIXEL_SOLVERS
from udpbench.models.upscaler import Upscaler


@dataclass(kw_only=True)
class Upscaling(Prompted):
    """What purifications with an upscaler have in common.

    Args: those of ``Prompted``, and
        upscale_steps: of the sampler.
        upscale_solver: ddpm | ddim | dpmpp; None: the model's own.
        noise_level: time step of the noise that the model sees the small picture under.
    """

    upscale_steps: int
    noise_level: int
    negative_prompt: str = ""
    upscale_solver: str | None = None

    name: ClassVar[str]  # in messages
    later: ClassVar[Mapping[str, Any]] = {"upscale_solver": None}
    needs = frozenset({"upscale"})

    def __post_init__(self) -> None:
        Prompted.__post_init__(self)
        who = f"attack {self.name}"
        check_numbers(who, least=1, upscale_steps=self.upscale_steps, guidance=self.guidance)
        check_numbers(who, least=0, noise_level=self.noise_level)
        if self.upscale_solver is not None:
            check_choice(f"{who}: unknown upscale_solver", self.upscale_solver, PIXEL_SOLVERS)

    def enlarged(
        self, x: Tensor, prompts: Sequence[str], rngs: Sequence[torch.Generator], model: Upscaler, run: Run
    ) -> Tensor:
        """N pictures (NCHW [0,1]), enlarged by ``model``, on the CPU; ``prompts``: their captions."""
        asked, made, n = self.asked(prompts), [], at_once(run.batch, *(model.factor * side for side in x.shape[-2:]))
        for first in range(0, len(x), n):
            part = slice(first, first + n)
            large = model.enlarged(
                x[part], asked[part], self.negative_prompt, rngs[part],
                steps=self.upscale_steps, guidance=self.guidance, noise_level=self.noise_level,
                solver=self.upscale_solver,
            )  # fmt: skip
            made.append(large.cpu())
        run.tally("unet_purify", self.upscale_steps * len(x) * (1 + (self.guidance > 1)))
        return torch.cat(made)


@dataclass(kw_only=True)
class SuperResolution(Upscaling):
    """Reduce by the model's factor (512 px to 128 with Stable Diffusion's), then enlarge by it.

    What reducing alone does, ``attack=resize attack.scale=0.25`` shows. Our choices: the small picture is rounded to 8
    bits, as one that was saved; where a side is no multiple of the factor, the next larger one is made of it and
    resized to the picture's. The upscaler is given the caption unless ``prompt`` says otherwise; MetaCloak's test gives
    it "A photo of a person", which has no word that names the subject.
    """

    name: ClassVar[str] = "super_resolution"
    called = "super_resolution"

    def check_model(self, model: Upscaler) -> None:
        model.check_request(self.noise_level, self.model_prompts())

    def small(self, x: Tensor, name: str, model: Upscaler, run: Run) -> Tensor:
        """What the model is given of CHW."""
        height, width = (-(-side // model.factor) for side in x.shape[-2:])
        return as_saved(resize(x[None], (height, width))[0])

    def purify(self, images: Images, names: Texts, prompts: Texts, model: Upscaler, run: Run) -> list[Tensor]:
        def pure(index: list[int]) -> Tensor:
            small = torch.stack([self.small(images[i], names[i], model, run) for i in index])
            rngs = [run.rng("upscale", names[i]) for i in index]
            _, height, width = images[index[0]].shape
            large = self.enlarged(small.to(run.device), [prompts[i] for i in index], rngs, model, run)
            return resize(large, (height, width))

        return in_batches(images, run, self.label, pure)
