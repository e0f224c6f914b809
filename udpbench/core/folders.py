"""Data folders: pictures, captions and the facts in data.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from udpbench.core import images
from udpbench.core.atomic import atomic_text
from udpbench.core.text import json_text

DATA_FACTS = "data.json"
COMPARED = ("reference", "validation", "heldout")  # folders that scores compare with
Named = tuple[str, Tensor]  # stem and picture, CHW in [0,1]
Advance = Callable[[int], None]  # of a progress bar


def write_pictures(
    folder: Path, pictures: Iterable[Named], texts: Iterable[str] | None = None, advance: Advance = lambda n: None
) -> list[str]:
    """Write (stem, CHW in [0,1]) as PNGs, one at a time, and their captions, if any; returns the file names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for stem, picture in pictures:
        names.append(f"{stem}.png")
        images.write_png(folder / names[-1], picture)
        advance(1)
    if texts is not None:
        images.write_metadata(folder, {name: {"text": text} for name, text in zip(names, texts, strict=True)})
    return names


def numbered(pictures: Iterable[Tensor], digits: int = 4) -> Iterator[Named]:
    """(stem, picture) for ``write_pictures``: 0000, 0001, ..."""
    return ((f"{i:0{digits}d}", picture) for i, picture in enumerate(pictures))


@dataclass
class Facts:
    """What data.json says of a data folder.

    Args:
        name: the data in words, for reports.
        instance_prompt: the prompt that names the subject.
        class_prompt: the prompt that names its class only; None: there is none, and nobody needs it.
        prompts: to generate with; ``{instance}`` is replaced by the instance prompt.
        truth: what a judge compares with; None: it is not known.
        sets: whether scores that compare sets mean something.
        geometry: of the pictures: ``square``, or ``native`` where they have the shapes they came in.
        token: the rare word for the subject, where captions need not hold it: protections are given it, too.
    """

    name: str
    instance_prompt: str = ""
    class_prompt: str | None = ""
    prompts: Sequence[str] = ("",)
    truth: Mapping[str, Any] | None = None
    sets: bool = True
    geometry: str = "square"
    token: str = ""

    def filled(self) -> list[str]:
        """The prompts to generate with."""
        return [prompt.replace("{instance}", self.instance_prompt) for prompt in self.prompts]

    def write(self, folder: Path) -> None:
        """Write data.json into ``folder``, whose pictures are there already."""
        facts = {**vars(self), "prompts": self.filled(), "class_prompt": self.class_prompt or ""}
        facts["shared"] = _shared(folder)
        if not self.token:
            del facts["token"]
        atomic_text(folder / DATA_FACTS, f"{json_text(facts, indent=1, sort_keys=True)}\n")


def _shared(folder: Path) -> dict[str, int]:
    """Folder of pictures to compare with -> how many of them are training pictures, if any are.

    One writer wrote them all, so equal pixels are equal files.
    """

    def digests(part: str) -> list[bytes]:
        return [hashlib.sha256(path.read_bytes()).digest() for path in (folder / part).glob("*.png")]

    train = set(digests("train"))
    found = {part: sum(digest in train for digest in digests(part)) for part in COMPARED}
    return {part: n for part, n in found.items() if n}


def pictures_in(folder: Path) -> Path:
    """Where a stage's pictures are: in ``train`` for a data folder, else in the folder itself."""
    return folder / "train" if (folder / DATA_FACTS).exists() else folder


def edits_of(folder: Path) -> dict[str, list[Path]]:
    """The edits in the folder of a stage, by the file names of the pictures that they were made of, in their order."""
    found: dict[str, list[Path]] = {}
    for name, row in sorted(images.read_metadata(folder).items()):
        if "of" in row:
            found.setdefault(row["of"], []).append(folder / name)
    return dict(sorted(found.items()))


def read_data_facts(folder: Path) -> dict[str, Any]:
    """What data.json of a data folder says."""
    return json.loads((folder / DATA_FACTS).read_text(encoding="utf-8"))
