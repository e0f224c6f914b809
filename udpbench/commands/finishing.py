"""One finished picture: what a method changed, with what the file of the picture held beside RGB.

A finished picture keeps its transparency, resolution and EXIF data, and a grey one stays grey; what is lost is named.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import ExifTags, Image, ImageOps
from PIL.ImageFile import ImageFile
from torch import Tensor

from udpbench.core.codecs import LONGEST
from udpbench.core.colours import has_other_colours
from udpbench.core.digest import file_digest
from udpbench.core.images import BROKEN, as_saved, from_pil, open_image, read, to_pil
from udpbench.core.visibility import survival, visibility

FORMATS: dict[str, dict[str, Any]] = {"png": {}, "webp": {"lossless": True, "exact": True, "quality": 100}}
MOST_DPI = 1e6  # more is no resolution, and PNG holds no number much larger
MOVING = ("GIF", "WEBP", "PNG", "AVIF")  # formats whose further pictures are an animation


def finish(
    file: Path, shaped: Callable[[Tensor], Tensor], clean: Tensor, changed: Tensor, path: Path, codecs: Any
) -> dict[str, Any]:
    """Write the finished picture of ``file``: with the change from ``clean``, which is what ``shaped`` makes of its
    pixels, to ``changed`` (CHW both); returns how visible that is, what of it survives, and what was lost."""
    form, several = path.suffix.removeprefix("."), _holds_several(file)
    with open_image(file) as image:
        lost = _lost(image, several, form, clean)
        kept: dict[str, Any] = {"dpi": dpi} if form == "png" and (dpi := _resolution(image)) else {}
        made, exif = restored(image, shaped, clean, changed)
        kept |= {"exif": exif} if exif else {}
    made.save(path, **FORMATS[form], **kept)
    shown = read(path)
    survives = {
        f"{codec} {quality}": survival(clean, shown, codec, quality) if max(clean.shape) <= LONGEST[codec] else None
        for codec, quality in codecs
    }
    origin = {"file": file.name, "folder": str(file.parent), "digest": file_digest(file)}
    return {**origin, **visibility(clean, shown), "survives": survives, "lost": lost}


def restored(
    image: Image.Image, shaped: Callable[[Tensor], Tensor], clean: Tensor, changed: Tensor
) -> tuple[Image.Image, bytes]:
    """The changed picture with the transparency of ``image``, grey if that is, upright, and its EXIF data without the
    orientation.

    The change is added to the colours under the transparency (``_below``), so it is there for who drops the alpha
    plane, too. Of a grey picture, methods that keep a budget change all channels alike (``Budget.project``); of what
    others do, the mean over the channels is kept.
    """
    upright = ImageOps.exif_transpose(image)
    if grey := _is_grey(upright):
        changed = changed.mean(0, keepdim=True).expand(3, -1, -1)
    if not upright.has_transparency_data:
        return to_pil(changed).convert("L" if grey else "RGB"), _exif_of(upright)
    colours, alpha = _below(upright.convert("RGBA"), shaped, clean)
    made = to_pil(colours + changed - clean).convert("L" if grey else "RGB")
    made.putalpha(to_pil(alpha.expand(3, -1, -1)).getchannel(0))
    return made, _exif_of(upright)


def _below(rgba: Image.Image, shaped: Callable[[Tensor], Tensor], clean: Tensor) -> tuple[Tensor, Tensor]:
    """Colours (CHW in [0,1]) and alpha (1HW, as saved) that show as ``clean`` over white: as what the method was given.

    The colours are the picture's own, as ``shaped`` makes them, wherever these do. At the edges of a resized picture
    they do not: colours that were hidden are mixed in. There they follow from ``clean`` and alpha. Alpha is what
    ``shaped`` makes of it, or more where no colour below it could show as dark as ``clean`` (bicubic resizing
    overshoots). A change d of these colours, as saved, is a change by at most |d| over any ground, and over white it is
    measured from ``clean``.
    """
    plane = rgba.getchannel("A")
    plane.info.pop("icc_profile", None)  # of the colours
    alpha = as_saved(torch.maximum(shaped(from_pil(plane))[:1], 1 - clean.amin(0, keepdim=True)))
    own = as_saved(shaped(from_pil(rgba.convert("RGB"))))
    shows = ((own * alpha + 1 - alpha - clean).abs() <= 0.501 / 255).all(0, keepdim=True)  # but for rounding
    solved = ((clean - 1 + alpha) / alpha.clamp(min=1 / 255)).clamp(0, 1)
    return torch.where(shows, own, solved), alpha


def _resolution(image: ImageFile) -> tuple[float, float] | None:
    """Dots per inch across and down that a file states; None where it states none: Pillow then has one of its own for
    TIFF (1) and for JPEG with EXIF data (72)."""
    if image.format in ("TIFF", "JPEG", "MPO") and image.info.get("jfif_unit") not in (1, 2):
        with suppress(*BROKEN):
            if ExifTags.Base.XResolution not in image.getexif():
                return None
    across, down = map(float, image.info.get("dpi", (0, 0)))
    return (across, down) if min(across, down) > 1 and max(across, down) < MOST_DPI else None


def _exif_of(image: Image.Image) -> bytes:
    """A picture's EXIF data; none if they are broken."""
    with suppress(*BROKEN):
        return found.tobytes() if len(found := image.getexif()) else b""
    return b""


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")


def _holds_several(file: Path) -> bool:
    """Whether there is a second picture in a file, which can be found."""
    with open_image(file) as image:
        try:
            image.seek(1)
        except BROKEN:
            return False
    return True


def _lost(image: ImageFile, several: bool, form: str, shown: Tensor) -> list[str]:
    """What of a picture file a finished picture, of the size of ``shown``, does not have; ``several``: the file holds
    more than one."""
    deep = image.mode == "I" or image.mode.startswith("I;16") or ";16" in str(image.tile)
    height, width = shown.shape[-2:]
    found = {
        f"{image.width} x {image.height} px: now {width} x {height} (data.size, data.geometry)": {height, width}
        != {image.height, image.width},
        "an animation: its first frame is kept": several and image.format in MOVING,
        "further pictures in the file: the first is kept": several and image.format not in MOVING,
        "16 bits a channel: 8 are kept": deep,
        "floating-point values: 8 bits are kept": image.mode == "F",
        "black and white in 1 bit: now 8-bit grey": image.mode == "1",
        f"colours for print or of another space ({image.mode}): now RGB": image.mode in ("CMYK", "YCbCr", "LAB", "HSV"),
        f"one channel of grey: {form} has three equal ones": form == "webp" and _is_grey(image),
        "colour profile: applied, colours are now sRGB": has_other_colours(image),
        f"resolution (dpi): {form} has none": form != "png" and _resolution(image) is not None,
    }
    return [text for text, is_so in found.items() if is_so]
