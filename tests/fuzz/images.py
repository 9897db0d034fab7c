"""Changed photos on the way that every photo goes: decoded, or refused with a reason."""

import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import psutil

from backend.decoding.pool import Decoders
from backend.errors import InvalidImage, ServiceError
from tests.fuzz.mutations import mutated_photo, photos

__all__ = ["MOST_GROWTH", "ImagesReport", "fuzz_images"]

MOST_GROWTH: Final = 96 * 2**20
"""Bytes by which this process and the decoding ones may have grown after the first tenth: a photo
of MAX_PIXELS, here two million, takes six megabytes, and each of two processes may hold on to what
its libraries have once needed."""
_MAX_PIXELS: Final = 2_000_000
_SECONDS: Final = 5.0
_THREADS: Final = 2


@dataclass
class ImagesReport:
    """What has become of the photos.

    Attributes:
        decoded: that are photos all the same.
        refused: by the error's class.
        ended: that have ended the process that decoded them.
        growth: bytes of memory, since a tenth was done.
    """

    decoded: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    ended: list[str] = field(default_factory=list)
    growth: int = 0
    slowest: float = 0.0
    seconds: float = 0.0


def fuzz_images(
    count: int, seed: int, tell: Callable[[str], None] = lambda line: None
) -> ImagesReport:
    """Decodes so many changed photos.

    Raises:
        AssertionError: one is neither decoded nor refused as a client's mistake, memory has grown
            by more than MOST_GROWTH, or a file was left.
    """
    draw = random.Random(seed)
    samples = photos()
    report = ImagesReport()
    begun = time.monotonic()
    before = 0
    with _empty_folder() as folder, ThreadPoolExecutor(_THREADS) as threads:
        decoders = Decoders(max_pixels=_MAX_PIXELS, seconds=_SECONDS)
        try:
            descriptors = psutil.Process().num_fds()
            done = 0
            while done < count:
                batch = [
                    mutated_photo(draw, samples) for _ in range(min(_batch(count), count - done))
                ]
                list(threads.map(partial(_decode, decoders, report), batch))
                done += len(batch)
                before = before or _memory(decoders)
                tell(f"{done} photos, {report.decoded} of them decoded")
            report.growth = _memory(decoders) - before
            assert len(decoders.pids) <= _THREADS
            assert psutil.Process().num_fds() <= descriptors + 8 * _THREADS
        finally:
            decoders.close()
        assert not os.listdir(folder), f"files were left: {os.listdir(folder)}"
    report.seconds = time.monotonic() - begun
    assert report.growth <= MOST_GROWTH, f"memory has grown by {report.growth} bytes"
    return report


def _batch(count: int) -> int:
    return max(1, count // 10)


def _decode(decoders: Decoders, report: ImagesReport, changed: tuple[str, bytes]) -> None:
    name, data = changed
    begun = time.monotonic()
    try:
        photo = decoders.decode(data)
    except ServiceError as error:
        if error.status >= 500:
            raise AssertionError(f"{name}: {error.status} {error}") from error
        report.refused[type(error).__name__] += 1
        if isinstance(error, InvalidImage) and "the photo cannot be decoded: " in str(error):
            report.ended.append(f"{name}: {error}")
    except Exception as error:
        error.add_note(name)
        raise
    else:
        assert photo.pixels.dtype == "uint8", name
        assert photo.pixels.shape == (photo.header.height, photo.header.width, 3), name
        assert photo.pixels.size <= 3 * _MAX_PIXELS, name
        report.decoded += 1
    report.slowest = max(report.slowest, time.monotonic() - begun)


def _memory(decoders: Decoders) -> int:
    """Of this process and of those that decode; pixels that they share count once for each."""
    pids = (os.getpid(), *decoders.pids)
    return sum(psutil.Process(pid).memory_info().rss for pid in pids)


@contextmanager
def _empty_folder() -> Iterator[Path]:
    """Where temporary files go meanwhile, of this process and of those that it starts."""
    with tempfile.TemporaryDirectory() as folder:
        before = {name: os.environ.get(name) for name in ("TMPDIR",)}
        os.environ["TMPDIR"], tempfile.tempdir = folder, folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = None
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
