"""The contact sheet: what the pictures of a cell look like, training and generated, arm by arm."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from udpbench.benchmark.arms import ARMS
from udpbench.core.atomic import atomic_write
from udpbench.core.images import to_pil

GAIN = 10.0
COLUMNS = 8
LAYOUT = 2  # raise it with what a sheet makes of its pictures
SHOWS = "shows"  # entry of the PNG
LEAST, MOST = 96, 128  # longest side of a tile in px
_GAP, _LABEL, _CHARACTERS = 4, 150, 20  # px between tiles and of a label, which is broken into lines


def cell_rows(
    training: Mapping[str, Sequence[Tensor]],
    generated: Mapping[str, Sequence[Tensor]],
    gain: float = GAIN,
    edits: bool = False,
    repainted: Sequence[Tensor] = (),
) -> dict[str, list[Tensor]]:
    """Label -> pictures, in the order of the sheet.

    ``training``: "clean" and any of "protected", "purified", ...: CHW in [0,1], the same pictures in the same order;
    each but clean is followed by its difference to clean. ``generated``: arm -> CHW pictures, the same prompts and
    seeds in every arm. ``edits``: nothing was trained, so they are called pictures and edits. ``repainted``: what of
    each picture was painted anew (white), 1HW of 0 and 1; none: all of it.
    """
    if "clean" not in training:
        raise ValueError(f"sheet: training pictures need 'clean', given {', '.join(training) or 'nothing'}")
    given, made = ("pictures", "edited") if edits else ("training", "generated")
    rows: dict[str, list[Tensor]] = {}
    for name, pictures in training.items():
        rows[f"{given}: {name}"] = list(pictures)
        if name != "clean":
            rows[f"{name} - clean, x{gain:g} around grey"] = amplified(training["clean"], pictures, gain)
    if repainted:
        rows["painted anew (white)"] = list(repainted)
    for arm in (*(a for a in ARMS if a in generated), *(a for a in generated if a not in ARMS)):
        rows[f"{made}: {arm}"] = list(generated[arm])
    return rows


def amplified(clean: Sequence[Tensor], changed: Sequence[Tensor], gain: float = GAIN) -> list[Tensor]:
    """0.5 + gain * (changed - clean), clamped to [0,1]; pairs of CHW pictures of equal size."""
    if len(clean) != len(changed):
        raise ValueError(f"sheet: clean and changed must pair up, given {len(clean)} and {len(changed)} pictures")
    if odd := [(tuple(a.shape), tuple(b.shape)) for a, b in zip(clean, changed) if a.shape != b.shape]:
        raise ValueError(f"sheet: a pair differs in size, given {odd[0][0]} and {odd[0][1]}")
    return [(0.5 + gain * (b - a)).clamp(0, 1) for a, b in zip(clean, changed, strict=True)]


def contact_sheet(rows: Mapping[str, Sequence[Tensor]]) -> Image.Image:
    """One row a label, at most ``COLUMNS`` pictures each: CHW in [0,1], any sizes.

    Small ones are enlarged pixel by pixel.
    """
    tiles = {label: [_tile(x) for x in pictures[:COLUMNS]] for label, pictures in rows.items()}
    shown = [tile for row in tiles.values() for tile in row]
    if not shown:
        raise ValueError("sheet: no picture given")
    side = max(max(tile.size) for tile in shown)
    across = max(map(len, tiles.values()))
    size = (_LABEL + across * (side + _GAP) + _GAP, len(tiles) * (side + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for y, (label, row) in enumerate(tiles.items()):
        top = _GAP + y * (side + _GAP)
        draw.multiline_text((_GAP, top), textwrap.fill(label, _CHARACTERS), fill="black", font=font)
        for x, tile in enumerate(row):
            left = _LABEL + _GAP + x * (side + _GAP)
            sheet.paste(tile, (left + (side - tile.width) // 2, top + (side - tile.height) // 2))
    return sheet


def write_sheet(path: Path, rows: Mapping[str, Sequence[Tensor]], shows: str = "") -> None:
    """``contact_sheet`` as a PNG, written beside and renamed; ``shows``: what it says of itself that it shows."""
    sheet, said = contact_sheet(rows), PngInfo()
    said.add_text(SHOWS, shows)
    with atomic_write(path) as beside:
        sheet.save(beside, format="PNG", pnginfo=said)


def already(path: Path, shows: str) -> bool:
    """Whether there is a whole sheet at ``path`` that says that it shows this."""
    with suppress(OSError, SyntaxError, ValueError), Image.open(path, formats=["PNG"]) as sheet:
        said = sheet.info.get(SHOWS)
        sheet.verify()  # the checksums of all its parts
        return said == shows
    return False


def _tile(x: Tensor) -> Image.Image:
    """Longest side 96 to 128 px: whole multiples of small pictures (nearest neighbour), large ones reduced."""
    if x.ndim != 3 or x.shape[0] not in (1, 3):
        raise ValueError(f"sheet: pictures are CHW with 1 or 3 channels, given shape {tuple(x.shape)}")
    picture = to_pil(x.expand(3, -1, -1))
    picture.thumbnail((MOST, MOST))
    longest = max(picture.size)
    scale: float = math.ceil(LEAST / longest)
    if scale * longest > MOST:
        scale = LEAST / longest
    width, height = (max(1, round(scale * side)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.NEAREST)
