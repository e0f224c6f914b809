"""The user's own pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from udpbench.core import images
from udpbench.core.digest import files_digest
from udpbench.core.folders import _filled, write_facts, write_pictures
from udpbench.interfaces import Run

PROMPTS = ("{instance}", "{instance} on a table", "{instance} in the snow", "{instance} on grass")
_SUCH_AS = "such as 'a photo of a {token} dog'"
# Files that lie beside pictures and are no pictures: captions, notes, and what file managers leave.
_BESIDE = (".jsonl", ".json", ".txt", ".caption", ".csv", ".md", ".yaml", ".yml", ".ini", ".db")


class Folder:
    """Pictures in a folder: any format, mode and size; each keeps its name (as a PNG).

    The captions are the "text" of ``metadata.jsonl``; pictures without one get ``prompt``. In ``prompt``, ``{token}``
    stands for the rare word that names the subject; the class prompt is, unless given, the prompt without it.
    ``reference`` is a folder of further pictures of the same subject, for scores that compare sets; without it there
    are none. ``size`` crops the centre square and resizes it; None keeps every picture as it is. In ``prompts`` (for
    generation), ``{instance}`` stands for the instance prompt; without them they are the captions of the reference
    pictures, as style mimicry is judged, or, of a folder without captions, the four of ``PROMPTS``. Hidden files,
    subfolders, captions and notes are left alone; any other file that is not a picture is an error.
    """

    version: ClassVar[int] = 3  # 3: prompts of the reference pictures
    places: ClassVar[tuple[str, ...]] = ("path", "reference")

    def __init__(
        self,
        path: str | Path,
        size: int | None = None,
        prompt: str | None = None,
        class_prompt: str | None = None,
        reference: str | Path | None = None,
        token: str = "sks",
        prompts: Sequence[str] | None = None,
    ) -> None:
        if size is not None and size < 1:
            raise ValueError(f"data folder: size must be at least 1 pixel or null (as they are), given {size}")
        if prompts is not None and not prompts:
            raise ValueError("data folder: prompts is empty; give at least one prompt to generate with: '{instance}'")
        if class_prompt is None and prompt is not None and "{token}" not in prompt:
            raise ValueError(
                f"data folder: give class_prompt, or put {{token}} where the subject's word stands; given {prompt!r}"
            )
        self.path, self.size, self.prompt, self.class_prompt = Path(path).expanduser(), size, prompt, class_prompt
        self.reference = None if reference is None else Path(reference).expanduser()
        self.token, self.prompts = token, None if prompts is None else list(prompts)

    @property
    def subject(self) -> str:
        """The folder's name: pictures in another folder show another subject."""
        return self.path.resolve().name

    @property
    def sizes(self) -> dict[str, int]:
        """Pictures by folder."""
        return {
            "train": len(images.list_images(self.path)),
            "reference": len(images.list_images(self.reference)) if self.reference is not None else 0,
        }

    def identity(self) -> dict[str, str]:
        """Digests of everything that is read; folders of other names with the same files are the same."""
        metadata = self.path / images.METADATA
        found = {"pictures": files_digest(self._pictures(self.path) + ([metadata] if metadata.is_file() else []))}
        if self.reference is not None:
            found["reference"] = files_digest(self._pictures(self.reference))
        if self._told:
            found["prompts"] = files_digest([self._told])
        return found

    def check(self) -> None:
        """ValueError saying which picture cannot be taken or has no caption; no picture is decoded."""
        self._captions(self.files())
        self._instance_and_class()
        self.asked()

    def files(self) -> list[Path]:
        """The pictures to train on or to edit."""
        return self._pictures(self.path)

    def texts(self) -> list[str]:
        """Every caption and prompt."""
        instance, _ = self._instance_and_class()
        return [*self._captions(self.files()).values(), *_filled(self.asked(), instance)]

    def asked(self) -> list[str]:
        """The prompts to generate with, ``{instance}`` not yet filled in."""
        if not self._told:
            return self.prompts or list(PROMPTS)
        rows = images.read_metadata(self._told.parent)
        texts = [rows.get(path.name, {}).get("text") for path in self._pictures(self._told.parent)]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"data folder: {self._told} has no caption for some pictures; add them, or give prompts")
        return list(dict.fromkeys(map(str, texts)))

    @property
    def _told(self) -> Path | None:
        """The captions that are the prompts to generate with."""
        if self.prompts is not None or self.reference is None:
            return None
        return path if (path := self.reference / images.METADATA).is_file() else None

    def __call__(self, out: Path, run: Run) -> None:
        """Write ``out`` as a data folder: train/, reference/ (if given) and data.json."""
        pictures = self._pictures(self.path)
        captions = self._captions(pictures)
        instance, class_prompt = self._instance_and_class()
        with run.log.bar("read pictures", len(pictures)) as advance:
            names = write_pictures(out / "train", ((p.stem, self._read(p)) for p in pictures), advance)
        rows = {name: {"text": captions[p.name]} for name, p in zip(names, pictures, strict=True)}
        images.write_metadata(out / "train", rows)
        if self.reference is not None:
            write_pictures(out / "reference", ((p.stem, self._read(p)) for p in self._pictures(self.reference)))
        sets = self.reference is not None
        write_facts(out, f"folder {self.path.name}", instance, class_prompt, self.asked(), sets)

    def _pictures(self, folder: Path) -> list[Path]:
        pictures = images.list_images(folder)
        those = set(pictures)
        for path in sorted(folder.iterdir()):
            known = path in those or path.name.startswith(".") or path.is_dir() or path.suffix.lower() in _BESIDE
            if not known:
                raise ValueError(
                    f"data folder: {path} is not a picture; remove it, allowed are {' '.join(images.SUFFIXES)}"
                )
        first: dict[str, Path] = {}
        for path in pictures:
            if (other := first.setdefault(path.stem, path)) != path:
                raise ValueError(f"data folder: {other} and {path.name} would both become {path.stem}.png; rename one")
        return pictures

    def _read(self, path: Path) -> Tensor:
        picture = images.read(path)
        return picture if self.size is None else images.fit_square(picture, self.size)

    def _captions(self, pictures: list[Path]) -> dict[str, str]:
        rows = images.read_metadata(self.path)
        names = {p.name for p in pictures}
        for name in rows:
            if name not in names:
                raise ValueError(
                    f"data folder: {self.path / images.METADATA} names {name}, but there is no such picture"
                )
        prompt = None if self.prompt is None else self._instance_and_class()[0]
        captions: dict[str, str] = {}
        for path in pictures:
            text = rows.get(path.name, {}).get("text", prompt)
            if not isinstance(text, str):
                raise ValueError(f"data folder: {path} has no caption; give prompt, {_SUCH_AS}, or metadata.jsonl")
            captions[path.name] = text
        return captions

    def _instance_and_class(self) -> tuple[str, str]:
        """The prompt that names the subject and the one that names its class.

        Without ``prompt`` all captions must be the same.
        """
        prompt = self.prompt
        if prompt is None:
            texts = sorted({str(row.get("text")) for row in images.read_metadata(self.path).values()})
            if len(texts) != 1:
                raise ValueError(
                    f"data folder: give prompt, {_SUCH_AS}: {self.path} has {len(texts)} different captions"
                )
            if self.class_prompt is None:
                raise ValueError(f"data folder: give class_prompt, the caption {texts[0]!r} without the subject's word")
            prompt = texts[0]
        general = " ".join(prompt.replace("{token}", " ").split()) if self.class_prompt is None else self.class_prompt
        return prompt.replace("{token}", self.token), general
