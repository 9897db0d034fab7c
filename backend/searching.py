"""Photos out: which photos hold objects that look like those of a query photo."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from backend.analysis import PhotoAnalyzer
from backend.errors import EngineUnavailable, VectorsLost
from backend.metrics import Metrics
from backend.names import check_collection_name
from backend.storage.catalog import Catalog, Collection, ObjectPlace
from backend.storage.vectors import MAX_HITS, StoreMissing, VectorHit, VectorStore

__all__ = ["PhotoHit", "Searcher"]

_HITS_PER_PHOTO: Final = 4
"""Hits to ask for first for each photo wanted: a photo of VOC has two to three objects."""
_MORE: Final = 4
"""How many times as many hits to ask for when their photos were too few."""
_HITS_PER_ANSWER: Final = 4096
"""Hits of one answer of the vector engine: 10 ms of parsing, measured."""
_MAX_QUERY_OBJECTS: Final = 32
"""Objects of a query photo that are searched for, best score first."""


@dataclass(frozen=True)
class PhotoHit:
    """A photo, the object of it that is nearest to one of the query's, and their distance.

    `distance` is squared L2 of unit vectors, 2 - 2 cos: 0 for the same, 4 for opposites.
    """

    object: ObjectPlace
    distance: float


class Searcher:
    """Answers queries; many may be in flight together."""

    def __init__(
        self, catalog: Catalog, vectors: VectorStore, analyzer: PhotoAnalyzer, figures: Metrics
    ) -> None:
        self._catalog = catalog
        self._vectors = vectors
        self._analyzer = analyzer
        self._figures = figures

    async def count(self, name: str) -> int:
        """Indexed photos of the collection; 0 where there is none."""
        collection = await self._catalog.collection(check_collection_name(name))
        return 0 if collection is None else await self._catalog.count_images(collection.id)

    async def search(self, data: bytes, name: str, top_k: int) -> list[PhotoHit]:
        """The `top_k` photos with the objects nearest to the query photo's, nearest first.

        Each photo comes once, by its nearest object. Empty where there is no such collection.

        Raises:
            InvalidImage, UnsupportedFormat, TooLarge: see `vision.decode`.
            EmbedderMismatch: the collection was filled by another embedder.
            VectorsLost: the vector engine does not have the collection.
            EngineUnavailable: an engine does not answer, or not before the deadline.
        """
        check_collection_name(name)
        with self._figures.stage("lookup"):
            collection = await self._catalog.collection(name)
        if collection is not None:
            self._analyzer.check_collection(collection)
        # A query that is no photo is an error, whatever there is to search in.
        query = await self._analyzer.analyze(data)
        if collection is None or not query.objects:
            return []
        vectors = query.embeddings[:_MAX_QUERY_OBJECTS]
        try:
            return await self.nearest(collection, vectors, top_k)
        except EngineUnavailable as trouble:
            now = await self._now(collection)
            if now is None or now.state != "ready":
                return []  # it was dropped under the search
            if now.store == collection.store:
                if isinstance(trouble, StoreMissing) and await self._is_lost(collection):
                    raise VectorsLost(self._vectors.engine_name, collection.name) from None
                raise
        # It was embedded anew under the search.
        self._analyzer.check_collection(now)
        return await self.nearest(now, vectors, top_k)

    async def _now(self, collection: Collection) -> Collection | None:
        try:
            return await self._catalog.collection_by_id(collection.id)
        except EngineUnavailable:
            return collection  # the failure before is what matters

    async def _is_lost(self, collection: Collection) -> bool:
        try:
            return not await self._vectors.exists(collection.store)
        except EngineUnavailable:
            return False  # the failure before is what matters

    async def nearest(
        self, collection: Collection, vectors: NDArray[np.float32], top_k: int
    ) -> list[PhotoHit]:
        """The `top_k` photos nearest to any of the query vectors, float32 [Q, D], nearest first.

        Exactly those, unless objects of fewer photos than that are MAX_HITS times nearer.
        """
        limit = min(MAX_HITS, _HITS_PER_PHOTO * top_k)
        while True:
            with self._figures.stage("search"):
                best, unseen = await self._nearest_objects(collection, vectors, limit)
            # The catalog is the truth: what it does not (or not yet) call indexed is no hit.
            with self._figures.stage("lookup"):
                places = await self._catalog.places([hit.object_id for hit in best])
            hits = [
                PhotoHit(places[hit.object_id], max(0.0, hit.distance))
                for hit in best
                if hit.object_id in places
            ]
            complete = len(hits) >= top_k and hits[top_k - 1].distance <= unseen
            if complete or unseen == math.inf or limit == MAX_HITS:
                return hits[:top_k]
            limit = min(MAX_HITS, _MORE * limit)

    async def _nearest_objects(
        self, collection: Collection, vectors: NDArray[np.float32], limit: int
    ) -> tuple[list[VectorHit], float]:
        """The nearest hit of each image, nearest first, from `limit` hits a query vector.

        Also the distance beyond which there may be hits that were not asked for; infinite where
        all were seen.
        """
        nearest: dict[int, VectorHit] = {}
        unseen = math.inf
        # Answers are parsed on the event loop: not too many hits at a time.
        step = max(1, _HITS_PER_ANSWER // limit)
        for start in range(0, len(vectors), step):
            answers = await self._vectors.search(
                collection.store, vectors[start : start + step], limit
            )
            for hits in answers:
                if len(hits) == limit:
                    unseen = min(unseen, hits[-1].distance)
                for hit in hits:
                    known = nearest.get(hit.image_id)
                    if known is None or _rank(hit) < _rank(known):
                        nearest[hit.image_id] = hit
        return sorted(nearest.values(), key=_rank), unseen


def _rank(hit: VectorHit) -> tuple[float, int]:
    """Nearest first; ties in the order of ids."""
    return hit.distance, hit.object_id
