"""What a thief paints anew and what he keeps: the settings of inpainting, and of protections against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.component import check_choice, check_numbers
from udpbench.core.digest import files_digest
from udpbench.core.images import header, read
from udpbench.core.memory import queued
from udpbench.core.pixels import fit_square, reduced
from udpbench.interfaces import Dataset, Owner, Protection, Run
from udpbench.models.diffusion import Cond
from udpbench.optim.chains import OFFSET, Inpainting
from udpbench.optim.pgd import Ascent, first_images, pgd
from udpbench.optim.samples import normal

MASK_MODES = ("1", "L", "I", "I;16")  # Pillow's for one channel


@dataclass(kw_only=True)
class Masked:
    """A part of every picture that is painted anew; the rest is kept.

    Args:
        mask: ``data``: the masks that come with the data (white: the object); ``centre``: the middle half of the
            sides; or a folder with one 1-channel PNG per picture, by its name without the suffix and of its size
            (white: the object).
        repaint: ``outside`` the object or ``inside``.
    """

    mask: str = "data"
    repaint: str = "outside"

    name: ClassVar[str]  # in messages and, of protections, in the keys of random numbers
    group: ClassVar[str]  # of the configuration
    places: ClassVar[tuple[str, ...]] = ("mask",)

    def __post_init__(self) -> None:
        check_choice(f"{self.name}: unknown repaint", self.repaint, ("outside", "inside"))
        if self.folder and not self.folder.is_dir():
            raise ValueError(f"{self.name}: mask must be data, centre or a folder of masks, given {self.mask!r}")

    @property
    def folder(self) -> Path | None:
        """That of the masks, if one is given."""
        return None if self.mask in ("data", "centre") else Path(self.mask).expanduser()

    def identity(self) -> dict[str, Any]:
        """``data``, ``centre`` or the digest of a folder of masks."""
        return {"mask": files_digest(sorted(self.folder.glob("*.png"))) if self.folder else self.mask}

    def check_data(self, data: Dataset) -> None:
        """ValueError if the data has no masks and they are asked for, or naming the first picture whose mask is missing
        in the folder of masks or is not of one channel and its size; no picture is decoded."""
        if self.mask == "data" and not data.has_masks:
            raise ValueError(f"{self.name}: {self._no_masks}")
        for path in data.files() if self.folder else ():
            mask = self.folder / f"{path.stem}.png"  # type: ignore[operator]
            if not mask.is_file():
                raise ValueError(f"{self.name}: {path.name} has no mask; put {mask.name} into {self.mask}")
            found, picture = header(mask), header(path)
            if found.mode not in MASK_MODES or found.size != picture.size:
                wanted = f"a mask has one channel and the size of its picture, {picture.width} x {picture.height}"
                raise ValueError(f"{self.name}: {mask} is {found.width} x {found.height}, mode {found.mode}; {wanted}")

    @property
    def _no_masks(self) -> str:
        return f"the data has no masks; give {self.group}.mask=centre or a folder of masks"

    def anew(self, x: Tensor, name: str, masks: Path | None = None, given: Tensor | None = None) -> Tensor:
        """Where the picture ``x`` (CHW) called ``name`` is painted anew, (1, H, W) of 0 and 1.

        The data's masks: in the folder ``masks``, or the picture's own is ``given`` (1: the object). ValueError if they
        are asked for and there are none.
        """
        folder = masks if self.mask == "data" else self.folder
        if self.mask == "centre":
            kept = _centre(x)
        elif self.mask == "data" and given is not None:
            kept = given.to(x.device)
        elif folder is None:
            raise ValueError(f"{self.name}: {self._no_masks}")
        else:
            kept = _object(folder / f"{Path(name).stem}.png", x)
        return 1 - kept if self.repaint == "outside" else kept


class MaskedProtection(Masked, Protection):
    """A protection against inpainting, whose owner expects these masks."""

    group = "protect"
    needs = frozenset({"inpaint", "latent", "text"})

    def anew_of(self, owner: Owner) -> list[Tensor]:
        """Where each of the owner's pictures is painted anew, (1, H, W); ValueError if all or nothing of one is."""
        given: Sequence[Tensor | None] = owner.masks or [None] * len(owner.images)
        pictures = zip(owner.images, owner.names, given, strict=True)
        found = [self.anew(x, name, given=mask) for x, name, mask in pictures]
        for name, anew in zip(owner.names, found, strict=True):
            if anew.all() or not anew.any():
                painted = f"{'all' if anew.all() else 'nothing'} of {name} would be painted anew"
                raise ValueError(f"{self.name}: {painted}; its mask must have two parts")
        return found


@dataclass(kw_only=True)
class MaskedAscent(MaskedProtection, Ascent):
    """One that ascends a function of what the UNet does in the first step of inpainting.

    Args: those of ``Masked``, and
        iterations: of ascent; every one draws new noise.
        sample_steps: of the inpainting that is looked ahead to; the time step is that of its first.
        step_size: length of one step, of 255; None: an eighth of the budget.
        random_start: start from uniform noise within the budget.
    """

    iterations: int
    sample_steps: int
    random_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self.name, least=1, iterations=self.iterations, sample_steps=self.sample_steps)

    def check_model(self, model: Any) -> None:
        model.check_steps(self.name, OFFSET, sample_steps=self.sample_steps)

    def protect(self, owner: Owner, budget: Budget, surrogate: Any, run: Run) -> list[Tensor]:
        """The pictures after the ascent of ``raised``, from random points of what is kept of them."""
        anew, rngs = self.anew_of(owner), [run.rng(self.name, name) for name in owner.names]
        cond = surrogate.embed(self.model_prompts(owner.prompts))

        def loss(x: Tensor, index: list[int]) -> Tensor:
            masks = queued(torch.stack([self.repainted(anew[i], rngs[i]) for i in index]), x.device)
            seen = Inpainting(surrogate, x, masks)
            noise = normal([rngs[i] for i in index], 1, seen.latents)
            run.tally("unet_image", len(x))
            return self.raised(seen, cond, noise, run)

        moved = first_images(owner, budget, run, self.random_start)
        images = [torch.where(m > 0, x, y) for m, x, y in zip(anew, owner.images, moved, strict=True)]
        steps, most = self.lengths(budget, self.iterations), run.grad_batch
        with run.log.bar("perturb", self.iterations, "step") as advance:
            return pgd(images, owner.images, loss, budget, run, steps=steps, most=most, advance=advance)

    def repainted(self, anew: Tensor, rng: torch.Generator) -> Tensor:
        """Where a picture is painted anew in one iteration, (1, H, W), of where it may be."""
        return anew

    def raised(self, seen: Inpainting, cond: Cond, noise: Tensor, run: Run) -> Tensor:
        """What is ascended, (N,): of pictures as the model sees them, its one prompt, and noise like their latents."""
        raise NotImplementedError


def _centre(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    mask = torch.zeros(1, height, width, device=x.device)
    mask[:, height // 4 : height - height // 4, width // 4 : width - width // 4] = 1
    return mask


def _object(file: Path, x: Tensor) -> Tensor:
    """The mask in ``file``, cut and resized as the picture ``x`` (CHW) of its name was."""
    mask, (height, width) = read(file), x.shape[-2:]
    mask = fit_square(mask, width) if height == width else reduced(mask, min(height, width))
    return (mask[:1].to(x.device) > 0.5).float()
