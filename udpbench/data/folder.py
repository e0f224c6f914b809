"""The user's own pictures."""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from udpbench.core import images, pixels
from udpbench.core.captions import caption_files, read_captions, unread_captions
from udpbench.core.component import check_choice, check_numbers
from udpbench.core.digest import files_digest
from udpbench.core.folders import Facts, write_pictures
from udpbench.core.text import check_stands
from udpbench.interfaces import Dataset, Run

PROMPTS = ("{instance}", "{instance} on a table", "{instance} in the snow", "{instance} on grass")
GEOMETRIES = ("square", "native")
COMPARED = ("reference", "heldout", "validation")  # sets that no picture may be in twice
FURTHER = (*COMPARED, "extra_clean")
_SUCH_AS = "such as 'a photo of a {token} dog'"
# Names that say nothing of what a folder holds; a number or a letter may come after them (``set_A``, ``images2``).
_GENERIC = {
    "", "set", "part", "split", "train", "training", "test", "val", "validation", "data", "dataset", "input", "clean",
    "instance", "pic", "pics", "img", "imgs", "image", "images", "picture", "pictures", "photo", "photos",
}  # fmt: skip
# Words after the subject's that begin no noun: what is left without the subject's would name no class.
_NO_NOUN = {"in", "on", "at", "by", "of", "with", "and", "or", "from", "under", "near", "as", "is", "for", "to"}
# Files that may lie beside pictures: captions, notes, and those of file managers.
_BESIDE = (".jsonl", ".json", ".txt", ".caption", ".csv", ".md", ".yaml", ".yml", ".ini", ".db")


def check_prompts(who: str, prompts: Sequence[str], *allowed: str) -> None:
    """ValueError if there are none to generate with, or in one of them a ``{word}`` that is none of ``allowed``."""
    if not prompts:
        raise ValueError(f"{who}: prompts is empty; give at least one prompt to generate with, such as '{{instance}}'")
    for prompt in prompts:
        check_stands(f"{who}: prompts", prompt, *allowed)


@dataclass(kw_only=True)
class Folder(Dataset):
    """Pictures in a folder: any format, mode and size; each keeps its name (as a PNG).

    Hidden files, subfolders and notes are left alone; any other file that is not a picture is an error.

    Args:
        path: the folder. Captions may lie in it (see ``core.captions``): ``metadata.jsonl``, ``metadata.csv``,
            ``NAME.txt`` or ``NAME.caption`` (``NAME.png.txt``, too).
        geometry: ``square``: of every picture, training or reference, the centre square, which victims are trained on;
            ``native``: the pictures as they are, of which victims and edits take the centre squares.
        size: resize squares to this side; of ``native`` pictures, reduce the shorter side to it. None: not resized.
        prompt: caption of pictures without one; ``{token}`` stands for the rare word that names the subject, here and
            in captions and ``prompts``.
        class_prompt: None: the prompt without the token, if a noun comes after it.
        reference: folder of further pictures of the same subject, for scores that compare sets; None: there are none.
        heldout: folder of still further ones, which make the arm ``upper_bound``; None: there is no such arm, and
            nothing says whether a clean victim learned.
        validation: folder of still further ones, by which the thief chooses where to stop (``task.curve``); None: he
            chooses by the reference pictures.
        extra_clean: folder of further clean pictures of the subject that the owner has; None: there are none.
        token: the rare word.
        prompts: to generate with; ``{instance}`` stands for the instance prompt. None: the captions of the reference
            pictures, as style mimicry is judged, or, of a folder without captions, the four of ``PROMPTS``.
        subject: what tables call it; None: the folder's name or, if that says nothing (``set_A``, ``images``), with
            that of the folder above, ``PARENT/NAME``.
    """

    path: str | Path
    geometry: str = "square"
    size: int | None = None
    prompt: str | None = None
    class_prompt: str | None = None
    reference: str | Path | None = None
    heldout: str | Path | None = None
    validation: str | Path | None = None
    extra_clean: str | Path | None = None
    token: str = "sks"
    prompts: Sequence[str] | None = None
    subject: str | None = None  # type: ignore[assignment]  # None is replaced

    version = 4  # 4: squares; captions of further conventions, {token} in captions and prompts
    places = ("path", "reference", "heldout", "validation", "extra_clean", "subject")

    def __post_init__(self) -> None:
        check_choice("data folder: unknown geometry", self.geometry, GEOMETRIES)
        if self.size is not None:
            check_numbers("data folder", least=1, size=self.size)
        if self.prompts is not None:
            check_prompts("data folder", self.prompts, "instance", "token")
        check_stands("data folder: prompt", self.prompt or "", "token")
        check_stands("data folder: class_prompt", self.class_prompt or "")
        if not self.token.strip():
            raise ValueError(f"data folder: token must be a word, given {self.token!r}")
        if self.class_prompt is None and self.prompt is not None and "{token}" not in self.prompt:
            todo = "give class_prompt, or put {token} where the subject's word stands"
            raise ValueError(f"data folder: {todo}; given {self.prompt!r}")
        given = {"train": self.path} | {part: getattr(self, part) for part in FURTHER}
        self.folders = {part: Path(folder).expanduser() for part, folder in given.items() if folder is not None}
        self.subject = self.subject or _subject(self.folders["train"])
        self._read: dict[str, dict[str, str]] = {}  # captions by folder

    @property
    def sizes(self) -> dict[str, int]:  # type: ignore[override]  # counted when asked, so that naming a folder is cheap
        return {"reference": 0} | {part: len(images.list_images(f)) for part, f in self.folders.items()}

    def identity(self) -> dict[str, str]:
        """Digests of everything that is read; folders of other names with the same files are the same."""
        found = {part: files_digest(self._pictures(f)) for part, f in self.folders.items() if part != "train"}
        pictures, prompts = self.files(), self._prompt_files
        found["pictures"] = files_digest([*pictures, *caption_files(self.folders["train"], pictures)])
        return found | ({"prompts": files_digest(prompts)} if prompts else {})

    def check(self) -> None:
        """ValueError saying which picture cannot be taken, has no caption or is in two of the compared sets; no picture
        is decoded."""
        self._captions()
        self.facts()
        for path in (path for folder in self.folders.values() for path in self._pictures(folder)):
            if not images.header(path).mode:
                images.read(path)  # says what is wrong with it
        self._check_apart()

    def _check_apart(self) -> None:
        """ValueError for a picture that is in two of the sets that are compared: a model would seem to have learned
        it."""
        seen: dict[int, list[tuple[str, Path]]] = {}  # by size in bytes
        for part in (part for part in COMPARED if part in self.folders):
            for path in self._pictures(self.folders[part]):
                alike = seen.setdefault(path.stat().st_size, [])
                if twice := [(of, p) for of, p in alike if of != part and filecmp.cmp(p, path, shallow=False)]:
                    of, other = twice[0]
                    raise ValueError(f"data folder: {part} has {path}, which is {other} of {of}; they must not overlap")
                alike.append((part, path))

    def files(self) -> list[Path]:
        return self._pictures(self.folders["train"])

    @cached_property
    def _header_sizes(self) -> dict[Path, tuple[int, int]]:
        """(height, width) of every training picture; each file is opened for it once."""
        return {path: images.header(path).size for path in self.files()}

    def shortest_side(self) -> int:
        side = min(map(min, self._header_sizes.values()))
        if self.size is None:
            return side
        return self.size if self.geometry == "square" else min(side, self.size)

    def known_sizes(self) -> dict[str, tuple[int, int]]:
        return {f"{path.stem}.png": self._written(*size) for path, size in self._header_sizes.items()}

    def _written(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of what ``shaped`` makes of a picture."""
        if self.geometry == "square":
            return (self.size or min(height, width),) * 2
        return (height, width) if self.size is None else pixels.reduced_size(height, width, self.size)

    def own_captions(self) -> list[str]:
        return [*self._own_captions("train").values(), *(self.asked() if self._prompt_files else [])]

    def known_captions(self) -> list[str]:
        return list(self._captions().values())

    def facts(self) -> Facts:
        instance, class_prompt = self._instance_and_class()
        name, sets = f"folder {self.folders['train'].name}", self.reference is not None
        return Facts(name, instance, class_prompt, self.asked(), sets=sets, geometry=self.geometry, token=self.token)

    def asked(self) -> list[str]:
        """The prompts to generate with, ``{instance}`` not yet filled in."""
        if not self._prompt_files:
            return [self._named(prompt) for prompt in self.prompts or PROMPTS]
        captions = self._own_captions("reference")
        if len(captions) < len(self._pictures(self.folders["reference"])):
            folder, todo = self.folders["reference"], "add them, or give prompts"
            raise ValueError(f"data folder: {folder} has no caption for some pictures; {todo}")
        return list(dict.fromkeys(captions.values()))

    @property
    def _prompt_files(self) -> list[Path]:
        """The files of captions that are the prompts to generate with."""
        if self.prompts is not None or "reference" not in self.folders:
            return []
        return caption_files(self.folders["reference"], self._pictures(self.folders["reference"]))

    def write(self, out: Path, run: Run) -> None:
        captions, facts, own = self._captions(), self.facts(), self._own_captions("train")
        if 0 < len(own) < len(captions):
            have = f"{len(own)} of {len(captions)} pictures have captions of their own"
            run.log.say(f"{have}; that of the others is data.prompt")
        if unread := unread_captions(self.folders["train"], self.files()):
            run.log.say(unread)
        with run.log.bar("read pictures", sum(self.sizes.values())) as advance:
            for part, folder in self.folders.items():
                pictures = self._pictures(folder)
                texts = {"train": list(captions.values()), "extra_clean": [facts.instance_prompt] * len(pictures)}
                shaped = ((p.stem, self.shaped(images.read(p))) for p in pictures)
                write_pictures(out / part, shaped, texts.get(part), advance)
        facts.write(out)

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

    def shaped(self, x: Tensor) -> Tensor:
        """A picture (CHW), or a plane of one, in the data's geometry and size."""
        if self.geometry == "native":
            return x if self.size is None else pixels.reduced(x, self.size)
        return pixels.centre_square(x) if self.size is None else pixels.fit_square(x, self.size)

    def _named(self, text: str) -> str:
        return text.replace("{token}", self.token)

    def _own_captions(self, part: str) -> dict[str, str]:
        """Captions that lie beside the pictures of a folder, by file name; read once, for many checks ask."""
        if part not in self._read:
            found = read_captions(self.folders[part], self._pictures(self.folders[part]))
            self._read[part] = {name: self._named(text) for name, text in found.items()}
        return self._read[part]

    def _captions(self) -> dict[str, str]:
        """Caption of every training picture, by file name."""
        own, names = self._own_captions("train"), [path.name for path in self.files()]
        if self.prompt is not None:
            own = dict.fromkeys(names, self._named(self.prompt)) | own
        if without := [name for name in names if name not in own]:
            path, todo = self.folders["train"] / without[0], f"give prompt, {_SUCH_AS}, or {Path(without[0]).stem}.txt"
            raise ValueError(f"data folder: {path} has no caption; {todo}")
        return {name: own[name] for name in names}

    def _instance_and_class(self) -> tuple[str, str | None]:
        """The prompt that names the subject and the one that names its class, if there is one.

        Without ``prompt`` all captions must be the same.
        """
        if self.prompt is not None:
            general = _class_of(self.prompt) if self.class_prompt is None else self.class_prompt
            return self._named(self.prompt), general
        texts = {*self._own_captions("train").values()}
        if len(texts) != 1:
            raise ValueError(f"data folder: give prompt, {_SUCH_AS}: {self.path} has {len(texts)} different captions")
        return texts.pop(), self.class_prompt


def _subject(folder: Path) -> str:
    """The folder's name, with those above it as long as names say nothing."""
    path = Path(os.path.abspath(folder))  # not resolved: a link may have the better name
    names = [path.name]
    for parent in path.parents:
        last = names[0].lower()
        if not {last, re.sub(r"[ _-]*([a-z]|\d+)$", "", last)} & _GENERIC or not parent.name:
            break
        names.insert(0, parent.name)
    return "/".join(names)


def _class_of(prompt: str) -> str | None:
    """The prompt without ``{token}``; None if no noun can come after it, so that nothing names the class."""
    after = re.match(r"\s*(\w+)", prompt.rpartition("{token}")[2])
    if after is None or after[1].lower() in _NO_NOUN:
        return None
    return " ".join(prompt.replace("{token}", " ").split())
