"""Real photographs that need no download: those that scikit-image carries."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from udpbench.core import images, pixels
from udpbench.core.component import check_choice, check_numbers
from udpbench.core.folders import Facts, numbered, write_pictures
from udpbench.data.folder import PROMPTS, check_prompts
from udpbench.interfaces import Dataset, Run

# subject: (name in skimage.data, class noun). Public domain or CC0.
SUBJECTS = {
    "cat": ("chelsea", "cat"), "coffee": ("coffee", "cup"), "astronaut": ("astronaut", "woman"),
    "rocket": ("rocket", "rocket"),
}  # fmt: skip


@dataclass(kw_only=True)
class Photos(Dataset):
    """Crops of ONE photograph, which differ in place, zoom and mirroring.

    A real picture to try a protection on, not a subject. All crops come from the same photograph, also the reference
    and validation pictures: they overlap the training pictures, and what a model learned about pose or light cannot be
    told from what it copied. So only scores of pairs (visibility of the perturbation, a purified picture against its
    clean one) and of quality without a reference mean something here; scores that compare sets do not, and data.json
    says so: "truth": null, "sets": false. The pictures do not depend on the run's seed.
    """

    subject: str = "cat"
    size: int = 64
    train: int = 6
    reference: int = 24
    validation: int = 12
    token: str = "sks"
    prompts: Sequence[str] = PROMPTS

    compares_sets = False

    def __post_init__(self) -> None:
        check_choice("data photos: there is no subject", self.subject, SUBJECTS)
        self.sizes = {"train": self.train, "reference": self.reference, "validation": self.validation}
        check_numbers("data photos", least=1, size=self.size, train=self.train)
        check_numbers("data photos", least=0, **self.sizes)
        check_prompts("data photos", self.prompts, "instance")

    def identity(self) -> dict[str, str]:
        """Digest of the photograph, which belongs to the installed scikit-image."""
        return {"photo": hashlib.sha256(images.to_uint8(self._photo()).numpy().tobytes()).hexdigest()}

    def shortest_side(self) -> int:
        return self.size

    def write(self, out: Path, run: Run) -> None:
        photo, facts = self._photo(), self.facts()
        for part, count in self.sizes.items():
            if count:
                crops = (self._crop(photo, part, i) for i in range(count))
                texts = [facts.instance_prompt] * count if part == "train" else None
                write_pictures(out / part, numbered(crops), texts)
        facts.write(out)

    def facts(self) -> Facts:
        noun = SUBJECTS[self.subject][1]
        instance, class_prompt = f"a photo of a {self.token} {noun}", f"a photo of a {noun}"
        return Facts(f"photo {self.subject}", instance, class_prompt, self.prompts, sets=False)

    def _photo(self) -> Tensor:
        """CHW float32 in [0,1]."""
        import skimage.data

        return images.from_pil(Image.fromarray(getattr(skimage.data, SUBJECTS[self.subject][0])()))

    def _crop(self, photo: Tensor, part: str, index: int) -> Tensor:
        """Square of 65 to 95 % of the shorter side, anywhere, mirrored half of the time, resized to C x size x
        size."""
        rng = Run(seed=0).rng("photos", self.subject, part, index)
        zoom, down, right, mirror = torch.rand(4, generator=rng).tolist()
        height, width = photo.shape[1:]
        side = round((0.65 + 0.30 * zoom) * min(height, width))
        top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
        crop = photo[:, top : top + side, left : left + side]
        return pixels.resize((crop.flip(2) if mirror < 0.5 else crop)[None], self.size)[0]
