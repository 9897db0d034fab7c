"""Photos that were searched with, kept for a while: a search can be gone on with, or shared.

A query photo is a file named by the SHA-256 of its bytes, which is also its id. What was found in
the last ones is remembered; in the others it is found again.
"""

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backend.analysis import AnalyzedPhoto, PhotoAnalyzer
from backend.errors import EngineUnavailable, NotFound
from backend.metrics import Stage, add_stage_times, stage_times
from backend.photo_cache import PhotoCache
from backend.single_flight import SingleFlight

__all__ = ["QueryPhoto", "QueryPhotos"]

_ID: Final = re.compile(r"[0-9a-f]{64}")
_REMEMBERED: Final = 64
"""Analyses in memory: of ten objects and 2,048 dimensions, 80 kB each."""


@dataclass(frozen=True)
class QueryPhoto:
    """A photo that is searched with: the SHA-256 of its bytes, these, and what they show.

    `is_kept` tells whether it can be asked for again: a full disk, or QUERY_CACHE_BYTES, may not
    allow it.
    """

    id: str
    data: bytes
    photo: AnalyzedPhoto
    is_kept: bool = True


_Analysis = tuple[AnalyzedPhoto, Mapping[Stage, float]]


class QueryPhotos:
    """Keeps query photos and what they show; many calls may be in flight together."""

    def __init__(self, folder: Path, analyzer: PhotoAnalyzer, *, max_bytes: int) -> None:
        """Looks at nothing yet.

        Args:
            folder: where query photos are kept; several processes may share it.
            analyzer: finds and embeds their objects.
            max_bytes: of the photos in the folder; the least recently used go first.
        """
        self._cache = PhotoCache(folder, max_bytes=max_bytes, name=_ID)
        self._analyzer = analyzer
        self._analyses: OrderedDict[str, AnalyzedPhoto] = OrderedDict()
        self._analyzing: SingleFlight[_Analysis] = SingleFlight()

    async def keep(self, data: bytes) -> QueryPhoto:
        """Analyses a photo and keeps it, if the disk allows: it can be searched with either way.

        Raises:
            InvalidImage, UnsupportedFormat, TooLarge: see `Decoders.decode`; it is not kept.
            EngineUnavailable: the models do not answer, or not before the deadline.
            Unavailable: the service is stopping.
        """
        query_id = await asyncio.to_thread(_sha256, data)
        photo = await self._analysis(query_id, data)
        is_kept = await asyncio.to_thread(self._cache.write, query_id, data)
        return QueryPhoto(query_id, data, photo, is_kept)

    async def get(self, query_id: str) -> QueryPhoto:
        """A photo that was searched with before.

        Raises:
            NotFound: it is kept no more, or the id is none.
            EngineUnavailable, Unavailable: as `keep`, where it must be analysed again.
        """
        data = await self.read(query_id)
        return QueryPhoto(query_id, data, await self._analysis(query_id, data))

    def remembers(self, query_id: str) -> bool:
        """Whether it is known what a query photo shows, so that nothing must find it again."""
        return query_id in self._analyses

    async def read(self, query_id: str) -> bytes:
        """The bytes of a photo that was searched with before.

        Raises:
            NotFound: it is kept no more, or the id is none.
        """
        if not _ID.fullmatch(query_id):
            raise NotFound("a query photo's id is the 64 hex digits that a search has answered")
        data = await asyncio.to_thread(self._read, query_id)
        if data is None:
            raise NotFound(f"the query photo {query_id} is kept no more: send the photo again")
        return data

    def _read(self, query_id: str) -> bytes | None:
        data = self._cache.read(query_id)
        if data is None or _sha256(data) == query_id:
            return data
        self._cache.remove(query_id)
        return None

    async def _analysis(self, query_id: str, data: bytes) -> AnalyzedPhoto:
        remembered = self._analyses.get(query_id)
        if remembered is None:
            remembered = await self._analyze(query_id, data)
        self._analyses[query_id] = remembered
        self._analyses.move_to_end(query_id)
        while len(self._analyses) > _REMEMBERED:
            self._analyses.popitem(last=False)
        return remembered

    async def _analyze(self, query_id: str, data: bytes) -> AnalyzedPhoto:
        async def analyze() -> _Analysis:
            with stage_times() as times:
                return await self._analyzer.analyze(data), times

        try:
            photo, times = await self._analyzing.run(query_id, analyze)
        except TimeoutError:
            engine = self._analyzer.engine_name
            raise EngineUnavailable(
                engine, f"{engine} has not analysed the photo in time: try again later"
            ) from None
        add_stage_times(times)
        return photo

    async def close(self) -> None:
        """Ends what is under way; who still waits is told that the service is stopping."""
        await self._analyzing.close()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
