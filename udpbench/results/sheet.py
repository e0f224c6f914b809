"""The contact sheet: what the pictures of a cell look like, training and generated, arm by arm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from udpbench.benchmark.arms import ARMS
from udpbench.core.atomic import atomic_write
from udpbench.core.images import resize, to_uint8

GAIN = 10.0
COLUMNS = 8
LEAST, MOST = 96, 128  # longest side of a tile in px
_GAP, _LABEL = 4, 150


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
    for a, b in zip(clean, changed, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"sheet: a pair differs in size, given {tuple(a.shape)} and {tuple(b.shape)}")
    return [(0.5 + gain * (b - a)).clamp(0, 1) for a, b in zip(clean, changed, strict=True)]


def contact_sheet(rows: Mapping[str, Sequence[Tensor]], columns: int = COLUMNS) -> Image.Image:
    """One row a label, at most ``columns`` pictures each: CHW in [0,1], any sizes.

    Small ones are enlarged pixel by pixel.
    """
    tiles = {label: [_tile(x) for x in pictures[:columns]] for label, pictures in rows.items()}
    if not any(tiles.values()):
        raise ValueError("sheet: no picture given")
    side = max(max(t.size) for row in tiles.values() for t in row)
    across = max(len(row) for row in tiles.values())
    size = (_LABEL + across * (side + _GAP) + _GAP, len(tiles) * (side + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for y, (label, row) in enumerate(tiles.items()):
        top = _GAP + y * (side + _GAP)
        draw.multiline_text((_GAP, top), _wrap(label, draw, font), fill="black", font=font)
        for x, tile in enumerate(row):
            left = _LABEL + _GAP + x * (side + _GAP)
            sheet.paste(tile, (left + (side - tile.width) // 2, top + (side - tile.height) // 2))
    return sheet


def write_sheet(path: Path, rows: Mapping[str, Sequence[Tensor]], columns: int = COLUMNS) -> None:
    """``contact_sheet`` as a PNG, written beside and renamed."""
    sheet = contact_sheet(rows, columns)
    with atomic_write(path) as beside:
        sheet.save(beside, format="PNG")


def _tile(x: Tensor) -> Image.Image:
    """Longest side 96 to 128 px: whole multiples of small pictures (nearest neighbour), large ones reduced."""
    if x.ndim != 3 or x.shape[0] not in (1, 3):
        raise ValueError(f"sheet: pictures are CHW with 1 or 3 channels, given shape {tuple(x.shape)}")
    longest = max(x.shape[1:])
    if longest > MOST:
        scale = MOST / longest
        x = resize(x[None].float(), (max(1, round(x.shape[1] * scale)), max(1, round(x.shape[2] * scale))))[0]
    picture = Image.fromarray(to_uint8(x.expand(3, -1, -1)).permute(1, 2, 0).contiguous().cpu().numpy())
    if longest >= LEAST:
        return picture
    times = math.ceil(LEAST / longest)
    scale = times if times * longest <= MOST else LEAST / longest
    return picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.NEAREST
    )


def _wrap(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if draw.textlength(longer, font=font) <= _LABEL - 2 * _GAP else [*lines, word]
    return "\n".join(lines)
