"""From a photo's bytes to upright RGB pixels, and to a reason where that cannot be.

Pillow reads the header (format, size, frames, orientation) without decoding, so that a photo of
too many pixels costs nothing; OpenCV decodes, without holding the GIL.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from backend.errors import InvalidImage, TooLarge, UnsupportedFormat

__all__ = ["CONTENT_TYPES", "EXTENSIONS", "SNIFF_BYTES", "Header", "decode", "read_header", "sniff"]

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

_SUPPORTED: Final = "JPEG, PNG, WebP, BMP and TIFF are read"

# Pillow's own limit would refuse a large photo with less of a reason, and cannot be set lower for
# one caller alone; `decode` has the limit of the settings, and decodes nothing before it.
Image.MAX_IMAGE_PIXELS = None

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
    frames: int
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


def read_header(data: bytes) -> Header:
    """Format, upright size, frames and orientation of an encoded photo, without decoding it.

    Raises:
        InvalidImage: no image, or one whose header is damaged.
        UnsupportedFormat: an image of another format.
    """
    if not data:
        raise InvalidImage("the file is empty")
    declared = sniff(data[:SNIFF_BYTES])
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata, such as a truncated EXIF block, that hurts no pixel.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                if image.format not in CONTENT_TYPES:
                    raise UnsupportedFormat(f"the format is {image.format}: {_SUPPORTED}")
                width, height = image.size
                orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
                header = Header(
                    format=image.format,
                    width=width,
                    height=height,
                    frames=int(getattr(image, "n_frames", 1)),
                    has_alpha="A" in image.getbands() or "transparency" in image.info,
                    orientation=orientation if 1 <= orientation <= 8 else 1,
                )
    except UnsupportedFormat:
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
    # Pillow already applies a TIFF's orientation to its size, as OpenCV does to its pixels.
    if header.format == "TIFF":
        return _with(header, orientation=1)
    if header.orientation in _TRANSPOSED:
        return _with(header, width=header.height, height=header.width)
    return header


def decode(data: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """Upright RGB pixels, uint8 [H, W, 3], of the first frame of an encoded photo.

    16-bit samples keep their upper 8 bits, transparency is laid over white, palettes and CMYK are
    converted, the EXIF orientation is applied.

    Raises:
        InvalidImage: no image, or a damaged or truncated one.
        UnsupportedFormat: an image of another format.
        TooLarge: more than `max_pixels` pixels.
    """
    header = read_header(data)
    if header.width * header.height > max_pixels:
        raise TooLarge(
            f"the photo has {header.width} x {header.height} pixels,"
            f" more than the {max_pixels} that MAX_PIXELS allows"
        )
    if header.width == 0 or header.height == 0:
        raise InvalidImage(f"the {header.format} file says that it has no pixels")
    encoded = np.frombuffer(data, np.uint8)
    try:
        if header.has_alpha:
            pixels = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
        else:
            pixels = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise InvalidImage(f"the {header.format} file cannot be decoded: {error.err}") from None
    if pixels is None:
        raise InvalidImage(f"the {header.format} file is truncated or damaged")
    if header.has_alpha:
        # IMREAD_UNCHANGED is the one mode that keeps alpha, and it leaves the orientation to us.
        pixels = _upright(_over_white(pixels), header.orientation)
    return np.ascontiguousarray(pixels, dtype=np.uint8)


def _with(header: Header, **changes: int) -> Header:
    return Header(**{**header.__dict__, **changes})


def _over_white(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """RGB, uint8, of grey, BGR or BGRA pixels of any depth."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)  # type: ignore[operator]
    elif pixels.dtype != np.uint8:
        raise InvalidImage(f"samples of type {pixels.dtype} are not read, only 8 and 16 bit")
    eight_bit: NDArray[np.uint8] = pixels.astype(np.uint8, copy=False)
    if eight_bit.ndim == 2:
        return np.asarray(cv2.cvtColor(eight_bit, cv2.COLOR_GRAY2RGB), np.uint8)
    if eight_bit.shape[2] == 3:
        return np.asarray(cv2.cvtColor(eight_bit, cv2.COLOR_BGR2RGB), np.uint8)
    alpha = eight_bit[..., 3:].astype(np.uint16)
    colour = eight_bit[..., 2::-1].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The photo turned as EXIF 2.32, tag 0x0112, says."""
    if orientation in _TRANSPOSED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
