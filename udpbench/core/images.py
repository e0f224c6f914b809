"""Pictures on disk and in memory: 8-bit PNG and NCHW float32 in [0,1].

The one listing, the one reading, the one rounding to 8 bits.
"""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from PIL.ImageFile import ImageFile
from torch import Tensor

from udpbench.core.atomic import atomic_text, atomic_write
from udpbench.core.captions import table_rows
from udpbench.core.colours import in_srgb
from udpbench.core.component import check_numbers
from udpbench.core.pixels import fit_square
from udpbench.core.text import CONTROL, json_text, shown_name

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm", ".pgm", ".jfif",
    ".heic", ".heif", ".hif",
)  # fmt: skip
# Pillow's names of their formats. No other is opened, whatever a file is called: for an EPS, Pillow runs Ghostscript.
READ = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM", "HEIF")
NAME_BYTES = 255  # of a file name, on all usual file systems
PIXELS = 128 * 128  # what counts as one picture in a batch
METADATA = "metadata.jsonl"
# What Pillow raises on broken files, over all its decoders.
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
# Texts in a PNG, beside its chunk eXIf, in which Pillow finds an orientation.
_TURNING = ("Raw profile type exif", "XML:com.adobe.xmp")


class OutOfRange(ValueError):
    """A picture whose values nobody can tell the meaning of."""


def list_images(folder: Path) -> list[Path]:
    """The pictures directly in ``folder`` (by suffix; without hidden files and subfolders), sorted by name.

    Raises ValueError if the folder is missing or holds no picture, one whose name would not stay in a line, or a link
    to one that is gone (git-annex, a moved collection): it would be left out without a word.
    """
    folder = Path(folder)
    if not folder.is_dir():
        told = f"{folder} is no folder; give the one it is in" if folder.exists() else f"there is no folder {folder}"
        raise ValueError(f"images: {told}")
    visible = (p for p in folder.iterdir() if not p.name.startswith("."))
    found: list[Path] = []
    others: list[Path] = []
    for path in sorted(p for p in visible if p.suffix.lower() in SUFFIXES):
        (found if path.is_file() else others).append(path)
    if odd := next((p.name for p in found if CONTROL.search(p.name)), ""):
        raise ValueError(f"images: {folder} holds {odd!r}, whose name has control characters; rename it")
    if lost := next((p.name for p in others if p.is_symlink() and not p.exists()), ""):
        raise ValueError(f"images: {folder} holds {shown_name(lost)}, a link to a file that is not there")
    if not found:
        raise ValueError(f"images: no picture in {folder}; allowed are files ending in {' '.join(SUFFIXES)}")
    return found


def read(path: Path) -> Tensor:
    """Read a picture as it should look: CHW float32 RGB in [0,1].

    EXIF rotation is applied, transparency is laid over white, CMYK, palette, grey and 16-bit pictures are converted
    (16-bit grey keeps its precision), of an animation the first frame is taken. An embedded colour profile other than
    sRGB is applied; one that cannot be read is ignored, as browsers do.
    Raises ValueError naming the file if it is missing, empty, truncated or not an image.
    """
    path = Path(path)
    named = path.resolve() if path.is_symlink() else path  # what a person calls it
    if not path.is_file():
        raise ValueError(f"images: there is no file {named}")
    if not path.stat().st_size:
        raise ValueError(f"images: {named} is empty")
    try:
        with open_image(path) as image:
            return from_pil(ImageOps.exif_transpose(image))
    except Image.UnidentifiedImageError as error:
        with path.open("rb") as file:
            start = file.read(12)
        todo = "is not an image that can be read here; convert it to PNG"
        if start[4:] in (b"ftypavif", b"ftypavis"):
            todo = "is AVIF, which this Pillow was built without; pip install --force-reinstall pillow"
        elif start[4:8] == b"ftyp":
            todo = "is HEIC; to read it, pip install pillow-heif (the extra heif of udpbench)"
        raise ValueError(f"images: {named} {todo}") from error
    except Image.DecompressionBombError as error:
        many = str(error).partition(",")[0]
        raise ValueError(f"images: {named}: {many}; if it is meant, raise runtime.max_pixels") from error
    except OutOfRange as error:
        raise ValueError(f"images: {named}: {error}") from error
    except BROKEN as error:
        raise ValueError(f"images: {named} is truncated or broken: {' '.join(str(error).split())}") from error


def readable(path: Path) -> bool:
    """Whether there is a picture that ``read`` would read: not one that a power loss left empty or cut."""
    try:
        read(path)
    except ValueError:
        return False
    return True


def open_image(file: Path | BinaryIO) -> ImageFile:
    """Pillow's image of a file of one of the formats of ``READ``; its pixels are not read yet."""
    return Image.open(file, formats=_formats())


def allow_pixels(most: int) -> None:
    """From now on pictures of more pixels are refused before they are decoded, whoever opens them with Pillow.

    A file of a few bytes may say that it fills the memory.
    """
    Image.MAX_IMAGE_PIXELS = most // 2  # above this Pillow warns, at twice as many it refuses
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def most_pixels() -> int:
    """How many a picture may have: see ``allow_pixels``."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 0)


@cache
def _formats() -> tuple[str, ...]:
    """What of ``READ`` can be opened here."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in READ if name in Image.OPEN)


def from_pil(image: Image.Image) -> Tensor:
    """A Pillow image as CHW float32 RGB in [0,1], converted as ``read`` does (without EXIF rotation)."""
    if image.mode.startswith("I") or image.mode == "F":
        grey = torch.from_numpy(np.array(image, dtype=np.float32))
        grey = grey if image.mode == "F" else grey / 65535
        if not bool(((grey >= 0) & (grey <= 1)).all()):
            raise OutOfRange(f"mode {image.mode} with values outside the 16-bit range (integers) or [0,1] (floats)")
        return grey.expand(3, -1, -1).contiguous()
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        alpha = _tensor(rgba)[3:]
        return _tensor(in_srgb(rgba.convert("RGB"))) * alpha + (1 - alpha)
    return _tensor(in_srgb(image).convert("RGB"))


def _tensor(image: Image.Image) -> Tensor:
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return values.to(torch.float32, memory_format=torch.contiguous_format).div_(255)  # one float copy, not three


def to_uint8(x: Tensor) -> Tensor:
    """Round [0,1] to multiples of 1/255, clamped; same shape, uint8. The only rounding there is."""
    return x.detach().float().mul(255).round().clamp(0, 255).to(torch.uint8)


def as_saved(x: Tensor) -> Tensor:
    """What reading the PNG of ``x`` would give: float32 in [0,1], multiples of 1/255."""
    return to_uint8(x).float() / 255


def to_pil(x: Tensor) -> Image.Image:
    """CHW RGB in [0,1] as an 8-bit Pillow image.

    ValueError for another shape or values that are not finite.
    """
    if x.ndim != 3 or x.shape[0] != 3 or not x.numel():
        raise ValueError(f"images: a picture must be 3 x height x width, given {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("images: the picture holds values that are not finite (NaN or infinity)")
    return Image.fromarray(to_uint8(x).permute(1, 2, 0).cpu().contiguous().numpy())


def write_png(path: Path, x: Tensor) -> None:
    """Write CHW [0,1] as an 8-bit RGB PNG, in an atomic write."""
    with atomic_write(path, synced=False) as beside:
        to_pil(x).save(beside, format="PNG")


def file_name(stem: str, ending: str) -> str:
    """``stem`` and ``ending``; where that is longer than names may be, the end of the stem gives way to its digest."""
    name = os.fsencode(stem + ending)
    if len(name) <= NAME_BYTES:
        return stem + ending
    ending = f"~{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}{ending}"
    return name[: NAME_BYTES - len(os.fsencode(ending))].decode(errors="ignore") + ending


def write_masks(folder: Path, names: Sequence[str], masks: Tensor) -> None:
    """Write (N, 1, H, W) in [0,1] as 1-channel PNGs, each under its picture's name with the suffix ``.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, mask in zip(names, masks, strict=True):
        Image.fromarray(to_uint8(mask[0]).cpu().numpy()).save((folder / name).with_suffix(".png"), format="PNG")


def checked_pictures(who: str, made: Sequence[Tensor], given: Mapping[str, Tensor]) -> list[Tensor]:
    """``made`` as a list, if it holds one picture for each of ``given`` (name -> CHW), in that order.

    Raises ValueError in one line, starting with ``who``, if the number of pictures, or the shape, type or values of one
    are wrong: pictures are CHW of the size given, floating point, finite and in [0,1].
    """
    if not isinstance(made, list | tuple | Tensor):
        raise ValueError(f"{who}: returned {type(made).__name__}; it must return a list of pictures")
    if len(made) != len(given):
        raise ValueError(f"{who}: returned {len(made)} pictures for {len(given)}")
    for (name, clean), x in zip(given.items(), made, strict=True):
        if not isinstance(x, Tensor):
            raise ValueError(f"{who}: returned {type(x).__name__} for {name}; pictures are tensors")
        if x.shape != clean.shape:
            got, want = (" x ".join(map(str, shape)) for shape in (x.shape, clean.shape))
            raise ValueError(f"{who}: returned a picture of {got} for {name}, which is {want}")
        if not x.is_floating_point():
            raise ValueError(f"{who}: returned values of type {x.dtype} for {name}; pictures are float32 in [0,1]")
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{who}: returned values for {name} that are not finite (NaN or infinity)")
        if beyond := beyond_range(x):
            raise ValueError(f"{who}: returned {beyond} for {name}; pictures are in [0,1]")
    return list(made)


def beyond_range(x: Tensor) -> str:
    """Which values a picture has, in words, if some are outside of [0,1] by more than rounding; else nothing."""
    low, high = float(x.min()), float(x.max())
    return f"values from {low:.3g} to {high:.3g}" if low < -1e-3 or high > 1 + 1e-3 else ""


def read_folder(folder: Path, side: int | None = None) -> dict[str, Tensor]:
    """All pictures of a small folder: file name -> CHW float32 in [0,1], sorted by name.

    ``side``: of each the centre square, resized to it, so that one picture at a time is there at its own size. Of a
    large folder: ``iterate``.
    """
    return {path.name: _read(path, side) for path in list_images(folder)}


def iterate(folder: Path, batch: int, side: int | None = None) -> Iterator[tuple[list[str], Tensor]]:
    """Batches (names, NCHW) of pictures of one size each, ``at_once`` of ``batch``; sorted by size, then by name.

    Only one batch is in memory at a time. ``side``: of each picture the centre square, resized to it.
    """
    check_numbers("images", least=1, batch=batch)
    for paths in batches(folder, batch, side):
        yield [path.name for path in paths], torch.stack([_read(path, side) for path in paths])


def batches(folder: Path, batch: int, side: int | None = None) -> Iterator[list[Path]]:
    """The pictures of ``folder`` in the batches of ``iterate``; none is decoded."""
    sized = sorted(((side, side) if side else header(path).size, path) for path in list_images(folder))
    for size, group in groupby(sized, key=lambda item: item[0]):
        paths, most = [path for _, path in group], at_once(batch, *size)
        for first in range(0, len(paths), most):
            yield paths[first : first + most]


def at_once(batch: int, height: int, width: int) -> int:
    """Batch size for pictures of height x width: ``batch`` up to ``PIXELS`` pixels, in proportion fewer above, at least
    one."""
    return max(1, min(batch, room(batch, height, width)))


def room(batch: int, height: int, width: int) -> int:
    """As ``at_once``, without its upper limit: of pictures below ``PIXELS`` pixels more than ``batch``."""
    return max(1, batch * PIXELS // max(1, height * width))


def _read(path: Path, side: int | None) -> Tensor:
    return fit_square(read(path), side) if side else read(path)


def one_side(folder: Path) -> int | None:
    """The side of the pictures of ``folder`` if they are squares of one size; no picture is decoded."""
    sizes = {header(path).size for path in list_images(folder)}
    height, width = sizes.pop()
    return height if height == width and not sizes else None


class Header(NamedTuple):
    """What a picture file says of itself: Pillow's mode, and height and width as it is shown."""

    mode: str
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width


def header(path: Path) -> Header:
    """What a file says of itself, without decoding; ("", 0, 0) where ``read`` will say what is wrong."""
    try:
        with open_image(path) as image:
            # If a PNG has none before its pixels, Pillow decodes all of it to look behind them.
            exif = image.getexif() if image.format != "PNG" or _may_turn(path, image) else {}
            turned = exif.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            size = (image.width, image.height) if turned else (image.height, image.width)
            return Header(image.mode, *size)
    except BROKEN:
        return Header("", 0, 0)


def _may_turn(path: Path, image: ImageFile) -> bool:
    """Whether a PNG says something of its orientation, before its pixels or behind them."""
    if {"exif", *_TURNING} & image.info.keys():
        return True
    names = [name.encode() for name in _TURNING]
    with path.open("rb") as file:
        file.seek(8)  # the signature
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            text = (kind in (b"tEXt", b"zTXt", b"iTXt") and file.read(min(length, max(map(len, names))))) or b""
            if kind == b"eXIf" or any(map(text.startswith, names)):
                return True
            file.seek(length - len(text) + 4, os.SEEK_CUR)  # and the checksum
    return False


def read_metadata(folder: Path) -> dict[str, dict]:
    """Rows of ``metadata.jsonl``: file name -> the row's other entries (such as "text"); {} if there is no such file.

    Raises ValueError as ``captions.table_rows`` does.
    """
    path = Path(folder) / METADATA
    rows = [row for _, row in table_rows(path)] if path.is_file() else []
    return {row.pop("file_name"): row for row in rows}


def write_metadata(folder: Path, rows: dict[str, dict]) -> None:
    """Write ``metadata.jsonl``: one line per file name, {"file_name": name, ...row}."""
    text = "".join(f"{json_text({'file_name': name, **row})}\n" for name, row in rows.items())
    atomic_text(Path(folder) / METADATA, text)
