"""Image-to-image regeneration by a latent model (SDEdit, Meng et al., ICLR 2022), also with a prompt that asks for a
clean picture ("Off-The-Shelf Image-to-Image Models Are All You Need", SaTML 2026, arXiv 2602.22197)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from udpbench.attack.each import in_batches
from udpbench.attack.prompted import Prompted
from udpbench.core.component import check_choice, check_numbers
from udpbench.interfaces import Images, Run, Texts
from udpbench.models.latent import LatentDiffusion
from udpbench.models.sample import PIXEL_SOLVERS, editing_pipeline


@dataclass(kw_only=True)
class SdEdit(Prompted):
    """Encode, noise a fraction ``strength`` of the way, denoise, decode: diffusers' image-to-image pipeline.

    Args: those of ``Prompted``, and
        strength: fraction of the schedule, above 0, at most 1.
        schedule_steps: of the whole schedule; ``strength`` times as many are made.
        solver: ``ddim``, ``dpmpp`` or ``ddpm``.
    """

    strength: float
    schedule_steps: int
    solver: str

    needs = frozenset({"denoise", "latent", "text"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers("attack sdedit", above=0, most=1, strength=self.strength)
        check_numbers("attack sdedit", least=1, guidance=self.guidance, schedule_steps=self.schedule_steps)
        check_choice("attack sdedit: unknown solver", self.solver, PIXEL_SOLVERS)
        if self.made < 1:
            raise ValueError(f"attack sdedit: strength {self.strength:g} leaves none of {self.schedule_steps} steps")

    def check_model(self, model: Any) -> None:
        model.check_steps("attack sdedit", schedule_steps=self.schedule_steps)

    @property
    def made(self) -> int:
        """How many steps are made."""
        return int(self.schedule_steps * self.strength)

    @property
    def label(self) -> str:
        return f"sdedit_{self.strength:g}{'_prompt' if self.prompt not in ('', '{caption}') else ''}"

    def purify(self, images: Images, names: Texts, prompts: Texts, model: LatentDiffusion, run: Run) -> list[Tensor]:
        from diffusers import StableDiffusionImg2ImgPipeline

        asked = self.asked(prompts)
        pipe = editing_pipeline(model, StableDiffusionImg2ImgPipeline, self.solver)

        def pure(index: list[int]) -> Tensor:
            x = model.padded(torch.stack([images[i] for i in index]).to(run.device))
            with torch.no_grad():
                made = pipe(
                    prompt=[asked[i] for i in index],
                    negative_prompt=[self.negative_prompt] * len(index),
                    image=x,
                    strength=self.strength,
                    num_inference_steps=self.schedule_steps,
                    guidance_scale=self.guidance,
                    generator=[run.rng("sdedit", names[i]) for i in index],
                    output_type="pt",
                ).images
            run.tally("unet_purify", self.made * len(index) * (1 + (self.guidance > 1)))
            height, width = images[index[0]].shape[-2:]
            return made.float().cpu()[..., :height, :width]

        return in_batches(images, run, self.label, pure)
