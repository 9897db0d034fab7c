"""Decompression bombs: few bytes that want a lot of memory or time, in each format."""

import gzip
import io
import struct
import time
import zlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Final

from PIL import Image

from tests.attacks.cases import Attacks
from tests.attacks.target import BOUNDARY, Target, form, part
from tests.photos import draw_photo, encode

__all__ = ["ATTACKS"]

ATTACKS: Final = Attacks("decompression bombs")
_MEGABYTE: Final = 2**20
_MOST_GROWTH: Final = 300 * 2**20
"""Bytes that a server may take more while it is attacked: a photo at the limit of MAX_PIXELS takes
as much, and is welcome."""


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def _png(width: int, height: int, *chunks: bytes, depth: int = 1, colour: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + b"".join(chunks) + _chunk(b"IEND", b"")


@cache
def _block() -> bytes:
    """A megabyte of zeros as deflate packs it, good to be put behind another one."""
    packer = zlib.compressobj(9, wbits=-15)
    return packer.compress(bytes(_MEGABYTE)) + packer.flush(zlib.Z_FULL_FLUSH)


def _zeros(size: int) -> bytes:
    """So many zeros, in zlib's format, that have never been there: all but 1 MB is repeated."""
    packer = zlib.compressobj(9, wbits=-15)
    rest = packer.compress(bytes(size % _MEGABYTE)) + packer.flush()
    checksum = struct.pack(">HH", size % 65521, 1)  # Adler-32 of zeros
    return b"\x78\xda" + _block() * (size // _MEGABYTE) + rest + checksum


def _gzip(size: int) -> bytes:
    """The same in gzip's format, of which only the end tells that the checksum is wrong."""
    return b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + _zeros(size)[2:-4] + bytes(8)


def _jpeg_sized(width: int, height: int) -> bytes:
    """A small JPEG whose frame header says that it is large."""
    data = bytearray(encode(draw_photo(1)))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _progressive_scans() -> bytes:
    """A progressive JPEG that goes over its pixels again and again: libjpeg decodes each time."""
    file = io.BytesIO()
    Image.fromarray(draw_photo(2)).resize((2000, 1500)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    data = data[: data.rindex(b"\xff\xd9")]
    start = data.rindex(b"\xff\xda")
    return data + data[start:] * 1000 + b"\xff\xd9"


def _bmp(width: int, height: int, *, compression: int = 0) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, 4, 0, 0, 2, 0)
    palette = bytes(8)
    offset = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + 4, 0, 0, offset) + header + palette + bytes(4)


def _tiff(
    width: int, height: int, *, packed: bytes = b"", compression: int = 1, loops: int = 0
) -> bytes:
    """A TIFF of one strip; with `loops` its directory follows itself."""
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, compression),
        (262, 3, 1, 1),
        (273, 4, 1, 200),
        (277, 3, 1, 1),
        (278, 4, 1, height),
        (279, 4, 1, len(packed)),
    ]
    directory = struct.pack("<H", len(entries))
    for tag, kind, count, value in entries:
        directory += struct.pack("<HHII", tag, kind, count, value)
    directory += struct.pack("<I", 8 if loops else 0)
    return (b"II*\0" + struct.pack("<I", 8) + directory).ljust(200, b"\0") + packed


def _saved(photo: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    photo.save(file, kind, **options)
    return file.getvalue()


def _webp(width: int, height: int) -> bytes:
    """A lossless WebP whose header says that it is large."""
    data = bytearray(_saved(Image.new("RGB", (16, 16), "red"), "WEBP", lossless=True))
    start = data.index(b"VP8L") + 9
    data[start : start + 4] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return bytes(data)


def _frames(count: int, kind: str) -> bytes:
    first, *others = (Image.new("L", (8, 8), n % 256) for n in range(count))
    return _saved(first, kind, save_all=True, append_images=others, duration=10)


def _pages(count: int) -> bytes:
    """A TIFF of so many pages, all with the pixels of the first."""
    page = _tiff(8, 8, packed=bytes(64))
    directory = page[8:122]
    pages = [
        directory[:-4] + struct.pack("<I", 264 + 114 * (number + 1)) for number in range(count - 1)
    ]
    first = page[:118] + struct.pack("<I", 264) + page[122:]
    return first + b"".join(pages) + directory


def _ico(size: int) -> bytes:
    photo = _png(size, size, _chunk(b"IDAT", zlib.compress(b"")))
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(photo), 22) + photo


_SVG: Final = (
    b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a "aaaaaaaaaa">'
    b'<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]>'
    b'<svg xmlns="http://www.w3.org/2000/svg"><text>&c;</text></svg>'
)
_GIF: Final = (
    b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + bytes(6) + b"\x2c" + bytes(9)
)
_PSD: Final = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30000, 30000, 8, 3) + bytes(14)
_JP2: Final = b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">I", 45) + b"jp2h" + bytes(37)
_ZIP: Final = b"PK\3\4" + bytes(26) + b"bomb"
_EPS: Final = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99999 99999\n{} loop\n"

_BOMBS: Final[tuple[tuple[str, str, Callable[[], bytes]], ...]] = (
    (
        "JPEG of 65,500 x 65,500",
        "a JPEG's header that asks for 12.9 GB",
        lambda: _jpeg_sized(65500, 65500),
    ),
    (
        "JPEG just over the limit",
        "a JPEG's header one row past MAX_PIXELS",
        lambda: _jpeg_sized(10000, 10001),
    ),
    ("JPEG of no pixels", "a JPEG of 0 x 0", lambda: _jpeg_sized(0, 0)),
    (
        "PNG of 20,000 x 20,000",
        "50 MB of one-bit zeros in 50 KB",
        lambda: _png(20000, 20000, _chunk(b"IDAT", _zeros(20000 * 2501))),
    ),
    (
        "PNG of 2^31 x 2^31",
        "a PNG's header beyond every memory",
        lambda: _png(2**31 - 1, 2**31 - 1, _chunk(b"IDAT", zlib.compress(b""))),
    ),
    (
        "PNG of 64 bits a pixel",
        "20,000 x 20,000 with 16 bits a sample",
        lambda: _png(20000, 20000, _chunk(b"IDAT", _zeros(2**20)), depth=16, colour=6),
    ),
    (
        "WebP of 16,383 x 16,383",
        "the largest WebP, 805 MB, in a few bytes",
        lambda: _webp(16383, 16383),
    ),
    ("BMP of 50,000 x 50,000", "a BMP's header that asks for 7.5 GB", lambda: _bmp(50000, 50000)),
    ("BMP of 2^31 rows", "a BMP of the largest sizes", lambda: _bmp(2**31 - 1, 2**31 - 1)),
    (
        "BMP with run lengths",
        "a run-length-coded BMP that asks for 7.5 GB",
        lambda: _bmp(50000, 50000, compression=1),
    ),
    (
        "BMP upside down",
        "a BMP of negative height, large all the same",
        lambda: _bmp(50000, -50000),
    ),
    (
        "TIFF of 65,535 x 65,535",
        "a TIFF's header that asks for 12.9 GB",
        lambda: _tiff(65535, 65535),
    ),
    (
        "TIFF with deflate",
        "400 MB of zeros in a TIFF of 400 KB",
        lambda: _tiff(20000, 20000, packed=_zeros(20000 * 20000), compression=8),
    ),
    ("TIFF of 2^32 rows", "a TIFF of the largest sizes", lambda: _tiff(2**32 - 1, 2**32 - 1)),
    ("GIF of 65,535 x 65,535", "a format that is not read", lambda: _GIF),
    ("icon", "a bomb inside an icon", lambda: _ico(20000)),
    ("SVG with entities", "XML that blows itself up", lambda: _SVG),
    ("Photoshop", "a file of Photoshop of 30,000 x 30,000", lambda: _PSD),
    ("JPEG 2000", "a format that is not read", lambda: _JP2),
    ("ZIP archive", "an archive that is called a photo", lambda: _ZIP),
    ("PostScript", "a program with an endless loop that is called a photo", lambda: _EPS),
)


def _swallowed(make: Callable[[], bytes], address: str, target: Target) -> bool:
    """Whether a photo is taken that may not be."""
    return target.upload(address, make()).done


_ADDRESSES: Final = ("/img/upload?table_name=bombs", "/img/search", "/api/v1/detect")
for _number, (_name, _tries, _make) in enumerate(_BOMBS):
    # Each by one way in, in turn: behind them is one way to decode.
    _address = _ADDRESSES[_number % len(_ADDRESSES)]
    ATTACKS.add(
        _name, f"{_tries}, to {_address.partition('?')[0]}", partial(_swallowed, _make, _address)
    )


def _loaded(target: Target) -> bool:
    """A folder with a bomb in it."""
    folder = target.world.photos / f"bomb {time.monotonic_ns()}"
    folder.mkdir()
    bomb = folder / "bomb.png"
    bomb.write_bytes(_BOMBS[3][2]())
    table = f"bomb_{time.monotonic_ns()}"
    try:
        target.json("/img/load", f'{{"File": "{folder}", "Table": "{table}"}}'.encode())
        return target.count(table) > 0
    finally:
        bomb.unlink()
        folder.rmdir()


ATTACKS.add("PNG in a folder", "load a folder with the PNG of 20,000 x 20,000", _loaded)


@cache
def _comments(kind: str) -> bytes:
    """A good photo with a text in it that unpacks to 64 MB."""
    photo = encode(draw_photo(3), ".png")
    packed = _zeros(2**26)
    text = {
        "zTXt": b"Comment\0\0" + packed,
        "iTXt": b"Comment\0\1\0\0\0" + packed,
        "iCCP": b"icc\0\0" + packed,
    }[kind]
    return photo[:33] + _chunk(kind.encode(), text) + photo[33:]


def _grows(make: Callable[[], bytes], target: Target, *, seconds: float = 5.0) -> bool:
    """Whether a photo that may be taken costs the server more memory or time than it is worth."""
    before = target.memory()
    begun = time.monotonic()
    answer = target.upload("/img/search", make())
    if b"would_allocate" in answer.body:
        return True  # it would have
    return time.monotonic() - begun > seconds or target.memory() - before > _MOST_GROWTH


for _kind in ("zTXt", "iTXt", "iCCP"):
    ATTACKS.add(
        f"PNG with {_kind}",
        f"a good PNG whose {_kind} block unpacks to 64 MB",
        partial(_grows, partial(_comments, _kind)),
    )
ATTACKS.add(
    "JPEG of 1,000 scans",
    "a progressive JPEG that is decoded again and again",
    partial(_grows, _progressive_scans, seconds=15.0),
)
ATTACKS.add(
    "WebP of 2,000 frames",
    "an animation of which one frame is wanted",
    partial(_grows, partial(_frames, 2000, "WEBP")),
)
ATTACKS.add(
    "PNG of 2,000 frames",
    "an animated PNG of which one frame is wanted",
    partial(_grows, partial(_frames, 2000, "PNG")),
)
ATTACKS.add(
    "TIFF of 2,000 pages",
    "a document of which one page is wanted",
    partial(_grows, partial(_pages, 2000)),
)
ATTACKS.add(
    "TIFF that follows itself",
    "a TIFF whose list of pages has no end",
    partial(_grows, lambda: _tiff(8, 8, packed=bytes(64), loops=1)),
)


def _packed_body(encoding: str, target: Target) -> bool:
    """Whether a body of some 200 KB is unpacked as far as it goes."""
    packed = (_gzip if encoding == "gzip" else _zeros)(200 * _MEGABYTE)
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    before = target.memory()
    answer = target.post("/img/load", packed, headers)
    return answer.done or target.memory() - before > _MOST_GROWTH


for _encoding in ("gzip", "deflate"):
    ATTACKS.add(
        f"body packed with {_encoding}",
        f"a JSON body of 200 MB as 200 KB of {_encoding}",
        partial(_packed_body, _encoding),
    )


def _packed_form(target: Target) -> bool:
    body = gzip.compress(form(part(bytes(34 * _MEGABYTE))), 1)
    headers = [
        ("Content-Type", f"multipart/form-data; boundary={BOUNDARY}"),
        ("Content-Encoding", "gzip"),
    ]
    return target.post("/img/search", body, headers).done


ATTACKS.add("form packed with gzip", "a form of 34 MB as 150 KB of gzip", _packed_form)


def _packed_part(target: Target) -> bool:
    packed = part(_gzip(100 * _MEGABYTE), headers="Content-Encoding: gzip\r\n")
    headers = [("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")]
    return target.post("/img/search", form(packed), headers).done


ATTACKS.add("part packed with gzip", "a part of a form of 100 MB as 100 KB of gzip", _packed_part)
