"""One photo on its way in: read, analysed, and made into what is to be written of it."""

import hashlib
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from typing import Final, Protocol, TypeVar

import numpy as np
import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential

from backend.analysis import AnalyzedPhoto, PhotoAnalyzer
from backend.budget import Budget
from backend.errors import (
    EngineGone,
    InvalidImage,
    OutOfProcesses,
    ServiceError,
    StoreRefuses,
    StoreUnavailable,
)
from backend.places import PhotoPlaces
from backend.scanning import FoundPhoto
from backend.storage.catalog import Image, NewImage, TouchedImage, path_key
from backend.writing import PreparedPhoto

__all__ = ["Patience", "PhotoPreparer", "is_unchanged"]

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

_FILE_BYTES_IN_MEMORY: Final = 2**29
"""Of the files of photos in flight, 512 MiB, or one that is larger."""
_DECODER_SECONDS: Final = 60.0
"""To wait for a process to decode a photo in, where the machine has none to give."""
_MAX_WAIT_SECONDS: Final = 5.0


class Patience(Protocol):
    """Makes attempts, each after the engine that failed the one before is back."""

    async def __call__(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """What the first attempt returns that no engine fails.

        Raises:
            EngineUnavailable: an engine has failed for long that is back each time: it fails with
                this photo.
            EngineGone: it does not come back.
        """
        ...


class PhotoPreparer:
    """Prepares photos to be written, several at a time."""

    def __init__(
        self, analyzer: PhotoAnalyzer, *, max_file_bytes: int, files: Executor | None = None
    ) -> None:
        """`files`: threads that read and hash the files of this machine; else asyncio's own."""
        self._analyzer = analyzer
        self._max_file_bytes = max_file_bytes
        self._files = files
        self._bytes = Budget(_FILE_BYTES_IN_MEMORY)

    async def prepare(
        self, photo: FoundPhoto, known: Image | None, within: PhotoPlaces, patiently: Patience
    ) -> PreparedPhoto | TouchedImage:
        """Reads and analyses a photo; whatever is wrong with it becomes its error.

        Args:
            photo: as it was found.
            known: its row, where the catalog has one: where that has the same bytes, only what is
                known of the file is to be written.
            within: the places that it may lie in.
            patiently: waits for engines and for stores that are away.

        Raises:
            StoreUnavailable, StoreRefuses: not the photo is what is wrong, but where it lies.
            EngineGone: as `patiently` does, which waits no longer.
        """
        sha256 = ""
        try:
            if photo.problem:
                raise InvalidImage(photo.problem)
            async with self._bytes.part(photo.size):
                data, sha256 = await patiently(partial(self._read, photo, within))
                if known is not None and known.state == "indexed" and known.sha256 == sha256:
                    return TouchedImage(known.id, photo.size, photo.mtime_ns)
                analyzed = await patiently(partial(self._analyze, data))
        except (StoreUnavailable, StoreRefuses, EngineGone):
            raise  # it is no fault of the photo's
        except ServiceError as problem:
            return self._failed(photo, sha256, str(problem))
        except OSError as problem:
            return self._failed(photo, sha256, f"the file cannot be read: {problem.strerror}")
        except Exception as problem:
            # Anything else is a fault of ours or of an engine. It is recorded like a bad photo,
            # because one photo never stops a load, and the next load tries it again.
            _log.exception("load.photo_broke", path=photo.path)
            return self._failed(photo, sha256, f"{type(problem).__name__}: {problem}")
        return PreparedPhoto(
            NewImage(
                path=photo.path,
                path_key=path_key(photo.path),
                sha256=sha256,
                size=photo.size,
                mtime_ns=photo.mtime_ns,
                width=analyzed.width,
                height=analyzed.height,
                objects=analyzed.objects,
                phash=analyzed.phash,
            ),
            analyzed.embeddings,
        )

    async def _analyze(self, data: bytes) -> AnalyzedPhoto:
        """As the analyzer does; that there is no process to decode in is waited out for a while."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(OutOfProcesses),
            wait=wait_exponential(max=_MAX_WAIT_SECONDS),
            stop=stop_after_delay(_DECODER_SECONDS),
            reraise=True,
        ):
            with attempt:
                return await self._analyzer.analyze(data)
        raise AssertionError("unreachable")

    def _failed(self, photo: FoundPhoto, sha256: str, reason: str) -> PreparedPhoto:
        return PreparedPhoto(
            NewImage(
                # A name that is not UTF-8 is shown with its odd bytes escaped; its key is exact.
                path=os.fsencode(photo.path).decode("utf-8", "backslashreplace"),
                path_key=path_key(photo.path),
                sha256=sha256,
                size=photo.size,
                mtime_ns=photo.mtime_ns,
                error=reason,
            ),
            np.empty((0, self._analyzer.embedder.dimension), np.float32),
        )

    async def _read(self, photo: FoundPhoto, within: PhotoPlaces) -> tuple[bytes, str]:
        def read() -> tuple[bytes, str]:
            data = within.read_file(photo.path, self._max_file_bytes)
            return data, hashlib.sha256(data).hexdigest()

        return await within.run(photo.path, read, here=self._files)


def is_unchanged(photo: FoundPhoto, known: Image | None) -> bool:
    """Whether a photo's file is, by its size and time, the one that was indexed."""
    return (
        known is not None
        and known.state == "indexed"
        and (known.size, known.mtime_ns) == (photo.size, photo.mtime_ns)
    )
