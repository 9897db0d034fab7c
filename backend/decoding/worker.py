"""The process that decodes photos; the service starts it, asks it one thing at a time, and ends it.

It has been given nothing that is worth having: a socket to the service, two pieces of memory (of
the photo, and of what becomes of it), no secret in its environment. It can open no file and no
connection, and it takes no more memory and no more of a processor's time than it may: a photo that
wants more ends the process, or is refused, and nothing but that photo is lost. It ends when the
service does.
"""

import contextlib
import json
import mmap
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import astuple
from typing import Any, Final

import cv2
import numpy as np
from PIL import Image

from backend.errors import InvalidImage, ServiceError
from backend.vision.decode import Header, check_pixels, decode, read_header
from backend.vision.thumbnail import make_thumbnail

__all__ = ["MESSAGE_BYTES", "main"]

MESSAGE_BYTES: Final = 2**14
"""A message of either side has less: pixels travel in memory."""
_LONGEST_REASON: Final = 1000
_LIKELIEST_VICTIM: Final = 500
"""Of the kernel's out-of-memory killer, which then spares the service."""
_SHARE_OF_ANY: Final = 0.1
"""Of the time that a photo of most pixels may take, this much has every photo; the rest by its
pixels."""


def main(arguments: list[str]) -> None:
    """Answers until the service closes the socket.

    Args:
        arguments: descriptors of the socket, and of the memory for the photo and for the result;
            bytes that decoding may take besides.
    """
    control, *shared, memory = map(int, arguments)
    # Ctrl-C reaches every process of a terminal's: what is under way is still wanted then.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _prepare()
    photo, result = [mmap.mmap(descriptor, 0) for descriptor in shared]
    _confine(memory)
    with socket.socket(fileno=control) as service:
        service.send(b"{}")
        while message := service.recv(MESSAGE_BYTES):
            service.send(json.dumps(_answer(json.loads(message), photo, result)).encode())


def _prepare() -> None:
    """Loads all that decoding could want: later there is no opening of files."""
    # Photos are decoded side by side; and what is wrong with one, the service says.
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    Image.init()
    pixels = np.zeros((8, 8, 3), np.uint8)
    for extension in (".jpg", ".png", ".webp", ".bmp", ".tiff"):
        _, encoded = cv2.imencode(extension, pixels)
        make_thumbnail(encoded.tobytes(), 8, "image/jpeg", max_pixels=64)


def _confine(memory: int) -> None:
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(_LIKELIEST_VICTIM))
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    for limit, most in (
        (resource.RLIMIT_AS, taken + memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        _, hardest = resource.getrlimit(limit)
        if hardest != resource.RLIM_INFINITY:
            most = min(most, hardest)
        resource.setrlimit(limit, (most, most))


def _answer(asked: Mapping[str, Any], photo: mmap.mmap, result: mmap.mmap) -> dict[str, Any]:
    try:
        _limit_time(asked["seconds"] * _SHARE_OF_ANY)
        return _TASKS[asked["task"]](asked, photo[: asked["bytes"]], result)
    except MemoryError:
        reason = "decoding the photo takes more memory than it may: it is damaged, or too large"
        return _refusal(InvalidImage(reason))
    except ServiceError as error:
        return _refusal(error)
    except Exception as error:  # a fault of ours, or of a library's; for the photo it is the same
        return _refusal(InvalidImage(f"the photo cannot be decoded: {type(error).__name__}"))
    finally:
        _limit_time(0)


def _refusal(error: ServiceError) -> dict[str, Any]:
    return {"error": type(error).__name__, "reason": str(error)[:_LONGEST_REASON]}


def _limit_time(seconds: float) -> None:
    """Ends the process (SIGPROF) when it has run for so long; 0: it may go on."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _read_header(asked: Mapping[str, Any], data: bytes) -> Header:
    header = read_header(data, max_frames=asked["max_frames"])
    check_pixels(header, asked["max_pixels"])
    part = header.width * header.height / asked["max_pixels"]
    _limit_time(asked["seconds"] * (_SHARE_OF_ANY + (1 - _SHARE_OF_ANY) * part))
    return header


def _tell_header(asked: Mapping[str, Any], data: bytes, result: mmap.mmap) -> dict[str, Any]:
    return {"header": astuple(_read_header(asked, data))}


def _decode(asked: Mapping[str, Any], data: bytes, result: mmap.mmap) -> dict[str, Any]:
    header = _read_header(asked, data)
    pixels = decode(
        data, max_pixels=asked["max_pixels"], longer_side=asked["longer_side"], header=header
    )
    np.copyto(np.frombuffer(result, np.uint8, pixels.size).reshape(pixels.shape), pixels)
    return {"header": astuple(header), "shape": pixels.shape[:2]}


def _make_thumbnail(asked: Mapping[str, Any], data: bytes, result: mmap.mmap) -> dict[str, Any]:
    header = _read_header(asked, data)
    thumbnail = make_thumbnail(
        data,
        asked["size"],
        asked["media_type"],
        max_pixels=asked["max_pixels"],
        header=header,
    )
    result[: len(thumbnail)] = thumbnail
    return {"written": len(thumbnail)}


_TASKS: Final[Mapping[str, Callable[[Mapping[str, Any], bytes, mmap.mmap], dict[str, Any]]]] = {
    "header": _tell_header,
    "decode": _decode,
    "thumbnail": _make_thumbnail,
}


if __name__ == "__main__":
    main(sys.argv[1:])
