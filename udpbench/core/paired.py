"""Pictures made elsewhere, paired by their names with those of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from udpbench.core.images import header, list_images, read


def read_paired(folder: Path, names: Sequence[str], images: Sequence[Tensor]) -> list[Tensor]:
    """Pictures made elsewhere, paired with ``names`` by the name without suffix, each of the size of its image (CHW).

    Returns CHW float32 in [0,1] in the order of ``names``; further pictures in the folder are left alone. Raises
    ValueError saying which picture is missing, there twice, or of another size.
    """
    paired = []
    for (path, name), image in zip(_pairs(folder, names), images, strict=True):
        picture = read(path)
        _check_size(path, tuple(picture.shape[-2:]), name, tuple(image.shape[-2:]))
        paired.append(picture)
    return paired


def check_paired(folder: Path, sizes: Mapping[str, tuple[int, int]]) -> None:
    """ValueError as ``read_paired`` would raise for images of these names and sizes (height, width); no picture is
    decoded."""
    for path, name in _pairs(folder, list(sizes)):
        if (found := header(path)).mode:  # else reading it says what is wrong
            _check_size(path, found.size, name, sizes[name])


def _pairs(folder: Path, names: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """The picture in ``folder`` for each of ``names``."""
    there = list_images(folder)
    by_stem, number = {path.stem: path for path in there}, Counter(path.stem for path in there)
    for name in names:
        stem = Path(name).stem
        if number[stem] != 1:
            wanted = f"exactly one picture for {name} (any suffix)"
            raise ValueError(f"images: {folder} must have {wanted}, it has {number[stem]}")
        yield by_stem[stem], name


def _check_size(path: Path, size: tuple[int, ...], name: str, wanted: tuple[int, ...]) -> None:
    if size != wanted:
        got, want = (" x ".join(map(str, pair)) for pair in (size, wanted))
        raise ValueError(f"images: {path} is {got} (height x width), it must be {want} as {name} is")
