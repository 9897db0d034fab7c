"""Decodes photos in processes that may be killed. Blocks: call it in a thread.

Every photo is decoded there, wherever it comes from, its header included: a folder's photos have
often come from others too, and there is one way. The step aside costs half a millisecond of a
processor, since pixels are in memory that both sides have (docs/decisions.md). A photo that takes
too long, or too much memory, or makes a library crash, ends its process and gets an error; the next
photo gets another process.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from backend.decoding.process import NONSENSE, DecoderEnded, DecoderProcess
from backend.errors import InvalidImage, TooLarge, Unavailable, UnsupportedFormat
from backend.vision.decode import CONTENT_TYPES, Header
from backend.vision.thumbnail import MediaType

__all__ = ["DecodedPhoto", "Decoders"]

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

_PROGRAM: Final = "backend.decoding.worker"
_MEMORY: Final = 2**28
_MEMORY_A_PIXEL: Final = 20
"""Bytes: a progressive CMYK JPEG and a transparent PNG take most of it."""
_PHOTOS_A_PROCESS: Final = 10_000
"""Then another one takes its place: what a library leaks on damaged photos does not add up."""
_LEAST_RESULT: Final = 2**24
"""Bytes: a thumbnail of noise may take more than a small photo's pixels."""


@dataclass(frozen=True)
class DecodedPhoto:
    """Upright RGB pixels, uint8 [H, W, 3], perhaps at a reduced scale, and what its header says."""

    header: Header
    pixels: NDArray[np.uint8]


class Decoders:
    """Processes that decode photos: as many as there are callers at a time, started when needed."""

    def __init__(
        self,
        *,
        max_pixels: int,
        max_frames: int = 1000,
        max_bytes: int = 2**29,
        seconds: float = 30.0,
        memory: int | None = None,
        program: str = _PROGRAM,
    ) -> None:
        """Starts nothing yet.

        Args:
            max_pixels: of a photo.
            max_frames: that it may have, of which the first is decoded.
            max_bytes: of a photo's file.
            seconds: that one of `max_pixels` may take, and, of the processor's time, one of less in
                proportion, but a tenth of it at least.
            memory: bytes that decoding may take; unset: what the limits make necessary.
            program: name of the module that runs in the processes.
        """
        self._limits = {"max_pixels": max_pixels, "max_frames": max_frames, "seconds": seconds}
        self._seconds = seconds
        self._memory = memory or _MEMORY + max_bytes + _MEMORY_A_PIXEL * max_pixels
        self._max_bytes = max_bytes
        self._result_bytes = max(_LEAST_RESULT, 3 * max_pixels)
        self._program = program
        self._lock = threading.Lock()
        self._idle: list[DecoderProcess] = []
        self._all: dict[DecoderProcess, int] = {}
        """How many photos each has been given."""
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Ids of the processes that there are."""
        with self._lock:
            return [process.pid for process in self._all]

    def start(self) -> None:
        """Starts a process before the first photo comes, so that it need not wait for it.

        Raises:
            Unavailable: as `decode`.
        """
        with self._lock:
            self._check_open()
            process = self._start()
            self._all[process] = 0
            self._idle.append(process)

    def read_header(self, data: bytes) -> Header:
        """What a photo says of itself, where it keeps to the limits.

        Raises:
            InvalidImage, UnsupportedFormat, TooLarge: as `decode`.
            Unavailable: as `decode`.
        """
        return self._with_process(lambda process: _header(self._ask(process, "header", data)))

    def decode(self, data: bytes, *, longer_side: int | None = None) -> DecodedPhoto:
        """The first frame of an encoded photo; see `vision.decode.decode`.

        Raises:
            InvalidImage: no image, or a damaged one; also one that takes too long or too much
                memory, or crashes a library.
            UnsupportedFormat: an image of another format.
            TooLarge: more pixels or frames than are allowed.
            Unavailable: no process can be started, or the service is stopping.
        """

        def run(process: DecoderProcess) -> DecodedPhoto:
            answer = self._ask(process, "decode", data, longer_side=longer_side)
            header, shape = _header(answer), answer.get("shape")
            if not isinstance(shape, list) or len(shape) != 2:
                raise DecoderEnded(NONSENSE)
            return DecodedPhoto(header, process.result(*shape, 3))

        return self._with_process(run)

    def make_thumbnail(self, data: bytes, size: int, media_type: MediaType) -> bytes:
        """A small copy; see `vision.thumbnail.make_thumbnail`.

        Raises:
            as `decode`.
        """

        def run(process: DecoderProcess) -> bytes:
            answer = self._ask(process, "thumbnail", data, size=size, media_type=media_type)
            return process.result(answer.get("written")).tobytes()

        return self._with_process(run)

    def _ask(
        self, process: DecoderProcess, task: str, data: bytes, **options: object
    ) -> Mapping[str, Any]:
        return process.ask({"task": task, **self._limits, **options}, data, self._seconds)

    def _with_process(self, run: Callable[[DecoderProcess], _T]) -> _T:
        process = self._take()
        try:
            result = run(process)
        except (InvalidImage, TooLarge, UnsupportedFormat):
            self._give_back(process)
            raise
        except DecoderEnded as end:
            self._end(process)
            self._check_open()
            _log.warning("decoder.ended", pid=process.pid, reason=str(end))
            raise InvalidImage(
                f"the photo cannot be decoded: {end}. It is damaged, or takes more time or memory"
                " than a photo may"
            ) from None
        except BaseException:
            self._end(process)
            raise
        self._give_back(process)
        return result

    def _take(self) -> DecoderProcess:
        while True:
            with self._lock:
                self._check_open()
                process = self._idle.pop() if self._idle else self._start()
                self._all[process] = photos = self._all.get(process, 0) + 1
            if process.is_alive and photos <= _PHOTOS_A_PROCESS:
                return process
            self._end(process)  # its time is up, or somebody has killed it while it was idle

    def _start(self) -> DecoderProcess:
        return DecoderProcess(
            self._program,
            photo_bytes=self._max_bytes,
            result_bytes=self._result_bytes,
            memory=self._memory,
        )

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the service is stopping: send the photo again later")

    def _give_back(self, process: DecoderProcess) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(process)
                return
        self._end(process)

    def _end(self, process: DecoderProcess) -> None:
        process.kill()
        process.close()
        with self._lock:
            self._all.pop(process, None)

    def close(self) -> None:
        """Ends the processes, also those that are at work: they have nothing to lose."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for process in self._all:
                process.kill()  # of one at work, who waits for it closes the rest
        for process in idle:
            self._end(process)


def _header(answer: Mapping[str, Any]) -> Header:
    """The header that a process answers with, looked at before it is believed."""
    match answer.get("header"):
        case [str(kind), int(width), int(height), bool(has_alpha), int(orientation)] if (
            kind in CONTENT_TYPES and width > 0 < height and 1 <= orientation <= 8
        ):
            return Header(kind, width, height, has_alpha, orientation)
    raise DecoderEnded(NONSENSE)
