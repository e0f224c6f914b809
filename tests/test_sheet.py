"""The contact sheet: right pictures at the right places, pixels of small ones kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from udpbench.core.images import read
from udpbench.results import sheet as S


def flat(value: float, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.full((3, height, width), value)


def test_amplified_is_ten_times_around_grey_and_clamped() -> None:
    (got,) = S.amplified([flat(0.5)], [flat(0.51)])
    assert torch.allclose(got, flat(0.6))
    assert torch.equal(S.amplified([flat(0.2)], [flat(0.9)])[0], flat(1.0))
    assert torch.equal(S.amplified([flat(0.2)], [flat(0.2)])[0], flat(0.5))


def test_pairs_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="must pair up, given 1 and 2 pictures"):
        S.amplified([flat(0)], [flat(0), flat(0)])
    with pytest.raises(ValueError, match="differs in size"):
        S.amplified([flat(0)], [flat(0, 32)])
    with pytest.raises(ValueError, match="need 'clean', given protected"):
        S.cell_rows({"protected": []}, {})
    with pytest.raises(ValueError, match="no picture given"):
        S.contact_sheet({"a": []})


def test_rows_come_in_order_and_say_the_gain() -> None:
    training = {"clean": [flat(0.5)], "protected": [flat(0.52)], "purified": [flat(0.51)]}
    rows = S.cell_rows(training, {"protected": [flat(0)], "clean": [flat(0)], "pretrained": [flat(0)]}, gain=20)
    assert list(rows) == [
        "training: clean", "training: protected", "protected - clean, x20 around grey", "training: purified",
        "purified - clean, x20 around grey", "generated: pretrained", "generated: clean", "generated: protected",
    ]  # fmt: skip
    assert torch.allclose(rows["protected - clean, x20 around grey"][0], flat(0.9))


def test_edits_are_not_called_trained_on_or_generated() -> None:
    rows = S.cell_rows({"clean": [flat(0.5)], "protected": [flat(0.52)]}, {"clean": [flat(0)]}, edits=True)
    assert list(rows) == [
        "pictures: clean", "pictures: protected", "protected - clean, x10 around grey", "edited: clean",
    ]  # fmt: skip


def test_what_was_painted_anew_stands_above_the_edits() -> None:
    mask = torch.eye(64)[None]
    rows = S.cell_rows({"clean": [flat(0.5)]}, {"clean": [flat(0)]}, edits=True, repainted=[mask])
    assert list(rows) == ["pictures: clean", "painted anew (white)", "edited: clean"]
    assert rows["painted anew (white)"] == [mask]


def test_the_sheet_shows_the_pictures_row_by_row_eight_at_most() -> None:
    red, blue = torch.zeros(3, 64, 64), torch.zeros(3, 64, 64)
    red[0], blue[2] = 1, 1
    sheet = S.contact_sheet({"reds": [red] * 20, "blues": [blue] * 2})
    columns = (sheet.width - S._LABEL - S._GAP) // (128 + S._GAP)
    assert (columns, sheet.height) == (8, 2 * 132 + 4)
    middle = S._LABEL + S._GAP + 64
    assert sheet.getpixel((middle, 60)) == (255, 0, 0)
    assert sheet.getpixel((middle + 7 * 132, 60)) == (255, 0, 0)
    assert sheet.getpixel((middle + 132, 190)) == (0, 0, 255)
    assert sheet.getpixel((middle + 2 * 132, 190)) == (255, 255, 255)
    label = sheet.crop((0, 0, S._LABEL, 132)).convert("L")
    assert label.getextrema()[0] < 60  # something is written there


@settings(max_examples=40)
@given(st.integers(1, 300), st.integers(1, 300))
def test_tiles_of_any_size_have_96_to_128_px(height: int, width: int) -> None:
    tile = S._tile(torch.zeros(3, height, width))
    assert S.LEAST <= max(tile.size) <= S.MOST
    assert min(tile.size) >= 1


@pytest.mark.parametrize(("side", "times"), [(24, 4), (32, 3), (48, 2), (64, 2), (96, 1), (128, 1)])
def test_small_pictures_keep_their_pixels(side: int, times: int) -> None:
    x = torch.randint(0, 256, (3, side, side), generator=torch.Generator().manual_seed(0)).float() / 255
    tile = S._tile(x)
    assert tile.size == (side * times, side * times)
    back = torch.tensor(list(tile.tobytes())).view(side * times, side * times, 3)[::times, ::times].permute(2, 0, 1)
    assert torch.equal(back, (x * 255).round().long())


def test_it_is_written_whole(tmp_path: Path) -> None:
    S.write_sheet(tmp_path / "a" / "sheet.png", {"grey": [torch.full((1, 20, 10), 0.5)]})
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["sheet.png"]
    assert read(tmp_path / "a" / "sheet.png").shape == (3, 108, S._LABEL + 2 * S._GAP + 100)
    with Image.open(tmp_path / "a" / "sheet.png") as image:
        assert image.format == "PNG"


def test_a_whole_sheet_says_what_it_shows(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    assert not S.already(path, "a")
    S.write_sheet(path, {"grey": [flat(0.5)]}, shows="a")
    assert S.already(path, "a")
    assert not S.already(path, "b")
    whole = path.read_bytes()
    for damaged in (whole[:-20], whole[:-60] + bytes([whole[-60] ^ 1]) + whole[-59:], b""):
        path.write_bytes(damaged)
        assert not S.already(path, "a")
