"""Thumbnails of catalogued photos: made once, kept on disk, in the format that a client likes best.

A file of the cache is named by the SHA-256 of the photo, the size, how it was made, and its format;
its last 32 bytes are the SHA-256 of those before, so that a damaged one is made anew.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from backend.cores import count_cores
from backend.decoding.pool import Decoders
from backend.errors import Forbidden, InvalidImage, NotFound, UnsupportedFormat
from backend.photo_addresses import is_address
from backend.photo_cache import PhotoCache
from backend.places import PhotoPlaces
from backend.single_flight import SingleFlight
from backend.vision.thumbnail import RECIPE, MediaType

__all__ = ["RECIPE", "MediaType", "Thumbnails", "thumbnail_type"]

_NAME: Final = re.compile(r"[0-9a-f]{64}-[1-9][0-9]{0,4}-[0-9]+\.(?:avif|webp|jpeg)")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_DIGEST_BYTES: Final = 32
_MAX_THREADS: Final = 8
"""Each may hold the pixels of a photo; the larger ones are JPEGs, decoded at a reduced scale."""

_MAX_FETCHED: Final = 2 * _MAX_THREADS
"""Photos of stores in memory: some are on their way while others are made."""

_PREFERENCE: Final[tuple[MediaType, ...]] = ("image/webp", "image/avif", "image/jpeg")
"""Among those that a client likes as well. AVIF is no smaller than WebP at the speed that it takes
here, and takes twice its time: docs/decisions.md."""
_QUALITY: Final = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")


class Thumbnails:
    """Makes thumbnails and keeps them; many calls may be in flight together."""

    def __init__(
        self, folder: Path, *, max_bytes: int, decoders: Decoders, photos: PhotoPlaces
    ) -> None:
        """Looks at nothing yet.

        Args:
            folder: of the cache; several processes may share it.
            max_bytes: of the cache.
            decoders: make them.
            photos: the places that catalogued photos may lie in.
        """
        self._photos = photos
        self._cache = PhotoCache(folder, max_bytes=max_bytes, name=_NAME)
        self._decoders = decoders
        self._making: SingleFlight[bytes] = SingleFlight()
        self._fetching = asyncio.Semaphore(_MAX_FETCHED)
        self._threads = ThreadPoolExecutor(
            min(count_cores(), _MAX_THREADS), thread_name_prefix="thumbnails"
        )

    async def get(self, path: str, sha256: str, size: int, media_type: MediaType) -> bytes:
        """A photo's thumbnail, upright and in sRGB, neither side above `size` pixels.

        One that is kept is right for as long as the catalog says that these are the photo's bytes:
        the photo's own file is looked at only to make one.

        Args:
            path: of the photo's file.
            sha256: of the file's bytes, 64 hex digits, as the catalog has it.
            size: pixels that neither side exceeds; a smaller photo keeps its size.
            media_type: of the answer.

        Raises:
            NotFound: the file is gone, is not what the catalog knows, or is no readable photo.
            TooLarge: it has more pixels than MAX_PIXELS allows.
            TimeoutError: it is not made before the caller's deadline.
            Unavailable: the service is stopping.
        """
        if not _SHA256.fullmatch(sha256):
            raise NotFound("the photo has never been readable: there is no thumbnail of it")
        name = f"{sha256}-{size}-{RECIPE}.{media_type.removeprefix('image/')}"
        kept = await asyncio.to_thread(self._kept, name)
        if kept is not None:
            return kept

        async def make() -> bytes:
            loop = asyncio.get_running_loop()
            make_of = partial(self._make, name, size, media_type)
            if not is_address(path):  # else its store may keep whom waits for it
                read = partial(_read_photo, self._photos, path, sha256)
                return await loop.run_in_executor(self._threads, make_of, read)
            async with self._fetching:
                data = await self._photos.run(path, _read_photo, self._photos, path, sha256)
                return await loop.run_in_executor(self._threads, make_of, lambda: data)

        return await self._making.run(name, make)

    def _kept(self, name: str) -> bytes | None:
        sealed = self._cache.read(name)
        if sealed is None:
            return None
        thumbnail, digest = sealed[:-_DIGEST_BYTES], sealed[-_DIGEST_BYTES:]
        if hashlib.sha256(thumbnail).digest() == digest:
            return thumbnail
        self._cache.remove(name)
        return None

    def _make(
        self, name: str, size: int, media_type: MediaType, read: Callable[[], bytes]
    ) -> bytes:
        kept = self._kept(name)  # it may have been made between the look at the cache and now
        if kept is not None:
            return kept
        data = read()
        try:
            thumbnail = self._decoders.make_thumbnail(data, size, media_type)
        except (InvalidImage, UnsupportedFormat) as problem:
            raise NotFound(f"there is no thumbnail of the photo: {problem}") from None
        self._cache.write(name, thumbnail + hashlib.sha256(thumbnail).digest())
        return thumbnail

    async def close(self) -> None:
        """Ends the threads; who still waits is told that the service is stopping."""
        await self._making.close()
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)


def _read_photo(photos: PhotoPlaces, path: str, sha256: str) -> bytes:
    """The bytes of a photo, if they are still those that were indexed."""
    try:
        with photos.open_file(path) as file:
            data = file.read_if(sha256)
    except OSError as error:
        raise NotFound(f"the photo cannot be read any more: {error.strerror}") from None
    except (Forbidden, InvalidImage) as error:
        raise NotFound(f"the photo cannot be read any more: {error}") from None
    if data is None:
        raise NotFound("the photo has changed since it was indexed: load its folder again")
    return data


def thumbnail_type(accept: str | None) -> MediaType:
    """The format of a thumbnail for a request's header `Accept` (RFC 9110, section 12.5.1).

    WebP and AVIF only where the header names them with a weight of their own: `*/*` and `image/*`
    are also sent by clients that cannot read them. JPEG where nothing that there is is accepted: a
    thumbnail is better than an error.
    """
    weights = _weights(accept or "")

    def weight(media_type: MediaType) -> float:
        if media_type == "image/jpeg":
            ranges = (media_type, "image/*", "*/*")
            return next((weights[name] for name in ranges if name in weights), 0.0)
        return weights.get(media_type, 0.0)

    best = max(_PREFERENCE, key=weight)  # the first of those that weigh the same
    return best if weight(best) > 0 else "image/jpeg"


def _weights(accept: str) -> dict[str, float]:
    """The weight of each media range, in lower case; the highest of one that comes twice.

    A weight that is none makes its range count for nothing.
    """
    weights: dict[str, float] = {}
    for element in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in element.split(";"))
        weight = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name == "q":
                weight = float(value) if _QUALITY.fullmatch(value) else 0.0
                break
        weights[media_range] = max(weight, weights.get(media_range, 0.0))
    return weights
