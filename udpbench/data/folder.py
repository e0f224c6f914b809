"""The user's own pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from udpbench.core import images
from udpbench.core.component import check_numbers
from udpbench.core.digest import files_digest
from udpbench.core.folders import Facts, filled, write_pictures
from udpbench.interfaces import Dataset, Run

PROMPTS = ("{instance}", "{instance} on a table", "{instance} in the snow", "{instance} on grass")
_SUCH_AS = "such as 'a photo of a {token} dog'"
# Files that may lie beside pictures: captions, notes, and those of file managers.
_BESIDE = (".jsonl", ".json", ".txt", ".caption", ".csv", ".md", ".yaml", ".yml", ".ini", ".db")


def check_prompts(who: str, prompts: Sequence[str]) -> None:
    """ValueError if there are none to generate with."""
    if not prompts:
        raise ValueError(f"{who}: prompts is empty; give at least one prompt to generate with, such as '{{instance}}'")


@dataclass(kw_only=True)
class Folder(Dataset):
    """Pictures in a folder: any format, mode and size; each keeps its name (as a PNG).

    Hidden files, subfolders, captions and notes are left alone; any other file that is not a picture is an error.

    Args:
        path: the folder. Captions are the "text" of its ``metadata.jsonl``.
        size: crop the centre square and resize it to this side; None: pictures stay as they are.
        prompt: caption of pictures without one; ``{token}`` stands for the rare word that names the subject.
        class_prompt: None: the prompt without the token.
        reference: folder of further pictures of the same subject, for scores that compare sets; None: there are none.
        extra_clean: folder of further clean pictures of the subject that the owner has; None: there are none.
        token: the rare word.
        prompts: to generate with; ``{instance}`` stands for the instance prompt. None: the captions of the reference
            pictures, as style mimicry is judged, or, of a folder without captions, the four of ``PROMPTS``.
    """

    path: str | Path
    size: int | None = None
    prompt: str | None = None
    class_prompt: str | None = None
    reference: str | Path | None = None
    extra_clean: str | Path | None = None
    token: str = "sks"
    prompts: Sequence[str] | None = None

    version = 3  # 3: prompts of the reference pictures
    places = ("path", "reference", "extra_clean")

    def __post_init__(self) -> None:
        if self.size is not None:
            check_numbers("data folder", least=1, size=self.size)
        if self.prompts is not None:
            check_prompts("data folder", self.prompts)
        if self.class_prompt is None and self.prompt is not None and "{token}" not in self.prompt:
            todo = "give class_prompt, or put {token} where the subject's word stands"
            raise ValueError(f"data folder: {todo}; given {self.prompt!r}")
        given = {"train": self.path, "reference": self.reference, "extra_clean": self.extra_clean}
        self.folders = {part: Path(folder).expanduser() for part, folder in given.items() if folder is not None}
        self.subject = self.folders["train"].resolve().name  # pictures in another folder show another subject

    @property
    def sizes(self) -> dict[str, int]:  # type: ignore[override]  # counted when asked, so that naming a folder is cheap
        return {"reference": 0} | {part: len(images.list_images(f)) for part, f in self.folders.items()}

    def identity(self) -> dict[str, str]:
        """Digests of everything that is read; folders of other names with the same files are the same."""
        metadata = self.folders["train"] / images.METADATA
        found = {"pictures": files_digest(self.files() + ([metadata] if metadata.is_file() else []))}
        found |= {part: files_digest(self._pictures(f)) for part, f in self.folders.items() if part != "train"}
        return found | ({"prompts": files_digest([self._told])} if self._told else {})

    def check(self) -> None:
        """ValueError saying which picture cannot be taken or has no caption; no picture is decoded."""
        self._captions(self.files())
        self._instance_and_class()
        self.asked()

    def files(self) -> list[Path]:
        return self._pictures(self.folders["train"])

    def texts(self) -> list[str]:
        instance, _ = self._instance_and_class()
        return [*self._captions(self.files()).values(), *filled(self.asked(), instance)]

    def asked(self) -> list[str]:
        """The prompts to generate with, ``{instance}`` not yet filled in."""
        if not self._told:
            return list(self.prompts or PROMPTS)
        rows = images.read_metadata(self._told.parent)
        texts = [rows.get(path.name, {}).get("text") for path in self._pictures(self._told.parent)]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"data folder: {self._told} has no caption for some pictures; add them, or give prompts")
        return list(dict.fromkeys(map(str, texts)))

    @property
    def _told(self) -> Path | None:
        """The captions that are the prompts to generate with."""
        if self.prompts is not None or "reference" not in self.folders:
            return None
        return path if (path := self.folders["reference"] / images.METADATA).is_file() else None

    def write(self, out: Path, run: Run) -> None:
        captions = self._captions(self.files())
        instance, class_prompt = self._instance_and_class()
        with run.log.bar("read pictures", sum(self.sizes.values())) as advance:
            for part, folder in self.folders.items():
                pictures = self._pictures(folder)
                texts = {"train": list(captions.values()), "extra_clean": [instance] * len(pictures)}.get(part)
                write_pictures(out / part, ((p.stem, self._read(p)) for p in pictures), texts, advance)
        name, sets = f"folder {self.folders['train'].name}", self.reference is not None
        Facts(name, instance, class_prompt, self.asked(), sets=sets).write(out)

    def _pictures(self, folder: Path) -> list[Path]:
        pictures = images.list_images(folder)
        for path in sorted(set(folder.iterdir()) - set(pictures)):
            if not (path.name.startswith(".") or path.is_dir() or path.suffix.lower() in _BESIDE):
                allowed = " ".join(images.SUFFIXES)
                raise ValueError(f"data folder: {path} is not a picture; remove it, allowed are {allowed}")
        first: dict[str, Path] = {}
        for path in pictures:
            if (other := first.setdefault(path.stem, path)) != path:
                raise ValueError(f"data folder: {other} and {path.name} would both become {path.stem}.png; rename one")
        return pictures

    def _read(self, path: Path) -> Tensor:
        picture = images.read(path)
        return picture if self.size is None else images.fit_square(picture, self.size)

    def _captions(self, pictures: list[Path]) -> dict[str, str]:
        rows, metadata = images.read_metadata(self.folders["train"]), self.folders["train"] / images.METADATA
        if unknown := sorted(rows.keys() - {p.name for p in pictures}):
            raise ValueError(f"data folder: {metadata} names {unknown[0]}, but there is no such picture")
        prompt = None if self.prompt is None else self._instance_and_class()[0]
        captions: dict[str, Any] = {path.name: rows.get(path.name, {}).get("text", prompt) for path in pictures}
        if without := [name for name, text in captions.items() if not isinstance(text, str)]:
            path = self.folders["train"] / without[0]
            raise ValueError(f"data folder: {path} has no caption; give prompt, {_SUCH_AS}, or metadata.jsonl")
        return captions

    def _instance_and_class(self) -> tuple[str, str]:
        """The prompt that names the subject and the one that names its class.

        Without ``prompt`` all captions must be the same.
        """
        prompt = self.prompt
        if prompt is None:
            texts = sorted({str(row.get("text")) for row in images.read_metadata(self.folders["train"]).values()})
            if len(texts) != 1:
                found = f"{self.path} has {len(texts)} different captions"
                raise ValueError(f"data folder: give prompt, {_SUCH_AS}: {found}")
            if self.class_prompt is None:
                raise ValueError(f"data folder: give class_prompt, the caption {texts[0]!r} without the subject's word")
            prompt = texts[0]
        general = " ".join(prompt.replace("{token}", " ").split()) if self.class_prompt is None else self.class_prompt
        return prompt.replace("{token}", self.token), general
