"""What thumbnails look like; Pillow, which decodes and reduces by other code, is the reference."""

import io
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, features

from backend.errors import InvalidImage, TooLarge
from backend.vision.thumbnail import MediaType, make_thumbnail
from tests.photos import draw_photo, encode

MANY = 10**8
MEDIA_TYPES: tuple[MediaType, ...] = get_args(MediaType)
FORMATS = {"image/avif": "AVIF", "image/webp": "WEBP", "image/jpeg": "JPEG"}
ORIENTATION = 0x0112


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def _pixels(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image.convert("RGB"), np.int64)


def _difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of samples, of 255."""
    assert one.size == other.size
    return float(np.abs(_pixels(one) - _pixels(other)).mean())


def _saved(image: Image.Image, image_format: str = "JPEG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, image_format, **options)
    return data.getvalue()


def test_pillow_can_write_every_format() -> None:
    assert features.check("avif")
    assert features.check("webp")


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
@pytest.mark.parametrize("size", [128, 256])
def test_a_thumbnail_is_the_photo_made_smaller(media_type: MediaType, size: int) -> None:
    photo = draw_photo(3, width=900, height=601)
    thumbnail = _opened(make_thumbnail(encode(photo), size, media_type, max_pixels=MANY))
    assert thumbnail.format == FORMATS[media_type]
    assert thumbnail.size == (size, round(601 * size / 900))
    reference = Image.fromarray(photo).resize(thumbnail.size, Image.Resampling.BOX)
    assert _difference(thumbnail, reference) < 5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("width", [300, 1200])  # decoded in full, and at a reduced scale
def test_a_thumbnail_stands_upright(orientation: int, width: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = _saved(Image.fromarray(draw_photo(5, width=width, height=width // 2)), exif=exif)
    thumbnail = _opened(make_thumbnail(data, 128, "image/webp", max_pixels=MANY))
    assert thumbnail.size == ((128, 64) if orientation <= 4 else (64, 128))
    assert thumbnail.getexif().get(ORIENTATION) is None
    upright = ImageOps.exif_transpose(_opened(data))
    assert _difference(thumbnail, upright.resize(thumbnail.size, Image.Resampling.BOX)) < 6


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
@pytest.mark.parametrize("size", [(1, 1), (100, 64), (128, 5), (128, 128)])
def test_a_photo_that_is_no_larger_keeps_its_size(
    size: tuple[int, int], media_type: MediaType
) -> None:
    photo = _saved(Image.new("RGB", size, (200, 30, 60)), "PNG")
    thumbnail = _opened(make_thumbnail(photo, 128, media_type, max_pixels=MANY))
    assert thumbnail.size == size
    assert _difference(thumbnail, Image.new("RGB", size, (200, 30, 60))) < 4


@pytest.mark.parametrize("size", [(129, 1), (5000, 2), (1, 5000)])
def test_a_side_never_falls_below_one_pixel(size: tuple[int, int]) -> None:
    photo = _saved(Image.new("RGB", size, (9, 99, 199)))
    thumbnail = _opened(make_thumbnail(photo, 128, "image/jpeg", max_pixels=MANY))
    assert (max(thumbnail.size), min(thumbnail.size)) == (128, 1)


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
def test_transparency_is_laid_over_white(media_type: MediaType) -> None:
    photo = Image.new("RGBA", (300, 300), (0, 0, 0, 0))
    photo.paste((255, 0, 0, 255), (0, 0, 150, 300))
    thumbnail = _opened(make_thumbnail(_saved(photo, "PNG"), 128, media_type, max_pixels=MANY))
    assert thumbnail.mode == "RGB"
    pixels = _pixels(thumbnail)
    assert np.abs(pixels[:, :56] - [255, 0, 0]).max() < 16
    assert pixels[:, 72:].min() > 239


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
def test_colours_of_another_profile_become_those_of_srgb(media_type: MediaType) -> None:
    photo = Image.new("RGB", (300, 200), (200, 120, 40))
    # Red and green exchanged: no decoder that passes the profile over shows the right colour.
    swapped = Image.new("RGB", (300, 200), (120, 200, 40))
    for plain, profile in ((photo, _profile()), (swapped, _profile(swapped=True))):
        data = _saved(plain, quality=95, icc_profile=profile)
        thumbnail = _opened(make_thumbnail(data, 128, media_type, max_pixels=MANY))
        assert not thumbnail.info.get("icc_profile")
        assert np.abs(_pixels(thumbnail) - [200, 120, 40]).mean() < 6


def _profile(*, swapped: bool = False) -> bytes:
    """sRGB's profile; or that of an RGB whose first sample is green and whose second is red."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if swapped:
        profile = profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ")
        profile = profile.replace(b"????", b"gXYZ")
    return profile


@pytest.mark.parametrize("profile", [b"no profile", _profile()[:200]])
def test_a_damaged_profile_is_passed_over(profile: bytes) -> None:
    data = _saved(Image.new("RGB", (300, 200), (200, 120, 40)), icc_profile=profile)
    thumbnail = _opened(make_thumbnail(data, 128, "image/webp", max_pixels=MANY))
    assert np.abs(_pixels(thumbnail) - [200, 120, 40]).mean() < 6


def test_metadata_are_left_out() -> None:
    exif = Image.Exif()
    exif[0x010E] = "at home"
    data = _saved(Image.fromarray(draw_photo(1)), exif=exif, comment=b"at home")
    for media_type in MEDIA_TYPES:
        assert b"at home" not in make_thumbnail(data, 128, media_type, max_pixels=MANY)


def test_too_many_pixels_and_damaged_photos_are_refused() -> None:
    data = encode(draw_photo(1, width=100, height=100))
    assert make_thumbnail(data, 64, "image/webp", max_pixels=10_000)
    with pytest.raises(TooLarge, match="100 x 100"):
        make_thumbnail(data, 64, "image/webp", max_pixels=9_999)
    with pytest.raises(InvalidImage, match="damaged"):
        make_thumbnail(encode(draw_photo(1), ".png")[:2000], 64, "image/webp", max_pixels=MANY)
