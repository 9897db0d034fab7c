"""Changes of bytes, drawn at random: blind ones, and ones that know where a format keeps sizes."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from PIL import Image, ImageCms

from tests.photos import draw_photo

__all__ = ["Sample", "blind", "mutated_photo", "photos"]

Draw = random.Random

_WIDTH, _HEIGHT = 64, 48
_SIZES: Final = (0, 1, 2, 7, 127, 128, 255, 256, 4095, 32767, 32768, 65535, 2**24, 2**31 - 1)
_MORE_SIZES: Final = (2**31, 2**32 - 1)
_MOST_INSERTED: Final = 64


@dataclass(frozen=True)
class Field:
    """A number in a file that says how much there is of something, or where."""

    offset: int
    form: str


@dataclass(frozen=True)
class Sample:
    """A good photo, and where its sizes are."""

    name: str
    data: bytes
    fields: Sequence[Field]


def photos() -> list[Sample]:
    """Small photos of every format and of many kinds, with EXIF and ICC blocks."""
    scene = Image.fromarray(draw_photo(1, width=_WIDTH, height=_HEIGHT))
    alpha = scene.convert("RGBA")
    alpha.putalpha(scene.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a camera"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    blocks: dict[str, Any] = {"exif": exif, "icc_profile": profile}
    two = [scene.rotate(90)]
    saved: list[tuple[str, Image.Image, str, dict[str, Any]]] = [
        ("jpeg", scene, "JPEG", blocks),
        ("jpeg progressive", scene, "JPEG", {"progressive": True}),
        ("jpeg grey", scene.convert("L"), "JPEG", {}),
        ("jpeg cmyk", scene.convert("CMYK"), "JPEG", {}),
        ("png", scene, "PNG", blocks),
        ("png palette", scene.quantize(16), "PNG", {"transparency": 3}),
        ("png alpha", alpha, "PNG", {}),
        ("png bits", scene.convert("1"), "PNG", {}),
        ("png 16 bit", scene.convert("I;16"), "PNG", {}),
        ("png frames", scene, "PNG", {"save_all": True, "append_images": two}),
        ("webp", scene, "WEBP", blocks),
        ("webp lossless", alpha, "WEBP", {"lossless": True}),
        ("webp frames", scene, "WEBP", {"save_all": True, "append_images": two}),
        ("bmp", scene, "BMP", {}),
        ("bmp palette", scene.quantize(16), "BMP", {}),
        ("tiff", scene, "TIFF", {}),
        ("tiff lzw", scene, "TIFF", {"compression": "tiff_lzw"}),
        ("tiff deflate", alpha, "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("tiff jpeg", scene, "TIFF", {"compression": "jpeg"}),
        ("tiff fax", scene.convert("1"), "TIFF", {"compression": "group4"}),
        ("tiff pages", scene, "TIFF", {"save_all": True, "append_images": two}),
    ]
    samples = []
    for name, photo, image_format, options in saved:
        file = io.BytesIO()
        photo.save(file, image_format, **options)
        data = file.getvalue()
        samples.append(Sample(name, data, _FIELDS[image_format](data)))
    return samples


def mutated_photo(draw: Draw, samples: Sequence[Sample]) -> tuple[str, bytes]:
    """A photo of which something is wrong, and what has been done to which."""
    sample = draw.choice(samples)
    data = bytearray(sample.data)
    done = []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        kind = draw.random()
        if kind < 0.35 and sample.fields:
            field = draw.choice(sample.fields)
            done.append(_set_size(draw, data, field))
        elif kind < 0.45 and sample.name.startswith("png"):
            data = bytearray(_change_png(draw, bytes(data)))
            done.append("chunk")
        elif kind < 0.55:
            other = draw.choice(samples)
            at, to = draw.randrange(len(data) + 1), draw.randrange(len(other.data) + 1)
            data = bytearray(bytes(data[:at]) + other.data[to:])
            done.append(f"splice with {other.name}")
        else:
            name, changed = blind(draw, bytes(data))
            data = bytearray(changed)
            done.append(name)
    return f"{sample.name}: {', '.join(done)}", bytes(data)


def blind(draw: Draw, data: bytes) -> tuple[str, bytes]:
    """Bytes with a change of one of the kinds that need to know nothing of them."""
    changed = bytearray(data)
    size = len(changed)
    kind = draw.choice(("flip", "set", "cut", "drop", "insert", "repeat", "zero", "swap"))
    if size < 2:
        return "insert", bytes(changed) + draw.randbytes(4)
    at = draw.randrange(size)
    length = min(size - at, draw.choice((1, 2, 4, 16, 64, 256)))
    match kind:
        case "flip":
            for _ in range(draw.randint(1, 16)):
                changed[draw.randrange(size)] ^= 1 << draw.randrange(8)
        case "set":
            for _ in range(draw.randint(1, 8)):
                changed[draw.randrange(size)] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
        case "cut":
            del changed[at:]
        case "drop":
            del changed[at : at + length]
        case "insert":
            changed[at:at] = draw.randbytes(draw.randint(1, _MOST_INSERTED))
        case "repeat":
            changed[at:at] = changed[at : at + length] * draw.randint(1, 8)
        case "zero":
            changed[at : at + length] = bytes(length)
        case "swap":
            other = draw.randrange(size)
            changed[at], changed[other] = changed[other], changed[at]
    return kind, bytes(changed)


def _set_size(draw: Draw, data: bytearray, field: Field) -> str:
    width = struct.calcsize(field.form)
    if field.offset + width > len(data):
        return "nothing"
    value = draw.choice((*_SIZES, *_MORE_SIZES, draw.randrange(2**16)))
    data[field.offset : field.offset + width] = struct.pack(
        field.form, value & (2 ** (8 * width) - 1)
    )
    return f"{value} at {field.offset}"


def _change_png(draw: Draw, data: bytes) -> bytes:
    """A PNG with a chunk changed, and its checksum right: damage that is not found by it."""
    chunks = []
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            break
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return data
    index = draw.randrange(len(chunks))
    kind, content = chunks[index]
    match draw.choice(("content", "kind", "double", "drop", "move")):
        case "content":
            chunks[index] = (kind, blind(draw, content)[1])
        case "kind":
            chunks[index] = (draw.choice((b"IDAT", b"PLTE", b"tRNS", b"eXIf", b"fdAT")), content)
        case "double":
            chunks.insert(index, chunks[index])
        case "drop":
            del chunks[index]
        case "move":
            chunks.insert(draw.randrange(len(chunks)), chunks.pop(index))
    return data[:8] + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def _jpeg_fields(data: bytes) -> list[Field]:
    fields = []
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        fields.append(Field(at + 1, ">B"))
        fields.append(Field(at + 2, ">H"))
        if 0xC0 <= marker <= 0xC2:
            # Precision, height, width, components and their sampling.
            fields += [Field(at + 4, ">B"), Field(at + 5, ">H"), Field(at + 7, ">H")]
            fields += [Field(at + 9, ">B"), Field(at + 11, ">B")]
        elif marker == 0xE1:
            fields += [Field(at + 10 + step, ">H") for step in range(0, 40, 2)]
        elif marker == 0xDA:
            break
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return fields


def _png_fields(data: bytes) -> list[Field]:
    fields = [Field(16, ">I"), Field(20, ">I"), *(Field(24 + step, ">B") for step in range(5))]
    at = 8
    while at + 12 <= len(data):
        fields.append(Field(at, ">I"))
        at += 12 + struct.unpack_from(">I", data, at)[0]
    return fields


def _webp_fields(data: bytes) -> list[Field]:
    fields = [Field(4, "<I")]
    at = 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        fields.append(Field(at + 4, "<I"))
        # What tells width and height lies at the beginning of each kind of chunk.
        fields += [Field(at + 8 + step, "<H") for step in range(0, 12, 2)]
        at += 8 + length + length % 2
    return fields


def _bmp_fields(data: bytes) -> list[Field]:
    return [Field(offset, "<I") for offset in (2, 10, 14, 18, 22, 30, 34, 46)] + [
        Field(26, "<H"),
        Field(28, "<H"),
    ]


def _tiff_fields(data: bytes) -> list[Field]:
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    fields = [Field(4, "<I"), Field(at, "<H")]
    for number in range(count):
        entry = at + 2 + 12 * number
        fields += [Field(entry, "<H"), Field(entry + 2, "<H")]
        fields += [Field(entry + 4, "<I"), Field(entry + 8, "<I")]
    return fields


_FIELDS: Final[dict[str, Callable[[bytes], list[Field]]]] = {
    "JPEG": _jpeg_fields,
    "PNG": _png_fields,
    "WEBP": _webp_fields,
    "BMP": _bmp_fields,
    "TIFF": _tiff_fields,
}
