"""From a photo's bytes to upright RGB pixels, and to a reason where that cannot be.

Pillow reads the header (format, size, orientation) without decoding, so that a photo of too many
pixels costs nothing. OpenCV decodes; only what is transparent is decoded by Pillow, which knows
every kind of transparency.
"""

import io
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from backend.errors import InvalidImage, TooLarge, UnsupportedFormat

__all__ = [
    "CONTENT_TYPES",
    "EXTENSIONS",
    "SNIFF_BYTES",
    "Header",
    "check_pixels",
    "decode",
    "decoded_pixels",
    "read_header",
    "sniff",
]

CONTENT_TYPES: Final = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
}
"""The formats that are read, by Pillow's name, with their media types."""

EXTENSIONS: Final = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff"}
)
"""Endings, in lower case, of the files that a folder's load takes for photos."""

SNIFF_BYTES: Final = 12
"""How much of a file's beginning `sniff` needs."""

_BLEND_ROWS: Final = 64
"""Rows blended at a time: the 16-bit copies of a whole photo would take four times its memory."""

_SUPPORTED: Final = "JPEG, PNG, WebP, BMP and TIFF are read"

# Pillow's own limit would refuse a large photo with less of a reason, and cannot be set lower for
# one caller alone; `decode` has the limit of the settings, and decodes nothing before it.
Image.MAX_IMAGE_PIXELS = None

_REDUCTIONS: Final = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
}
"""OpenCV's flags, by what they divide a side. "Grayscale" gives way to the colours that are asked
for besides."""

# EXIF 2.32, tag 0x0112: how the stored rows and columns are turned to stand upright.
_TRANSPOSED: Final = frozenset({5, 6, 7, 8})


@dataclass(frozen=True)
class Header:
    """What a photo says of itself before it is decoded.

    `width` and `height` are those of the upright photo, in pixels. `orientation` is the EXIF
    value, 1 to 8, that is still to be applied.
    """

    format: str
    width: int
    height: int
    has_alpha: bool
    orientation: int


def sniff(beginning: bytes) -> str | None:
    """The format (a key of CONTENT_TYPES) that a file's first SNIFF_BYTES bytes announce."""
    if beginning.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if beginning.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP":
        return "WEBP"
    if beginning.startswith(b"BM"):
        return "BMP"
    if beginning[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    return None


def read_header(data: bytes, *, max_frames: int | None = None) -> Header:
    """Format, upright size and orientation of an encoded photo, without decoding it.

    Args:
        data: the encoded photo.
        max_frames: pictures that the file may hold, of which the first is the photo; None: any.

    Raises:
        InvalidImage: no image, or one whose header is damaged.
        UnsupportedFormat: an image of another format.
        TooLarge: more frames than `max_frames`.
    """
    if not data:
        raise InvalidImage("the file is empty")
    declared = sniff(data[:SNIFF_BYTES])
    try:
        with Image.open(io.BytesIO(data)) as image:
            # A JPEG with further pictures behind the first, as some phones write it.
            image_format = "JPEG" if image.format == "MPO" else image.format
            if image_format not in CONTENT_TYPES:
                raise UnsupportedFormat(f"the format is {image_format}: {_SUPPORTED}")
            if image_format != declared:  # as which it would be kept and sent
                raise InvalidImage(f"the {image_format} file is damaged: it begins as none does")
            width, height = image.size
            has_alpha = "A" in image.getbands() or "transparency" in image.info
            # Pillow and OpenCV turn a TIFF themselves, in its size and in its pixels.
            orientation = 1 if image_format == "TIFF" else _orientation(image)
            if max_frames is not None and _has_more_frames(image, max_frames):
                raise TooLarge(
                    f"the {image_format} file has more than the {max_frames} frames that MAX_FRAMES"
                    " allows: the first is all that is looked at"
                )
    except (InvalidImage, TooLarge, UnsupportedFormat):
        raise
    except UnidentifiedImageError:
        if declared is None:
            raise InvalidImage(f"the content is no image that can be read: {_SUPPORTED}") from None
        raise InvalidImage(f"the {declared} file is damaged: its header is unreadable") from None
    except Exception as error:
        # Pillow's parsers raise whatever a damaged header leads them into: struct.error,
        # SyntaxError, ValueError, OverflowError, and more.
        kind = declared or "image"
        raise InvalidImage(f"the {kind} file is damaged: {error or type(error).__name__}") from None
    if orientation in _TRANSPOSED:
        width, height = height, width
    return Header(image_format, width, height, has_alpha, orientation)


def _has_more_frames(image: Image.Image, frames: int) -> bool:
    """Whether an animation, or a file of several pages, has more; changes the image."""
    if image.format != "TIFF":
        return int(getattr(image, "n_frames", 1)) > frames  # as the header says
    try:
        # Page by page, each with where the next one is: of as many as matter, not of all.
        image.seek(frames)
    except Exception:  # there are no more, or what is behind the first is damaged, and no matter
        return False
    return True


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or none that can be read."""
    exif = Image.Exif()
    try:
        # Not image.getexif(), which decodes a whole PNG to look behind its pixels.
        exif.load(image.info.get("exif", b""))
        orientation = int(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever damaged metadata leads Pillow into; the pixels are none the worse
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def decode(
    data: bytes,
    *,
    max_pixels: int,
    longer_side: int | None = None,
    header: Header | None = None,
) -> NDArray[np.uint8]:
    """Upright RGB pixels, uint8 [H, W, 3], of the first frame of an encoded photo.

    16-bit samples are brought down to 8 bits, transparency is laid over white, palettes and CMYK
    are converted, the EXIF orientation is applied.

    Args:
        data: the encoded photo.
        max_pixels: that it may have.
        longer_side: where so many pixels are enough for it, a JPEG is decoded at a half, a quarter
            or an eighth of its scale, which is faster; never at less than that.
        header: what `read_header` says of it, where that is known.

    Raises:
        InvalidImage: no image, or a damaged or truncated one.
        UnsupportedFormat: an image of another format.
        TooLarge: more than `max_pixels` pixels.
    """
    if header is None:
        header = read_header(data)
    check_pixels(header, max_pixels)
    if header.has_alpha:
        pixels = _decode_over_white(data, header)
    else:
        reduction = _REDUCTIONS.get(_divisor(header, longer_side), 0)
        pixels = _decode_opaque(data, header, reduction)
    return np.ascontiguousarray(_upright(pixels, header.orientation))


def check_pixels(header: Header, max_pixels: int) -> None:
    """Refuses a photo by the number of its pixels, as `decode` does.

    Raises:
        InvalidImage: it has none.
        TooLarge: more than `max_pixels`.
    """
    if header.width * header.height > max_pixels:
        raise TooLarge(
            f"the photo has {header.width} x {header.height} pixels,"
            f" more than the {max_pixels} that MAX_PIXELS allows"
        )
    if header.width == 0 or header.height == 0:
        raise InvalidImage(f"the {header.format} file says that it has no pixels")


def decoded_pixels(header: Header, longer_side: int | None = None) -> int:
    """How many pixels `decode` makes of a photo, to within a row and a column of them."""
    return header.width * header.height // _divisor(header, longer_side) ** 2


def _divisor(header: Header, longer_side: int | None) -> int:
    """By what a side can be divided that leaves the longer one so long."""
    # Of other formats OpenCV would reduce what it has decoded as a whole, by leaving pixels out.
    if longer_side is None or header.format != "JPEG":
        return 1
    longest = max(header.width, header.height)
    return next((divisor for divisor in _REDUCTIONS if longest >= divisor * longer_side), 1)


def _decode_opaque(data: bytes, header: Header, reduction: int) -> NDArray[np.uint8]:
    flags = reduction | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise InvalidImage(f"the {header.format} file cannot be decoded: {error.err}") from None
    if pixels is None:
        raise InvalidImage(
            f"the {header.format} file is truncated or damaged, or its samples are of neither 8"
            " nor 16 bit"
        )
    return np.asarray(pixels, np.uint8)


def _decode_over_white(data: bytes, header: Header) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode == "I;16":  # which Pillow would clip to 8 bits instead of shifting it
                samples = np.asarray(image)
                grey = (samples >> 8).astype(np.uint8)
                grey[samples == image.info.get("transparency")] = 255
                return np.repeat(grey[..., np.newaxis], 3, axis=2)
            transparent = image.convert("RGBA")
    except Exception as error:  # as in `read_header`
        raise InvalidImage(f"the {header.format} file is truncated or damaged: {error}") from None
    rgba = np.asarray(transparent)
    pixels = np.empty((*rgba.shape[:2], 3), np.uint8)
    for top in range(0, len(rgba), _BLEND_ROWS):
        strip = rgba[top : top + _BLEND_ROWS].astype(np.uint16)
        colour, alpha = strip[..., :3], strip[..., 3:]
        pixels[top : top + _BLEND_ROWS] = (colour * alpha + 255 * (255 - alpha) + 127) // 255
    return pixels


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The photo turned as EXIF 2.32, tag 0x0112, says."""
    if orientation in _TRANSPOSED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
