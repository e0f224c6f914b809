"""Colour profiles that pictures bring along."""

from __future__ import annotations

import io
from contextlib import suppress

from PIL import Image, ImageCms

PROFILED = ("RGB", "L", "CMYK")  # modes in which colour profiles are applied; others become RGB before


def has_other_colours(image: Image.Image) -> bool:
    """Whether a colour profile other than sRGB is applied when the picture is read."""
    plain = image.convert("RGBA") if image.has_transparency_data else image  # Pillow warns of a palette's otherwise
    plain = plain if plain.mode in PROFILED else plain.convert("RGB")
    return _to_srgb(plain) is not None


def in_srgb(image: Image.Image) -> Image.Image:
    """``image`` by the colour profile it brings along; as it is without one.

    One that says it is sRGB is left alone: a conversion would change values by rounding.
    """
    if not image.info.get("icc_profile"):
        return image
    image = image if image.mode in PROFILED else image.convert("RGB")
    if (transform := _to_srgb(image)) is None:
        return image
    made = ImageCms.applyTransform(image, transform)
    assert made is not None  # not in place
    return made


def _to_srgb(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """From the colour profile that a picture in one of the modes ``PROFILED`` brings along to sRGB; None if there is
    none to be applied."""
    if not (data := image.info.get("icc_profile")):
        return None
    with suppress(OSError, ImageCms.PyCMSError):  # broken, or of another kind of picture
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        if "srgb" not in ImageCms.getProfileDescription(profile).lower():
            return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), image.mode, "RGB")
    return None
