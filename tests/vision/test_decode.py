"""What becomes of a photo's bytes; Pillow, which decodes by other code, is the reference."""

import io
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from backend.errors import InvalidImage, ServiceError, TooLarge, UnsupportedFormat
from backend.vision.decode import (
    CONTENT_TYPES,
    SNIFF_BYTES,
    decode,
    decoded_pixels,
    read_header,
    sniff,
)

WIDTH, HEIGHT = 37, 23
MANY = 10**8
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True, "exact": True},
    "BMP": {},
    "TIFF": {},
}
ORIENTATION = 0x0112
MAGICS = (
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\x00\x01\x00\x00WEBPVP8 ",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"GIF89a",
)


def _scene() -> NDArray[np.uint8]:
    """Smooth colours without any symmetry, so that every turn and mirroring shows."""
    coarse = np.random.default_rng(7).integers(0, 256, (5, 7, 3), np.uint8)
    smooth = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth, np.uint8)


def _ramp() -> NDArray[np.uint8]:
    """Alpha from 0 on the left to 255 on the right."""
    return np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))


def _photo(mode: str, alpha: NDArray[np.uint8] | None = None) -> Image.Image:
    scene = Image.fromarray(_scene())
    if mode == "P":
        return scene.quantize(64)
    if mode in ("LA", "RGBA"):
        opaque = scene.convert(mode.removesuffix("A") or "L")
        opaque.putalpha(Image.fromarray(_ramp() if alpha is None else alpha))
        return opaque
    if mode == "I;16":
        return Image.fromarray(
            np.random.default_rng(3).integers(0, 2**16, (HEIGHT, WIDTH), np.uint16)
        )
    return scene.convert(mode)


def _save(photo: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    photo.save(file, image_format, **options)
    return file.getvalue()


def _encoded(image_format: str, mode: str = "RGB") -> bytes:
    return _save(_photo(mode), image_format, **LOSSLESS.get(image_format, {}))


def _by_pillow(data: bytes) -> NDArray[np.uint8]:
    """Upright RGB over white of the first frame, by Pillow alone."""
    with Image.open(io.BytesIO(data)) as opened:
        photo = ImageOps.exif_transpose(opened)
    if photo.mode.startswith("I"):
        photo = Image.fromarray((np.asarray(photo).astype(np.int64) >> 8).astype(np.uint8))
    if photo.has_transparency_data:
        photo = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo)
    return np.asarray(photo.convert("RGB"))


def _assert_same(pixels: NDArray[np.uint8], expected: NDArray[Any], tolerance: float) -> None:
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(np.float64) - expected).max() <= tolerance


def _assert_as_pillow(data: bytes, tolerance: int = 0) -> None:
    pixels = decode(data, max_pixels=MANY)
    _assert_same(pixels, _by_pillow(data), tolerance)
    assert pixels.flags.c_contiguous
    header = read_header(data)
    assert (header.height, header.width) == pixels.shape[:2]


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def _one_bit_png(width: int, height: int, pixel_data: bytes) -> bytes:
    size = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _png_chunk(b"IHDR", size)
        + _png_chunk(b"IDAT", pixel_data)
        + _png_chunk(b"IEND", b"")
    )


# Pixels


@pytest.mark.parametrize(
    ("image_format", "mode"),
    [
        *((name, mode) for name in LOSSLESS for mode in ("RGB", "L", "1", "P")),
        ("PNG", "I;16"),
        ("TIFF", "I;16"),
        ("TIFF", "CMYK"),
    ],
)
def test_a_lossless_opaque_photo_has_exactly_the_pixels_that_pillow_finds(
    image_format: str, mode: str
) -> None:
    _assert_as_pillow(_encoded(image_format, mode))


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_laid_over_white(image_format: str, mode: str) -> None:
    data = _encoded(image_format, mode)
    assert read_header(data).has_alpha
    # One step of rounding: Pillow divides by 255 in another order.
    _assert_as_pillow(data, tolerance=1)


def test_what_is_wholly_transparent_is_white_whatever_its_hidden_colour() -> None:
    hidden = _photo("RGBA", np.zeros((HEIGHT, WIDTH), np.uint8))
    for image_format in ("PNG", "WEBP", "TIFF"):
        data = _save(hidden, image_format, **LOSSLESS[image_format])
        assert (decode(data, max_pixels=MANY) == 255).all(), image_format


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("quality", [30, 95])
def test_a_jpeg_has_the_pixels_that_pillow_finds_to_two_steps(mode: str, quality: int) -> None:
    # The inverse DCT and the conversion of CMYK may round otherwise.
    _assert_as_pillow(_save(_photo(mode), "JPEG", quality=quality), tolerance=2)


def test_a_progressive_jpeg_is_read() -> None:
    _assert_as_pillow(_save(_photo("RGB"), "JPEG", progressive=True), tolerance=2)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_lossy_webp_has_the_pixels_that_pillow_finds_to_two_steps(mode: str) -> None:
    _assert_as_pillow(_save(_photo(mode), "WEBP", quality=80), tolerance=2)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits", "jpeg"])
def test_a_compressed_tiff_is_read(compression: str) -> None:
    _assert_as_pillow(_save(_photo("RGB"), "TIFF", compression=compression), tolerance=2)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128])])
def test_a_palette_of_any_depth_is_read_with_its_transparency(
    bits: int, transparency: int | bytes | None
) -> None:
    options = {} if transparency is None else {"transparency": transparency}
    photo = _photo("RGB").quantize(2**bits)
    _assert_as_pillow(_save(photo, "PNG", bits=bits, **options), tolerance=1)


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_a_single_colour_that_a_png_calls_transparent_is_white(mode: str) -> None:
    photo = _photo(mode)
    darkest = np.asarray(photo).reshape(HEIGHT, WIDTH, -1).sum(axis=2).argmin()
    y, x = divmod(int(darkest), WIDTH)
    data = _save(photo, "PNG", transparency=photo.getpixel((x, y)))
    assert (_by_pillow(data)[y, x] == 255).all()
    _assert_as_pillow(data)


@pytest.mark.parametrize("extension", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_samples_keep_their_upper_8_bits(extension: str, channels: int) -> None:
    shape = (HEIGHT, WIDTH, channels)
    samples = np.random.default_rng(5).integers(0, 2**16, shape, np.uint16)
    done, encoded = cv2.imencode(extension, samples)
    assert done
    colour = samples[..., min(channels, 3) - 1 :: -1].astype(np.float64) / 256
    if channels == 4:
        opacity = samples[..., 3:] / 65535
        colour = colour * opacity + 255 * (1 - opacity)
    # Cutting off the lower 8 bits loses up to a step, of colour and of alpha; rounding the blend
    # half a step, and so does OpenCV's TIFF reader, which scales samples of several channels.
    tolerance = {1: 1.0, 3: 1.5, 4: 2.5}[channels]
    expected = np.broadcast_to(colour, (HEIGHT, WIDTH, 3))
    _assert_same(decode(encoded.tobytes(), max_pixels=MANY), expected, tolerance)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_samples_with_a_transparent_colour_keep_their_upper_8_bits(channels: int) -> None:
    shape = (HEIGHT, WIDTH, channels)
    samples = np.random.default_rng(5).integers(2, 2**16, shape, np.uint16)
    samples[3, 4] = 1
    done, encoded = cv2.imencode(".png", samples)
    assert done
    data = encoded.tobytes()
    pixels_start = data.index(b"IDAT") - 4
    key = _png_chunk(b"tRNS", struct.pack(f">{channels}H", *[1] * channels))
    pixels = decode(data[:pixels_start] + key + data[pixels_start:], max_pixels=MANY)
    expected = np.broadcast_to(samples[..., ::-1] >> 8, (HEIGHT, WIDTH, 3)).copy()
    expected[3, 4] = pixels[3, 4]  # white, or as it is: 16 bits of transparency are rare
    _assert_same(pixels, expected, 1)


def test_a_tiff_of_floating_point_samples_is_refused_with_a_reason() -> None:
    with pytest.raises(ServiceError, match="TIFF") as refused:
        decode(_encoded("TIFF", "F"), max_pixels=MANY)
    assert 400 <= refused.value.status < 500


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_photo_of_one_pixel_is_read(image_format: str) -> None:
    data = _save(Image.new("RGB", (1, 1), (200, 100, 50)), image_format)
    _assert_as_pillow(data, tolerance=2)


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_opaque_photo_is_turned_upright(mode: str, image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = _save(_photo(mode), image_format, exif=exif, **LOSSLESS.get(image_format, {}))
    upright = (WIDTH, HEIGHT) if orientation <= 4 else (HEIGHT, WIDTH)
    header = read_header(data)
    assert (header.width, header.height) == upright
    _assert_as_pillow(data, tolerance=2 if image_format == "JPEG" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("image_format", "mode"),
    [("PNG", "RGBA"), ("PNG", "LA"), ("WEBP", "RGBA"), ("TIFF", "RGBA")],
)
def test_a_photo_with_alpha_is_turned_upright(
    image_format: str, mode: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    sharp = np.where(_ramp() < 100, 0, 255).astype(np.uint8)
    data = _save(_photo(mode, sharp), image_format, exif=exif, **LOSSLESS[image_format])
    _assert_as_pillow(data)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = _save(_photo("RGB"), "PNG", exif=exif)
    assert read_header(data).orientation == 1
    _assert_same(decode(data, max_pixels=MANY), _scene(), 0)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_data_costs_no_photo(image_format: str) -> None:
    options = LOSSLESS.get(image_format, {})
    plain = _save(_photo("RGB"), image_format, **options)
    damaged = _save(_photo("RGB"), image_format, exif=b"Exif\0\0no TIFF header", **options)
    assert plain != damaged
    expected = decode(plain, max_pixels=MANY)
    _assert_same(decode(damaged, max_pixels=MANY), expected, 0)


def test_header_and_pixels_agree_on_an_orientation_that_only_xmp_tells() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = _save(_photo("RGB"), "JPEG", xmp=xmp)
    header = read_header(data)
    assert decode(data, max_pixels=MANY).shape == (header.height, header.width, 3)


# Frames


@pytest.mark.parametrize("image_format", ["WEBP", "PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_first_of_several_frames_is_read(image_format: str, mode: str) -> None:
    frames = [Image.new(mode, (WIDTH, HEIGHT), colour) for colour in ("#f00", "#0f0", "#00f")]
    options = LOSSLESS[image_format]
    data = _save(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    red = np.broadcast_to([255, 0, 0], (HEIGHT, WIDTH, 3))
    _assert_same(decode(data, max_pixels=MANY), red, 0)


def test_a_jpeg_that_carries_a_second_picture_is_a_jpeg() -> None:
    # Cameras and phones append a preview or a depth map (CIPA DC-007, Multi-Picture Format).
    first = _photo("RGB")
    data = _save(first, "MPO", save_all=True, append_images=[ImageOps.mirror(first)])
    assert sniff(data) == "JPEG"
    assert read_header(data).format == "JPEG"
    _assert_same(decode(data, max_pixels=MANY), _by_pillow(data), 2)


# What is refused


@pytest.mark.parametrize("image_format", ["GIF", "PPM", "ICO"])
def test_another_image_format_is_refused_by_its_name(image_format: str) -> None:
    data = _save(_photo("P" if image_format == "GIF" else "RGB"), image_format)
    with pytest.raises(UnsupportedFormat, match=f"{image_format}: JPEG, PNG, WebP, BMP and TIFF"):
        decode(data, max_pixels=MANY)


def test_an_empty_file_is_refused_as_empty() -> None:
    with pytest.raises(InvalidImage, match="the file is empty"):
        decode(b"", max_pixels=MANY)


@pytest.mark.parametrize(
    "data",
    [b"\0", b"hello, I am a text file\n" * 50, b"<html><body>404</body></html>", b"\0" * 5000],
    ids=["zero", "text", "html", "zeros"],
)
def test_what_is_no_image_is_refused_as_none(data: bytes) -> None:
    with pytest.raises(InvalidImage, match="no image that can be read: JPEG, PNG"):
        decode(data, max_pixels=MANY)


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("part", [0.02, 0.1, 0.3, 0.5, 0.8, 0.97])
def test_a_truncated_photo_is_refused_with_its_format(image_format: str, part: float) -> None:
    data = _encoded(image_format)
    with pytest.raises(InvalidImage, match=f"the {image_format} file is"):
        decode(data[: max(SNIFF_BYTES, int(len(data) * part))], max_pixels=MANY)


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_photo_that_lacks_its_last_bytes_is_refused(image_format: str) -> None:
    with pytest.raises(InvalidImage, match=r"truncated|damaged"):
        decode(_encoded(image_format)[:-20], max_pixels=MANY)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@settings(deadline=None)
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_photo_cut_off_anywhere_is_refused(image_format: str, part: float) -> None:
    data = _encoded(image_format)
    with pytest.raises(InvalidImage):
        decode(data[: int(len(data) * part)], max_pixels=MANY)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
@settings(deadline=None)
@given(missing=st.integers(1, 60) | st.integers(1, 2000))
def test_a_photo_with_alpha_that_is_cut_off_is_refused_unless_all_its_pixels_are_there(
    image_format: str, missing: int
) -> None:
    data = _encoded(image_format, "RGBA")
    try:
        pixels = decode(data[:-missing], max_pixels=MANY)
    except InvalidImage:
        return
    assert missing <= 21  # a PNG's end marker and checksums
    _assert_same(pixels, decode(data, max_pixels=MANY), 0)


@settings(deadline=None)
@given(data=st.binary(max_size=400))
@example(data=b"BM")
def test_any_bytes_make_a_photo_or_a_documented_error(data: bytes) -> None:
    _assert_photo_or_error(data)


@settings(deadline=None)
@given(magic=st.sampled_from(MAGICS), rest=st.binary(max_size=300))
def test_any_bytes_behind_a_magic_number_make_a_photo_or_a_documented_error(
    magic: bytes, rest: bytes
) -> None:
    _assert_photo_or_error(magic + rest)


@pytest.mark.parametrize("image_format", FORMATS)
@settings(deadline=None)
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_photo_with_changed_bytes_makes_a_photo_or_a_documented_error(
    image_format: str, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(_encoded(image_format))
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    _assert_photo_or_error(bytes(data))


def _assert_photo_or_error(data: bytes) -> None:
    try:
        pixels = decode(data, max_pixels=1_000_000)
    except (InvalidImage, UnsupportedFormat, TooLarge):
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.size


# Too many pixels


@pytest.mark.parametrize("image_format", FORMATS)
def test_as_many_pixels_as_allowed_are_read_and_one_more_is_refused(image_format: str) -> None:
    data = _encoded(image_format)
    assert decode(data, max_pixels=WIDTH * HEIGHT).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(TooLarge, match=f"{WIDTH} x {HEIGHT} pixels.* 850 that MAX_PIXELS"):
        decode(data, max_pixels=WIDTH * HEIGHT - 1)


@pytest.mark.parametrize("side", [10_001, 13_000, 20_000])
def test_too_many_pixels_are_refused_by_the_header_alone(side: int) -> None:
    # There is no pixel behind this header: whoever decoded it would call the file damaged.
    data = _one_bit_png(side, side, b"")
    with pytest.raises(TooLarge, match=f"{side} x {side} pixels"):
        decode(data, max_pixels=MANY)


def test_too_many_pixels_are_refused_before_any_memory_is_taken_for_them() -> None:
    # A process of its own: only its peak memory tells what C libraries have allocated.
    side = 20_000
    rows = zlib.compress(bytes(side * (side // 8 + 1)), 1)
    script = """
import resource, sys
from backend.errors import TooLarge
from backend.vision.decode import decode
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = sys.stdin.buffer.read()
before = peak()
try:
    decode(data, max_pixels=100_000_000)
except TooLarge:
    print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=_one_bit_png(side, side, rows),
        capture_output=True,
        check=True,
    )
    kibibytes = int(done.stdout)
    assert kibibytes < 50_000  # its pixels would take 390,000 in the smallest form


def test_the_limit_is_the_caller_s_alone() -> None:
    """Pillow's own limit, 179 million pixels, must not come before a higher one of the caller."""
    data = _one_bit_png(15_000, 15_000, zlib.compress(bytes(15_000 * 1_876), 1))
    assert read_header(data).width == 15_000


# Around the header


def test_reading_a_header_decodes_no_pixel() -> None:
    header = read_header(_one_bit_png(12_000, 9_000, b""))
    assert (header.format, header.width, header.height) == ("PNG", 12_000, 9_000)


def test_reading_headers_in_threads_leaves_the_process_s_warning_filters_alone() -> None:
    data = _encoded("PNG")
    interval = sys.getswitchinterval()
    with warnings.catch_warnings():  # whatever happens here ends here
        before = list(warnings.filters)
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(8) as threads:
                list(threads.map(read_header, [data] * 800))
        finally:
            sys.setswitchinterval(interval)
        assert list(warnings.filters) == before


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_first_bytes_tell_the_format(image_format: str) -> None:
    data = _encoded(image_format)
    assert sniff(data[:SNIFF_BYTES]) == image_format == read_header(data).format
    assert image_format in CONTENT_TYPES


@pytest.mark.parametrize(
    ("beginning", "image_format"),
    [
        (b"MM\0*\0\0\0\x08", "TIFF"),
        (b"II+\0\x08\0\0\0", "TIFF"),
        (b"RIFF\0\0\0\0WAVE", None),
        (b"GIF89a", None),
        (b"\xff\xd8", None),
        (b"\x89PNG\n", None),
        (b"<svg>", None),
        (b"", None),
    ],
)
def test_only_whole_magic_numbers_count(beginning: bytes, image_format: str | None) -> None:
    assert sniff(beginning) == image_format


@settings(deadline=None)
@given(st.binary(max_size=20))
def test_sniffing_takes_any_bytes(beginning: bytes) -> None:
    assert sniff(beginning) in {None, *CONTENT_TYPES}


# A reduced scale


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("longer_side", "divisor"),
    [(801, 1), (800, 1), (401, 1), (400, 2), (201, 2), (200, 4), (101, 4), (100, 8), (1, 8)],
)
def test_a_jpeg_is_reduced_to_no_less_than_what_is_enough(
    longer_side: int, divisor: int, orientation: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(cv2.resize(_scene(), (800, 600), interpolation=cv2.INTER_CUBIC))
    data = _save(image, "JPEG", quality=95, exif=exif)
    pixels = decode(data, max_pixels=MANY, longer_side=longer_side)
    told = decoded_pixels(read_header(data), longer_side)
    assert abs(told - pixels.shape[0] * pixels.shape[1]) <= sum(pixels.shape[:2])
    reference = np.asarray(Image.fromarray(_by_pillow(data)).reduce(divisor), np.int64)
    assert pixels.shape == reference.shape
    assert np.abs(pixels - reference).mean() < 2


@pytest.mark.parametrize("image_format", LOSSLESS)
def test_other_formats_are_decoded_at_full_scale(image_format: str) -> None:
    data = _save(Image.fromarray(_scene()), image_format, **LOSSLESS[image_format])
    assert decode(data, max_pixels=MANY, longer_side=1).shape == (HEIGHT, WIDTH, 3)


def test_the_limit_is_of_the_photo_not_of_what_is_decoded() -> None:
    data = _save(Image.new("RGB", (100, 100)), "JPEG")
    with pytest.raises(TooLarge):
        decode(data, max_pixels=9_999, longer_side=10)
