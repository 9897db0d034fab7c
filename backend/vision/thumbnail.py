"""Small copies of photos, as a page shows many of."""

import io
from typing import Any, Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from backend.vision.decode import Header, decode, read_header

__all__ = ["ENCODERS", "RECIPE", "MediaType", "make_thumbnail"]

MediaType = Literal["image/avif", "image/webp", "image/jpeg"]

RECIPE: Final = 1
"""Number of the way in which thumbnails are made: another one makes other bytes of a photo."""

ENCODERS: Final[dict[MediaType, tuple[str, dict[str, Any]]]] = {
    "image/avif": ("AVIF", {"quality": 65, "speed": 10, "max_threads": 1}),
    "image/webp": ("WEBP", {"quality": 75, "method": 2}),
    "image/jpeg": ("JPEG", {"quality": 80}),
}
"""Pillow's name of each encoder, and its options.

About as like the photo as each other at 256 pixels, and as fast as a page that waits needs them
(`benchmarks.thumbnails`). One thread each: thumbnails are made side by side.
"""


def make_thumbnail(
    data: bytes,
    size: int,
    media_type: MediaType,
    *,
    max_pixels: int,
    header: Header | None = None,
) -> bytes:
    """A photo, upright and in sRGB, so reduced that neither side exceeds `size` pixels.

    A photo that is no larger keeps its size. Proportions are kept to the nearest pixel.
    Transparency is laid over white. EXIF and other metadata are left out.

    Args:
        data: the encoded photo.
        size: pixels.
        media_type: of the answer.
        max_pixels: of a photo that is decoded.
        header: what `read_header` says of it, where that is known.

    Raises:
        InvalidImage, UnsupportedFormat, TooLarge: see `vision.decode`.
    """
    # The sides are the photo's own: those of one that is decoded at a reduced scale are rounded.
    header = header or read_header(data)
    pixels = decode(data, max_pixels=max_pixels, longer_side=size, header=header)
    scale = size / max(header.width, header.height)
    if scale < 1:
        reduced = (max(1, round(header.width * scale)), max(1, round(header.height * scale)))
        # The mean of what each new pixel covers: no moiré, however much smaller it gets.
        pixels = np.asarray(cv2.resize(pixels, reduced, interpolation=cv2.INTER_AREA), np.uint8)
    image = _in_srgb(pixels, data)
    encoder, options = ENCODERS[media_type]
    encoded = io.BytesIO()
    # An empty profile: Pillow would otherwise hand on the one that the image came with.
    image.save(encoded, encoder, icc_profile=b"", **options)
    return encoded.getvalue()


def _in_srgb(pixels: NDArray[np.uint8], data: bytes) -> Image.Image:
    """The pixels as an sRGB image, converted where the photo has a profile of another RGB.

    Profiles of CMYK and grey do not fit pixels that are RGB by now; a damaged one says nothing.
    """
    image = Image.fromarray(pixels)
    with Image.open(io.BytesIO(data)) as photo:
        profile = photo.info.get("icc_profile")
    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() == "RGB":
            target = ImageCms.createProfile("sRGB")
            ImageCms.profileToProfile(image, source, target, inPlace=True)
    except Exception:  # whatever a damaged profile leads Pillow into; the pixels are none the worse
        return image
    return image
