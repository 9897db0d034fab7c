"""A process that decodes photos as the real one does, but for some that make it misbehave.

What a photo does that makes a library hang, crash or take all memory, is done here by a PNG with a
comment that says so: no such photo is known of the libraries that are in use.
"""

import ctypes
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image, PngImagePlugin

from backend.decoding import worker
from backend.vision.decode import Header, read_header
from tests.photos import draw_photo


def photo_that(misbehaves: str) -> bytes:
    """A photo that makes this process do what the name of one of its functions says."""
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Comment", f"please {misbehaves}")
    encoded = io.BytesIO()
    Image.fromarray(draw_photo(1)).save(encoded, "PNG", pnginfo=comment)
    return encoded.getvalue()


def _hang() -> None:
    time.sleep(3600)


def _loop() -> None:
    while True:
        pass


def _crash() -> None:
    ctypes.string_at(0)


def _abort() -> None:
    os.abort()


def _be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _leave() -> None:
    os._exit(0)


def _bloat() -> None:
    pieces = []
    while True:
        pieces.append(bytearray(b"x" * 2**24))


def _bloat_at_once() -> None:
    bytearray(2**50)


def _fail() -> None:
    raise KeyError("a fault of ours")


def _recurse() -> None:
    _recurse()


def _read_a_file() -> None:
    with open("/etc/hostname") as file:
        file.read()
    os._exit(0)  # it could: what is asked for is an error


def _tell_a_secret() -> None:
    if any("SECRET" in name for name in os.environ):
        os._exit(0)
    raise KeyError("there is none")


def _talk_nonsense() -> None:
    os.write(int(sys.argv[1]), b"[1, 2")
    time.sleep(3600)


def _claim_much() -> None:
    os.write(int(sys.argv[1]), b'{"header": ["PNG", 4, 4, false, 1], "shape": [999999, 999999]}')
    time.sleep(3600)


def _claim_less_than_nothing() -> None:
    os.write(int(sys.argv[1]), b'{"header": ["PNG", 4, 4, false, 1], "shape": [-4, -4]}')
    time.sleep(3600)


def _claim_a_page() -> None:
    os.write(int(sys.argv[1]), b'{"header": ["HTML", 4, 4, false, 1], "shape": [4, 4]}')
    time.sleep(3600)


_DEEDS: Mapping[str, Callable[[], None]] = {
    name.removeprefix("_"): deed
    for name, deed in list(globals().items())
    if name.startswith("_") and callable(deed)
}


def _read_header(data: bytes, **limits: Any) -> Header:
    _, please, wish = data.partition(b"please ")
    if please:
        _DEEDS[
            next(name for name in sorted(_DEEDS, key=len)[::-1] if wish.startswith(name.encode()))
        ]()
    return read_header(data, **limits)


if __name__ == "__main__":
    worker.read_header = _read_header  # type: ignore[attr-defined]
    worker.main(sys.argv[1:])
