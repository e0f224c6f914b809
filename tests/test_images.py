"""Pictures: every mode and format a user may have, broken files, the one rounding, the one resize."""

import contextlib
import io
import os
import struct
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageCms

from udpbench.commands.finishing import restored
from udpbench.core import colours, images, pixels
from udpbench.core.digest import files_digest
from udpbench.interfaces import Run

# Each example writes its own files over the last ones, so sharing the folder is safe.
quick = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes = st.tuples(st.integers(1, 20), st.integers(1, 20))


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def pil(height: int = 8, width: int = 12, seed: int = 0) -> Image.Image:
    return images.to_pil(picture(height, width, seed))


@quick
@given(sizes, st.integers(0, 99))
def test_written_and_read_again_is_the_rounded_picture(tmp_path, size, seed):
    x = picture(*size, seed)
    images.write_png(tmp_path / "a.png", x)
    again = images.read(tmp_path / "a.png")
    assert again.dtype == torch.float32
    assert torch.equal(again, images.as_saved(x))
    assert (again - x).abs().max() <= 0.5 / 255 + 1e-6
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_every_level_survives_and_values_outside_are_clamped(tmp_path):
    levels = torch.arange(256).float().div(255).expand(3, 1, -1)
    images.write_png(tmp_path / "a.png", levels)
    assert torch.equal(images.read(tmp_path / "a.png"), levels)
    assert images.to_uint8(torch.tensor([-1.0, 0.4 / 255, 0.6 / 255, 2.0])).tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize(
    "bad", [torch.rand(1, 4, 4), torch.rand(2, 3, 4, 4), torch.full((3, 4, 4), float("nan")), torch.rand(3, 0, 4)]
)
def test_what_is_no_picture_is_not_written(tmp_path, bad):
    with pytest.raises(ValueError, match=r"images: .*(3 x height x width|finite)"):
        images.write_png(tmp_path / "a.png", bad)
    assert not list(tmp_path.iterdir())


@quick
@given(
    st.sampled_from(["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I", "F"]), sizes
)
def test_every_mode_and_size_becomes_rgb(tmp_path, mode, size):
    source = pil(*size)
    if mode == "LAB":
        transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        source = ImageCms.applyTransform(source, transform)
    elif mode == "PA":
        source = source.convert("LA").convert("PA")
    elif mode in ("I", "I;16"):
        source = Image.fromarray(np.asarray(source.convert("L"), np.uint16) * 257).convert(mode)
    elif mode == "F":
        source = Image.fromarray(np.asarray(source.convert("L"), np.float32) / 255)
    else:
        source = source.convert(mode)
    suffix = {"1": "png", "L": "jpg", "P": "gif", "LA": "png", "RGB": "webp", "RGBA": "webp", "I;16": "png"}.get(
        mode, "tif"
    )
    if mode in ("PA", "HSV", "YCbCr"):  # no format stores them, or Pillow 12 does not read its own TIFF of it
        x = images.from_pil(source)
    else:
        source.save(tmp_path / f"a.{suffix}")
        x = images.read(tmp_path / f"a.{suffix}")
    assert x.shape == (3, *size)
    assert x.dtype == torch.float32
    assert x.min() >= 0
    assert x.max() <= 1


def test_grey_16_bit_keeps_its_precision_and_is_not_clipped(tmp_path):
    values = np.array([[0, 1, 256, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    got = images.read(tmp_path / "a.png")
    torch.testing.assert_close(got[0], torch.from_numpy(values.astype(np.float32)) / 65535)
    assert torch.equal(got[0], got[2])


def test_values_beyond_16_bits_are_an_error(tmp_path):
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: .*16-bit range"):
        images.read(tmp_path / "a.tif")


def test_transparency_is_laid_over_white(tmp_path):
    Image.new("RGBA", (2, 1), (255, 0, 0, 51)).save(tmp_path / "a.png")
    torch.testing.assert_close(images.read(tmp_path / "a.png")[:, 0, 0], torch.tensor([1.0, 0.8, 0.8]))
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.save(tmp_path / "p.png", transparency=1)
    assert torch.equal(images.read(tmp_path / "p.png"), torch.ones(3, 1, 2))


def test_cmyk_jpeg_looks_as_its_rgb(tmp_path):
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    flat.convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.mode == "CMYK"
    want = torch.tensor([200, 100, 50]).view(3, 1, 1) / 255
    assert (images.read(tmp_path / "a.jpg") - want).abs().max() < 4 / 255


def profile(description: str, swap: bool) -> bytes:
    """An sRGB profile under another description; with ``swap``, red stands for blue and blue for red."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {data[i : i + 4].decode(): i for i in range(132, 132 + 12 * int.from_bytes(data[128:132], "big"), 12)}
    at = int.from_bytes(data[tags["desc"] + 4 : tags["desc"] + 8], "big")
    text = "sRGB built-in".encode("utf-16-be")
    where = data.find(text, at)
    assert where > 0
    data[where : where + len(text)] = description.ljust(len("sRGB built-in")).encode("utf-16-be")
    if swap:
        red, blue = (slice(tags[k] + 4, tags[k] + 8) for k in ("rXYZ", "bXYZ"))
        data[red], data[blue] = data[blue], data[red]
    return bytes(data)


def grey_profile() -> bytes:
    """A profile of linear grey (ICC.1:2001-04): a curve of gamma 1 and the white of D50."""
    white = b"".join(round(x * 65536).to_bytes(4, "big") for x in (0.9642, 1.0, 0.8249))
    tags = {
        b"desc": b"desc" + bytes(4) + (12).to_bytes(4, "big") + b"linear grey\0" + bytes(80),
        b"wtpt": b"XYZ " + bytes(4) + white,
        b"kTRC": b"curv" + bytes(4) + (1).to_bytes(4, "big") + (256).to_bytes(2, "big") + bytes(2),
        b"cprt": b"text" + bytes(4) + b"none" + bytes(4),
    }
    table, data = len(tags).to_bytes(4, "big"), b""
    for name, content in tags.items():
        place = 132 + 12 * len(tags) + len(data)
        table += name + place.to_bytes(4, "big") + len(content).to_bytes(4, "big")
        data += content
    head = (128 + len(table) + len(data)).to_bytes(4, "big") + bytes(4) + bytes.fromhex("02400000")
    head += b"mntrGRAYXYZ " + bytes(12) + b"acsp" + bytes(28) + white
    return head.ljust(128, b"\0") + table + data


def test_the_profile_of_a_grey_picture_is_not_that_of_its_transparency(tmp_path):
    grey = Image.new("L", (8, 8), 100)
    grey.save(tmp_path / "plain.png", icc_profile=grey_profile())
    assert float(images.read(tmp_path / "plain.png")[0, 0, 0] * 255) > 150, "the profile means something"
    Image.merge("LA", (grey, grey)).save(tmp_path / "clear.png", icc_profile=grey_profile())
    clean = images.read(tmp_path / "clear.png")
    with images.open_image(tmp_path / "clear.png") as image:
        made, _ = restored(image, lambda x: x, clean, clean)
    assert made.getchannel("A").getextrema() == (100, 100)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_colour_profiles_are_applied(tmp_path, suffix):
    x = torch.tensor([0.9, 0.5, 0.1])[:, None, None].expand(3, 16, 16)
    path = tmp_path / f"a{suffix}"
    images.to_pil(x).save(path, icc_profile=profile("Swapped", swap=True), quality=100)
    torch.testing.assert_close(images.read(path), x.flip(0), atol=0.02, rtol=0)


def test_transparent_pictures_have_profiles_too(tmp_path):
    rgba = np.full((8, 8, 4), (230, 128, 25, 128), np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png", icc_profile=profile("Swapped", swap=True))
    want = torch.tensor([25, 128, 230]) / 255 * (128 / 255) + 127 / 255
    torch.testing.assert_close(images.read(tmp_path / "a.png")[:, 0, 0], want, atol=0.01, rtol=0)


@pytest.mark.parametrize("data", [profile("sRGB of a camera"[:13], swap=True), b"no profile", profile("x", True)[:200]])
def test_srgb_and_broken_profiles_leave_every_level_as_it_is(tmp_path, data):
    x = images.as_saved(torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)))
    images.to_pil(x).save(tmp_path / "a.png", icc_profile=data)
    assert torch.equal(images.read(tmp_path / "a.png"), x)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    upright = torch.zeros(3, 16, 32)
    upright[0, :8, :16] = 1  # red: top left
    upright[1, :8, 16:] = 1  # green: top right
    upright[2, 8:, :16] = 1  # blue: bottom left
    flip = {1: (), 2: (2,), 3: (1, 2), 4: (1,), 5: (), 6: (1,), 7: (1, 2), 8: (2,)}[orientation]
    stored = upright.transpose(1, 2) if orientation > 4 else upright
    stored = stored.flip({5: (), 6: (1,), 7: (1, 2), 8: (2,)}[orientation] if orientation > 4 else flip)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if suffix in ("jpg", "webp") else {}
    images.to_pil(stored).save(tmp_path / f"a.{suffix}", exif=exif, **options)
    got = images.read(tmp_path / f"a.{suffix}")
    assert got.shape == upright.shape
    assert (got - upright)[:, 2:6, 2:14].abs().max() < 0.15
    assert (got - upright)[:, 10:14, 18:30].abs().max() < 0.15
    assert (got - upright)[:, 10:14, 2:14].abs().max() < 0.15


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def turned(where: str) -> dict[str, bytes]:
    """Chunks that say "rotated by 90 degrees" in the words of several programs, before or behind the pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    text = f"\nexif\n{len(raw):8d}\n{raw.hex()}\n".encode()
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    return {
        "eXIf": chunk(b"eXIf", raw.removeprefix(b"Exif\0\0")),
        "ImageMagick": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)),
        "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        "none": chunk(b"tEXt", b"date:create\0today"),
    }


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("how", ["eXIf", "ImageMagick", "XMP", "none"])
def test_a_png_s_size_is_known_as_it_is_read_wherever_its_orientation_stands(tmp_path, how, behind):
    file = tmp_path / "a.png"
    images.to_pil(torch.zeros(3, 20, 40)).save(file)
    plain = file.read_bytes()
    at = len(plain) - 12 if behind else 33  # before the end, or behind the header
    file.write_bytes(plain[:at] + turned(how)[how] + plain[at:])
    read = images.read(file).shape[-2:]
    assert images.header(file)[1:] == tuple(read) == ((20, 40) if how == "none" else (40, 20))


def test_only_a_profile_that_is_not_srgb_has_other_colours():
    plain = Image.new("RGB", (4, 4))
    assert not colours.has_other_colours(plain)
    plain.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert not colours.has_other_colours(plain)
    plain.info["icc_profile"] = b"broken"
    assert not colours.has_other_colours(plain)
    plain.info["icc_profile"] = profile("Swapped", swap=True)
    assert colours.has_other_colours(plain)
    grey = Image.new("P", (4, 4))
    assert not colours.has_other_colours(grey)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, about the damage
@quick
@given(st.sampled_from(["png", "jpg", "webp", "gif", "tif", "bmp"]), st.floats(0, 0.9), st.integers(0, 9))
def test_truncated_files_give_one_line_with_their_name(tmp_path, suffix, share, seed):
    buffer = io.BytesIO()
    pil(24, 24, seed).save(buffer, format={"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    (tmp_path / f"cut.{suffix}").write_bytes(buffer.getvalue()[: int(share * len(buffer.getvalue()))])
    with pytest.raises(ValueError, match=rf"cut\.{suffix}") as error:
        images.read(tmp_path / f"cut.{suffix}")
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, about the damage
@quick
@given(st.sampled_from(["png", "jpg", "webp", "gif", "tif", "bmp"]), st.integers(0, 10**6), st.integers(0, 255))
def test_damaged_files_are_read_or_refused_never_anything_else(tmp_path, suffix, place, byte):
    buffer = io.BytesIO()
    pil(16, 16).save(buffer, format={"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    content = bytearray(buffer.getvalue())
    content[place % min(len(content), 200)] = byte
    path = tmp_path / f"damaged.{suffix}"
    path.write_bytes(content)
    x = None
    with contextlib.suppress(ValueError):
        x = images.read(path)
    assert x is None or (x.ndim == 3 and x.shape[0] == 3 and torch.isfinite(x).all())


def test_empty_missing_and_foreign_files_are_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    for name, reason in (("empty.png", "is empty"), ("text.jpg", "is not an image"), ("none.png", "there is no file")):
        with pytest.raises(ValueError, match=reason) as error:
            images.read(tmp_path / name)
        assert name in str(error.value)


def test_a_postscript_file_is_not_opened_whatever_its_name(tmp_path, monkeypatch):
    """Pillow would have Ghostscript run it."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.format == "EPS"
    with pytest.raises(ValueError, match=r"a\.png is not an image that can be read here; convert it to PNG"):
        images.read(tmp_path / "a.png")
    assert images.header(tmp_path / "a.png") == ("", 0, 0)


def test_heic_needs_a_package_and_avif_is_read(tmp_path, monkeypatch):
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    images._formats.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # not installed
    with pytest.raises(ValueError, match=r"phone\.jpg is HEIC; to read it, pip install pillow-heif") as error:
        images.read(tmp_path / "phone.jpg")
    assert "\n" not in str(error.value)
    asked = []
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=lambda: asked.append("heif")))
    images._formats.cache_clear()
    images._formats()
    assert asked == ["heif"], "with the package, Pillow is told of it"
    images._formats.cache_clear()
    Image.new("RGB", (8, 6), (250, 10, 10)).save(tmp_path / "a.avif", quality=100)
    assert images.read(tmp_path / "a.avif")[0].mean() > 0.9
    monkeypatch.setattr(images, "_formats", lambda: ("PNG",))
    with pytest.raises(ValueError, match=r"a\.avif is AVIF, which this Pillow was built without"):
        images.read(tmp_path / "a.avif")


def test_heic_is_read_upright_with_the_package(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    images._formats.cache_clear()
    heif.register_heif_opener()
    ramp = Image.fromarray(np.linspace(0, 255, 96 * 64).reshape(64, 96).astype(np.uint8)).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    for name in ("phone.heic", "phone.HIF", "phone.heif"):
        ramp.save(tmp_path / name, format="HEIF", quality=-1, exif=turned.tobytes())
    for path in images.list_images(tmp_path):
        x = images.read(path)
        assert x.shape == (3, 96, 64)
        assert images.header(path)[1:] == (96, 64)
        torch.testing.assert_close(x, images.from_pil(ramp.rotate(-90, expand=True)), rtol=0, atol=3 / 255)
    assert len(images.list_images(tmp_path)) == 3


@pytest.mark.parametrize("stem", ["a" * 251, "é" * 125 + "a", b"\xff\xfe photo".decode(errors="surrogateescape")])
def test_names_as_long_as_names_can_be_and_names_that_are_no_text(tmp_path, stem):
    name = f"{stem}.png"
    images.write_png(tmp_path / name, picture(4, 6))
    images.write_metadata(tmp_path, {name: {"text": "a photo"}})
    assert [p.name for p in tmp_path.glob("*.png")] == [name]
    assert images.read_metadata(tmp_path) == {name: {"text": "a photo"}}
    assert list(images.read_folder(tmp_path)) == [name]
    assert files_digest([tmp_path / name])
    assert Run().rng("noise", name).initial_seed() != Run().rng("noise", "a").initial_seed()
    longer = [images.file_name(stem + more, "-00-00.png") for more in ("", "b")]
    assert all(len(os.fsencode(x)) <= 255 and x.endswith("-00-00.png") for x in longer)
    assert longer[0] != longer[1], "shortened names do not meet"


def test_listing_is_sorted_and_leaves_other_files_alone(tmp_path):
    for name in ("b.png", "a.JPG", "10.webp", ".hidden.png", "metadata.jsonl", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in images.list_images(tmp_path)] == ["10.webp", "a.JPG", "b.png"]


def test_listing_of_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no picture in"):
        images.list_images(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        images.list_images(tmp_path / "none")


def test_a_link_to_a_picture_that_is_gone_is_an_error(tmp_path):
    """As git-annex leaves them: the picture would be left out without a word."""
    (tmp_path / "a.png").touch()
    (tmp_path / "b.png").symlink_to("elsewhere/b.png")
    with pytest.raises(ValueError, match="holds b.png, a link to a file that is not there"):
        images.list_images(tmp_path)


def test_read_folder_keeps_names_and_sizes(tmp_path):
    given_pictures = {"b.png": picture(5, 7), "a.png": picture(3, 4)}
    for name, x in given_pictures.items():
        images.write_png(tmp_path / name, x)
    got = images.read_folder(tmp_path)
    assert list(got) == ["a.png", "b.png"]
    assert all(torch.equal(got[n], images.as_saved(x)) for n, x in given_pictures.items())


@settings(quick, max_examples=15)
@given(st.lists(st.sampled_from([(4, 4), (4, 6), (6, 4)]), min_size=1, max_size=9), st.integers(1, 4))
def test_iterate_gives_every_picture_once_in_batches_of_one_size(tmp_path_factory, shapes, batch):
    folder = tmp_path_factory.mktemp("pictures")
    want = {f"{i}.png": images.as_saved(picture(*shape, i)) for i, shape in enumerate(shapes)}
    for name, x in want.items():
        images.write_png(folder / name, x)
    batches = list(images.iterate(folder, batch))
    assert sorted(n for names, _ in batches for n in names) == sorted(want)
    assert len(batches) == sum(-(-shapes.count(s) // batch) for s in set(shapes))
    for names, x in batches:
        assert len(x) == len(names) <= batch
        assert names == sorted(names)
        assert torch.equal(x, torch.stack([want[n] for n in names]))


def test_batches_are_bounded_by_pixels_and_squares_are_cut_while_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "PIXELS", 8 * 8)
    for name, shape in (("a", (8, 8)), ("b", (8, 8)), ("c", (8, 8)), ("d", (12, 20)), ("e", (12, 20)), ("f", (40, 40))):
        images.write_png(tmp_path / f"{name}.png", picture(*shape))
    found = [[name[0] for name in names] for names, _ in images.iterate(tmp_path, 4)]
    assert found == [["a", "b", "c"], ["d"], ["e"], ["f"]], (
        "four of 8 x 8 would have 256 pixels, one of 12 x 20 has 240"
    )
    assert (images.at_once(8, 12, 20), images.at_once(8, 8, 8), images.at_once(1, 999, 999)) == (2, 8, 1)
    ((names, squares),) = images.iterate(tmp_path, 8, side=6)
    assert names == [f"{name}.png" for name in "abcdef"]
    want = [pixels.fit_square(images.read(tmp_path / name), 6) for name in names]
    assert torch.equal(squares, torch.stack(want))
    assert torch.equal(torch.stack(list(images.read_folder(tmp_path, 6).values())), squares)


def test_the_side_of_squares_of_one_size(tmp_path):
    images.write_png(tmp_path / "a.png", picture(8, 8))
    assert images.one_side(tmp_path) == 8
    images.write_png(tmp_path / "b.png", picture(6, 6))
    assert images.one_side(tmp_path) is None
    (tmp_path / "a.png").unlink()
    images.write_png(tmp_path / "b.png", picture(6, 8))
    assert images.one_side(tmp_path) is None


def test_iterate_tells_apart_pictures_that_are_stored_alike_but_rotated(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pil(4, 8).save(tmp_path / "a.png")
    pil(4, 8).save(tmp_path / "b.png", exif=exif)
    assert [x.shape[-2:] for _, x in images.iterate(tmp_path, 4)] == [(4, 8), (8, 4)]


def test_iterate_reads_no_further_than_asked(tmp_path):
    images.write_png(tmp_path / "a.png", picture(4, 4))
    (tmp_path / "z.png").write_bytes((tmp_path / "a.png").read_bytes()[:-30])
    batches = images.iterate(tmp_path, 1)
    assert next(batches)[0] == ["a.png"]
    with pytest.raises(ValueError, match=r"z\.png"):
        next(batches)
    with pytest.raises(ValueError, match="batch must be >= 1"):
        next(images.iterate(tmp_path, 0))


@quick
@given(sizes, sizes, st.floats(0, 1))
def test_resize_keeps_a_flat_picture_flat_and_stays_in_range(size, new, value):
    x = pixels.resize(torch.full((1, 3, *size), value), new)
    assert x.shape == (1, 3, *new)
    torch.testing.assert_close(x, torch.full_like(x, value), atol=1e-5, rtol=0)
    y = pixels.resize(picture(*size).round()[None], new)
    assert y.min() >= 0
    assert y.max() <= 1


def test_resize_matches_pillow_and_passes_gradients():
    smooth = torch.linspace(0, 1, 48).expand(3, 40, 48).contiguous()
    want = images.from_pil(images.to_pil(smooth).resize((20, 16), Image.Resampling.BICUBIC))
    assert (pixels.resize(smooth[None], (16, 20))[0] - want).abs().max() < 1.5 / 255
    # At an odd factor new pixels fall on old ones: without antialiasing 0 and 1 (at an even one grey, too).
    checker = (torch.arange(33)[:, None] + torch.arange(33)).remainder(2).float().expand(1, 3, -1, -1)
    assert (pixels.resize(checker, 11)[..., 1:-1, 1:-1] - 0.5).abs().max() < 0.02
    x = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    pixels.resize(x, 4).sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(("x", "size"), [(torch.rand(3, 4, 4), 2), (torch.rand(1, 3, 4, 4), 0)])
def test_resize_refuses_other_shapes(x, size):
    with pytest.raises(ValueError, match="images: "):
        pixels.resize(x, size)


def test_fit_square_takes_the_middle():
    x = torch.zeros(3, 6, 10)
    x[:, :, 2:8] = 1
    torch.testing.assert_close(pixels.fit_square(x, 3), torch.ones(3, 3, 3))
    assert torch.equal(pixels.fit_square(x.transpose(1, 2), 6), torch.ones(3, 6, 6))


def test_reduced_keeps_the_shape_and_enlarges_nothing():
    assert pixels.reduced(picture(40, 60), 20).shape == (3, 20, 30)
    assert pixels.reduced(picture(61, 40), 20).shape == (3, 30, 20)
    small = picture(10, 30)
    assert pixels.reduced(small, 20) is small


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@quick
@given(
    st.dictionaries(
        names, st.fixed_dictionaries({"text": st.text(st.characters(exclude_categories=["Cs"])), "seed": st.integers()})
    )
)
def test_metadata_comes_back_as_written(tmp_path, rows):
    images.write_metadata(tmp_path, rows)
    assert images.read_metadata(tmp_path) == rows


@pytest.mark.parametrize("line", ["{", "[1]", '{"text": "no name"}', '{"file_name": "a.png"}'])
def test_bad_metadata_names_the_line(tmp_path, line):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n\n' + line)
    with pytest.raises(ValueError, match=r"metadata\.jsonl line 3"):
        images.read_metadata(tmp_path)


def test_no_metadata_is_no_rows(tmp_path):
    assert images.read_metadata(tmp_path) == {}


def test_digest_follows_names_and_contents_not_places(tmp_path):
    for folder, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(content)
    (tmp_path / "b" / "y.png").write_bytes(b"1")
    a, b, c, other = (files_digest([tmp_path / p]) for p in ("a/x.png", "b/x.png", "c/x.png", "b/y.png"))
    assert a == b
    assert len({a, c, other}) == 3
    both = [tmp_path / "a/x.png", tmp_path / "b/y.png"]
    assert files_digest(both) == files_digest(both[::-1]) != a


# -- what methods return -----------------------------------------------------------------------------------------------

GIVEN = {"0000.png": torch.zeros(3, 16, 16), "0001.png": torch.ones(3, 16, 20)}


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ([torch.zeros(3, 16, 16)], "protect stripes: returned 1 pictures for 2"),
        (
            [torch.zeros(3, 16, 16), torch.zeros(3, 10, 12)],
            "protect stripes: returned a picture of 3 x 10 x 12 for 0001.png, which is 3 x 16 x 20",
        ),
        (
            [torch.zeros(3, 16, 16), torch.full((3, 16, 20), torch.nan)],
            "protect stripes: returned values for 0001.png that are not finite (NaN or infinity)",
        ),
        (
            [torch.zeros(3, 16, 16, dtype=torch.uint8), torch.zeros(3, 16, 20)],
            "protect stripes: returned values of type torch.uint8 for 0000.png; pictures are float32 in [0,1]",
        ),
        (
            [torch.full((3, 16, 16), -1.0), torch.zeros(3, 16, 20)],
            "protect stripes: returned values from -1 to -1 for 0000.png; pictures are in [0,1]",
        ),
    ],
)
def test_pictures_of_another_number_size_or_range_are_told_in_one_line(made, told):
    with pytest.raises(ValueError) as error:
        images.checked_pictures("protect stripes", made, GIVEN)
    assert str(error.value) == told


def test_good_pictures_are_given_back():
    made = tuple(x / 2 for x in GIVEN.values())
    assert all(a is b for a, b in zip(images.checked_pictures("x", made, GIVEN), made, strict=True))


def test_a_palette_with_transparency_is_looked_at_without_a_warning(tmp_path, recwarn):
    picture = Image.new("RGBA", (8, 8), (255, 0, 0, 100)).convert("P")
    picture.save(tmp_path / "a.png", transparency=bytes(range(256)))
    with images.open_image(tmp_path / "a.png") as image:
        assert not colours.has_other_colours(image)
    assert not recwarn.list
