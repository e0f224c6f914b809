"""Malicious editing: what a thief makes of one picture without any training (Salman et al., ICML 2023, PhotoGuard).

Every picture is edited with every prompt. Edits of protected pictures are compared with edits of the clean ones that
start from the same noise.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from udpbench.core.component import check_choice
from udpbench.core.folders import Facts
from udpbench.core.images import at_once, file_name, read_folder
from udpbench.core.text import check_stands
from udpbench.interfaces import Run, Task, Thief
from udpbench.models.latent import LatentDiffusion
from udpbench.models.sample import SOLVERS, editing_pipeline
from udpbench.optim.masked import Masked
from udpbench.optim.training import write_made


class _Edit(NamedTuple):
    """One edit to make: of which picture, with which of the prompts, and which draw of these two."""

    picture: str
    prompt: int
    draw: int

    @property
    def file(self) -> str:
        """The name that it gets."""
        return file_name(Path(self.picture).stem, f"-{self.prompt:02d}-{self.draw:02d}.png")


@dataclass(kw_only=True)
class Img2Img(Task):
    """Image-to-image editing (SDEdit, Meng et al. 2022): noise a fraction ``strength`` of the way, denoise to a prompt.

    Args:
        prompts: what the thief asks for; ``{class}`` stands for the data's class prompt.
        samples: edits per picture and prompt.
        strength: fraction of the noise schedule, above 0, at most 1.
        sample_steps, guidance, solver: of the denoising; ``strength * sample_steps`` steps are made.
        eta: fraction of DDPM's fresh noise in every step of DDIM (Song et al. 2021, eq. 16), 0 to 1; it comes from
            the edit's own generator, too.
    """

    prompts: Sequence[str]
    sample_steps: int
    guidance: float
    strength: float
    samples: int = 1
    solver: str = "ddim"
    eta: float = 0.0

    name: ClassVar[str] = "img2img"
    version: ClassVar[int] = 2
    needs = frozenset({"denoise", "latent", "text"})
    trains: ClassVar[bool] = False
    takes: ClassVar[frozenset[str]] = frozenset({"purify"})

    def __post_init__(self) -> None:
        if not self.prompts or min(self.samples, self.sample_steps) < 1:
            needed = "at least one prompt, samples >= 1 and sample_steps >= 1 are needed"
            given = f"{list(self.prompts)}, {self.samples}, {self.sample_steps}"
            raise ValueError(f"{self.name}: {needed}, given {given}")
        for prompt in self.prompts:
            check_stands(f"{self.name}: prompts", prompt, "class")
        if not 0 < self.strength <= 1 or int(self.sample_steps * self.strength) < 1:
            allowed = f"above 0, at most 1, and leave a step of the {self.sample_steps}"
            raise ValueError(f"{self.name}: strength must be {allowed}, given {self.strength}")
        check_choice(f"{self.name}: unknown solver", self.solver, SOLVERS)
        if not 0 <= self.eta <= (self.solver == "ddim"):
            raise ValueError(f"{self.name}: eta must be 0 to 1 with ddim and 0 otherwise, given {self.eta}")

    def check_model(self, model: Any) -> None:
        model.check_steps(self.name, sample_steps=self.sample_steps)

    @property
    def uses_class_prompt(self) -> bool:
        return any("{class}" in prompt for prompt in self.prompts)

    def model_prompts(self, facts: Facts) -> list[str]:
        return [prompt.replace("{class}", facts.class_prompt or "") for prompt in self.prompts]

    def generated_count(self, train: int) -> int:
        """How many edits there are of ``train`` pictures."""
        return train * len(self.prompts) * self.samples

    def sampling_key(self) -> dict[str, Any]:
        """The settings that edits depend on."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    def edit(self, images: Path, out: Path, victim: LatentDiffusion, run: Run, thief: Thief, noise: str) -> None:
        """As the interface says; tasks that keep a part of the picture lay that part of the clean one over it."""
        model = victim.on(run)
        pictures = read_folder(images, model.size)
        anew = self.repainted(pictures, thief.masks)
        over = self.overlay(thief.clean, model.size) if thief.clean else {}
        asked = self.model_prompts(Facts("", class_prompt=thief.class_prompt))
        edits = [_Edit(*which) for which in product(pictures, range(len(asked)), range(self.samples))]
        rows = [(edit.file, {"text": asked[edit.prompt], "of": edit.picture, "seed": edit.draw}) for edit in edits]

        def make(left: list[int]) -> Iterator[Tensor]:
            pipe, n = self.pipeline(model), at_once(run.batch, model.size, model.size)
            for first in range(0, len(left), n):
                part = [edits[i] for i in left[first : first + n]]
                x = torch.stack([pictures[edit.picture] for edit in part])
                mask = torch.stack([anew[edit.picture] for edit in part]) if anew else None
                rngs = [run.rng(self.name, noise, *edit) for edit in part]
                made = self._batch(pipe, x, mask, [asked[edit.prompt] for edit in part], rngs)
                if over and mask is not None:
                    clean = torch.stack([over[Path(edit.picture).stem] for edit in part])
                    made = torch.where(mask > 0, made, clean)
                yield made

        write_made(rows, out, run, make, model.size, title="edit")

    def pipeline(self, model: LatentDiffusion) -> Any:
        """The diffusers pipeline that edits."""
        from diffusers import StableDiffusionImg2ImgPipeline

        return editing_pipeline(model, StableDiffusionImg2ImgPipeline, self.solver)

    def overlay(self, clean: Path, size: int) -> dict[str, Tensor]:
        """Stem -> the clean picture whose kept part is laid over the edits; empty: edits stay as they are made."""
        return {}

    def _batch(
        self, pipe: Any, x: Tensor, mask: Tensor | None, prompts: list[str], rngs: list[torch.Generator]
    ) -> Tensor:
        extra = {} if mask is None else {"mask_image": mask, "height": x.shape[-2], "width": x.shape[-1]}
        with torch.inference_mode():
            made = pipe(
                prompt=prompts,
                image=x,
                strength=self.strength,
                num_inference_steps=self.sample_steps,
                guidance_scale=self.guidance,
                eta=self.eta,
                generator=rngs,
                output_type="pt",
                **extra,
            ).images
        return made.float().cpu()


@dataclass(kw_only=True)
class Inpaint(Masked, Img2Img):
    """Paint a part of the picture anew, keep the rest (PhotoGuard keeps the face and repaints around it).

    With a 9-channel inpainting UNet the mask and the masked picture are its inputs; with one that takes latents alone,
    the kept part of the latents is put back, noised, at every step (as in diffusers' pipeline).

    Args: those of ``Masked``, and
        overlay_clean: lay the kept part of the clean picture over every edit, so that scores compare what was painted.
            Without it edits are what the pipeline makes, whose kept part is the picture after the autoencoder: with
            whatever was added to it.
    """

    strength: float = 1.0
    overlay_clean: bool = True

    name: ClassVar[str] = "inpaint"
    group: ClassVar[str] = "task"
    version: ClassVar[int] = 3  # 3: overlay_clean
    needs = frozenset({"inpaint", "latent", "text"})

    def __post_init__(self) -> None:
        Img2Img.__post_init__(self)
        Masked.__post_init__(self)

    def pipeline(self, model: LatentDiffusion) -> Any:
        """The pipeline for either kind of UNet."""
        from diffusers import StableDiffusionInpaintPipeline

        unet = model.pipe.unet if model.takes_masks else _without_mask_input(model.pipe.unet)
        return editing_pipeline(model, StableDiffusionInpaintPipeline, self.solver, unet=unet)

    def repainted(self, pictures: Mapping[str, Tensor], masks: Path | None) -> dict[str, Tensor]:
        """As the interface says; ValueError if masks are asked for and there are none."""
        return {name: self.anew(x, name, masks) for name, x in pictures.items()}

    def overlay(self, clean: Path, size: int) -> dict[str, Tensor]:
        """The clean pictures as squares of ``size``, if ``overlay_clean``."""
        if not self.overlay_clean:
            return {}
        return {Path(name).stem: x for name, x in read_folder(clean, size).items()}


def _without_mask_input(unet: Any) -> Any:
    """The same network, weights shared, that says it has 4 input channels: by that number, not by the latents', the
    pipeline of diffusers tells a UNet that takes no mask."""
    same = copy.copy(unet)
    same.register_to_config(in_channels=4)
    return same
