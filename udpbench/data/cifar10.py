"""CIFAR-10 (Krizhevsky, 2009): 32 x 32 photographs of ten classes, from files that are already there."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10

from udpbench.core import images
from udpbench.core.component import check_numbers
from udpbench.core.digest import files_digest
from udpbench.core.folders import Facts, numbered, write_pictures
from udpbench.interfaces import Dataset, Run

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IN_SPLIT = {"train": 5000, "test": 1000}  # pictures of each class
# What torchvision, tarfile, pandas and Pillow raise on broken files.
_BROKEN = (tarfile.TarError, zlib.error, RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError)
Rows = Iterator[tuple[int, Callable[[], Tensor]]]  # class index, and what reads the picture (CHW float32 [0,1])


@dataclass(kw_only=True)
class Cifar10(Dataset):
    """Pictures of CIFAR-10 without words: every caption and prompt is empty.

    Args:
        root: holds one of three layouts: torchvision's (``cifar-10-batches-py`` or its inside, checksums verified),
            Hugging Face's parquet files (``train*.parquet``, ``test*.parquet``, anywhere below), or one archive of
            pictures for each split and class (``train-cat.tar.gz``, anywhere below; JPEG copies are called "CIFAR-10
            (JPEG)", as their pixels are not the originals').
        classes: names, or None for all ten.
        train, validation: how many pictures, taken in turn from the training split.
        reference, heldout: how many, from the test split; reference None: all that the held-out ones leave. Always the
            first ones in the order of the files, the classes in turn, so that classes are equally frequent and no
            picture is in two sets.
        per_class: the four numbers are for each class.
        download: let torchvision download what is missing; otherwise nothing is.
    """

    root: str | Path
    classes: Sequence[str] | None = None
    train: int = 1000
    reference: int | None = 1000
    validation: int = 0
    heldout: int = 1000
    per_class: bool = False
    download: bool = False

    version = 2  # 2: held-out pictures are of the test split
    places = ("root", "download")

    def __post_init__(self) -> None:
        chosen = self.classes
        if chosen is not None and not (isinstance(chosen, list | tuple) and set() < set(chosen) <= set(CLASSES)):
            allowed = f"null (all) or among {', '.join(CLASSES)}"
            raise ValueError(f"data cifar10: classes must be {allowed}, given {chosen!r}")
        check_numbers("data cifar10", least=1, train=self.train)
        others = {"reference": self.reference or 0, "validation": self.validation, "heldout": self.heldout}
        check_numbers("data cifar10", least=0, **others)
        self.names = [name for name in CLASSES if chosen is None or name in chosen]
        self.subject = "" if chosen is None else "+".join(self.names)
        factor = len(self.names) if self.per_class else 1
        self.sizes = {part: n * factor for part, n in {"train": self.train, **others}.items()}
        if self.reference is None:
            left = IN_SPLIT["test"] * len(self.names) - self.sizes["heldout"]
            if left < 0:
                has = f"the test split has {IN_SPLIT['test'] * len(self.names)} pictures of {', '.join(self.names)}"
                raise ValueError(f"data cifar10: {has}, heldout takes {self.sizes['heldout']}; give a smaller heldout")
            self.sizes["reference"] = left

    def identity(self) -> dict[str, str]:
        """Digest of the files that are read; ValueError saying what to download if there are none."""
        return {"files": files_digest([file for files in self._files()[1].values() for file in files])}

    def write(self, out: Path, run: Run) -> None:
        layout, files = self._files()
        with run.log.bar("read pictures", sum(self.sizes.values()), "img") as advance:
            for split, parts in (("train", ("train", "validation")), ("test", ("reference", "heldout"))):
                wanted = [self.sizes[part] for part in parts]
                chosen = iter(self._in_turn(split, READERS[layout](files[split]), sum(wanted)))
                for part, n in zip(parts, wanted, strict=True):
                    if n:
                        pictures = (next(chosen)() for _ in range(n))
                        write_pictures(out / part, numbered(pictures, 5), [""] * n, advance)
        kind = "CIFAR-10 (JPEG)" if layout == "archives" else "CIFAR-10"
        Facts(f"{kind} {self.subject}".strip()).write(out)

    def _files(self) -> tuple[str, dict[str, list[Path]]]:
        """The layout that is there, and its files by split."""
        root = Path(self.root).expanduser()
        found = _find(root, self.names)
        if found is None and self.download:
            try:
                CIFAR10(str(root), download=True)
            except (OSError, RuntimeError) as error:  # no network; not the file that was expected
                reason = " ".join(str(error).split())
                raise ValueError(f"data cifar10: {CIFAR10.url} cannot be downloaded to {root}: {reason}") from error
            found = _find(root, self.names)
        if found is None:
            todo = f"unpack {CIFAR10.url} (md5 {CIFAR10.tgz_md5}) there, or say data.download=true"
            raise ValueError(f"data cifar10: no CIFAR-10 in {root}; {todo}")
        return found

    def _in_turn(self, split: str, rows: Rows, n: int) -> list[Callable[[], Tensor]]:
        """The first ``n`` pictures of the chosen classes, the classes in turn."""
        by_class: dict[int, list[Callable[[], Tensor]]] = {CLASSES.index(name): [] for name in self.names}
        for label, read in rows:
            if label in by_class:
                by_class[label].append(read)
        columns = list(by_class.values())
        for i, (name, column) in enumerate(zip(self.names, columns, strict=True)):
            wanted = -(-(n - i) // len(columns))
            if len(column) < wanted:
                asked = f"{wanted} pictures of {name} are asked of the {split} split"
                raise ValueError(f"data cifar10: {asked}, it has {len(column)}")
        return [columns[i % len(columns)][i // len(columns)] for i in range(n)]


# -- layouts -----------------------------------------------------------------------------------------------------------


def _find(root: Path, classes: Sequence[str]) -> tuple[str, dict[str, list[Path]]] | None:
    """The first layout of which both splits are in ``root``."""
    for layout in READERS:
        files = {split: [f for f in _files_of(layout, root, split, classes) if f.is_file()] for split in IN_SPLIT}
        if all(files.values()):
            return layout, files
    return None


def _files_of(layout: str, root: Path, split: str, classes: Sequence[str]) -> list[Path]:
    if layout == "parquet":
        return sorted(root.rglob(f"{split}*.parquet"))
    if layout == "archives":
        return [path for name in classes for path in sorted(root.rglob(f"{split}-{name}.tar.gz"))]
    inside = root / CIFAR10.base_folder
    names = CIFAR10.train_list if split == "train" else CIFAR10.test_list
    return [(inside if inside.is_dir() else root) / name for name, _ in names]


class _Inside(CIFAR10):
    """torchvision's reader, which verifies the checksums of files before it unpickles them, of a folder of any name."""

    base_folder = ""


def _read_batches(files: Sequence[Path]) -> Rows:
    train = files[0].name != CIFAR10.test_list[0][0]
    data = _whole(files[0].parent, _Inside, files[0].parent, train)
    for row, label in zip(data.data, data.targets, strict=True):
        yield label, partial(_from_row, row)


def _from_row(row: np.ndarray) -> Tensor:
    return torch.from_numpy(row).permute(2, 0, 1).float() / 255


def _read_parquet(files: Sequence[Path]) -> Rows:
    import pandas

    for file in files:
        try:
            table = _whole(file, pandas.read_parquet, file)
        except ImportError as error:
            raise ValueError(f"data cifar10: reading {file} needs pyarrow: pip install pyarrow") from error
        for picture, label in zip(table["img" if "img" in table else "image"], table["label"], strict=True):
            yield label, partial(_whole, file, _decode, picture["bytes"])


def _read_archives(files: Sequence[Path]) -> Rows:
    for file in files:
        label = CLASSES.index(file.name.removesuffix(".tar.gz").split("-")[1])
        for data in _whole(file, _unpacked, file):
            yield label, partial(_whole, file, _decode, data)


def _unpacked(file: Path) -> list[bytes]:
    """The files in an archive, by their names."""
    with tarfile.open(file) as archive:
        members = sorted((m for m in archive if m.isfile()), key=lambda m: m.name)
        return [stream.read() for m in members if (stream := archive.extractfile(m))]


def _decode(data: bytes) -> Tensor:
    return images.from_pil(images.open_image(io.BytesIO(data)))


def _whole(file: Path, read: Callable[..., Any], *arguments: Any) -> Any:
    """``read(*arguments)``, which reads ``file``; ValueError naming the file if it is broken."""
    try:
        return read(*arguments)
    except _BROKEN as error:
        raise ValueError(f"data cifar10: {file} cannot be read: {' '.join(str(error).split())}") from error


READERS = {"batches": _read_batches, "parquet": _read_parquet, "archives": _read_archives}
