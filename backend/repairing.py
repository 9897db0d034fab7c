"""Mends what a check has found, and embeds a collection anew when the embedder has changed.

Everything may be broken off at any moment and begun again. Searches go on meanwhile, and loads
until new vectors take the place of the old.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import numpy as np
import structlog

from backend.analysis import PhotoAnalyzer
from backend.checking import CollectionReport
from backend.cores import count_cores
from backend.errors import (
    Conflict,
    EngineUnavailable,
    InvalidImage,
    ServiceError,
    StoreRefuses,
    TooLarge,
)
from backend.indexing import Indexer
from backend.loads import Failure, Load
from backend.places import PhotoPlaces
from backend.storage.catalog import (
    Catalog,
    Collection,
    Image,
    ObjectPlace,
    PhotoHashes,
    new_store,
)
from backend.storage.vectors import ObjectVector, VectorStore
from backend.writing import PhotoWriter

__all__ = ["Reembedding", "Repairer"]

_log = structlog.get_logger(__name__)

_VECTOR_MISSING: Final = "a vector of it is missing: load its folder, or upload it, again"
_CHANGED: Final = (
    "its file was gone or had changed when its collection was embedded anew: load its folder, or"
    " upload it, again"
)
_IN_FLIGHT: Final = 2 * count_cores()
_WRITTEN_TOGETHER: Final = 64
"""Photos whose vectors are written with one call."""

OnProgress = Callable[[int, int], None]
"""Is told how many photos are done, and of how many."""


@dataclass
class Reembedding:
    """What came of embedding a collection anew."""

    collection: Collection
    photos: int = 0
    objects: int = 0
    failures: list[Failure] = field(default_factory=list)


class Repairer:
    """Makes catalog, vector store and disk agree again."""

    def __init__(
        self,
        catalog: Catalog,
        vectors: VectorStore,
        analyzer: PhotoAnalyzer,
        writer: PhotoWriter,
        indexer: Indexer,
        *,
        places: PhotoPlaces,
    ) -> None:
        """`places`: those that catalogued photos may lie in."""
        self._places = places
        self._catalog = catalog
        self._vectors = vectors
        self._analyzer = analyzer
        self._writer = writer
        self._indexer = indexer

    async def remove_strays(self, report: CollectionReport) -> None:
        """Removes vectors of no object, and photos that are gone while their folders are not."""
        collection = report.collection
        async with self._writer.turn() as ensure_held:
            await self._check_same(collection)
            if collection.other_store is not None:  # embedding anew was broken off
                await self._vectors.drop(collection.other_store)
                await self._catalog.finish_replacement(collection.id, collection.other_store)
            # Of those that were found, what is no object's still: photos come and go meanwhile.
            orphaned = report.orphaned - await self._catalog.object_ids(collection.id)
            await ensure_held()
            await self._vectors.delete(collection.store, sorted(orphaned))
        # Uploaded again, say, a photo is back with the same id.
        presences = await self._places.presences([image.path for image in report.gone])
        gone = [
            image.id
            for image, presence in zip(report.gone, presences, strict=True)
            if presence == "gone"
        ]
        await self._writer.delete(collection, gone)

    async def index_again(self, report: CollectionReport) -> Load | None:
        """Starts indexing the photos that lack vectors or have failed, where they are files still.

        None where there are none.

        Raises:
            StoreUnavailable, StoreRefuses: the store that they lie in cannot be asked; nothing has
                changed.
        """
        collection = report.collection
        places = await self._catalog.places(sorted(report.missing))
        lacking = sorted({place.image_id for place in places.values()})
        paths = [image.path for image in await self._catalog.images_by_id(lacking)]
        paths += [failure.path for failure in report.failures]
        photos = await self._places.find_all(sorted(set(paths)))
        await self._catalog.fail_photos(lacking, _VECTOR_MISSING)
        return self._indexer.index_again(collection, photos) if photos else None

    async def hash_photos(self, collection: Collection) -> int:
        """Stores the perceptual hashes of photos that were indexed before there were any.

        Returns how many. Those whose files are gone or have changed stay as they are.
        """
        free = asyncio.Semaphore(_IN_FLIGHT)

        async def find(image: Image) -> int | None:
            async with free:
                try:
                    data = await self._read_unchanged(image)
                    return await self._analyzer.hash_photo(data)
                except (ServiceError, OSError):
                    return None  # what is wrong with it, a check or the next load tells

        stored = 0
        async for page in self._catalog.images(collection.id, ["indexed"]):
            lacking = [image for image in page if image.phash is None]
            found = {
                PhotoHashes(image.id, image.sha256, None): phash
                for image, phash in zip(
                    lacking, await asyncio.gather(*map(find, lacking)), strict=True
                )
                if phash is not None
            }
            await self._catalog.set_phashes(found)
            stored += len(found)
        return stored

    async def embed_anew(
        self, collection: Collection, on_progress: OnProgress = lambda done, total: None
    ) -> Reembedding:
        """Embeds the objects of a collection with the embedder in use.

        Their vectors go into a new store beside the old one, which is searched until the new one
        takes its place. What was loaded or removed meanwhile is caught up with before.

        Raises:
            Conflict: somebody else has embedded it anew, or dropped it, meanwhile.
        """
        embedder = self._analyzer.embedder
        new = replace(
            collection,
            store=new_store(collection.name),
            embedder=embedder.name,
            embedder_sha256=embedder.sha256,
            dim=embedder.dimension,
        )
        done = Reembedding(new)
        async with self._writer.turn():
            now = await self._check_same(collection)
            if now.other_store is not None:
                await self._vectors.drop(now.other_store)  # of an attempt that was broken off
            await self._catalog.begin_replacement(collection.id, new.store)
        await self._vectors.create(new.store, new.dim)
        total = await self._catalog.count_images(collection.id)
        embedded: set[int] = set()
        failed: dict[int, Failure] = {}
        async for page in self._catalog.images(collection.id, ["indexed"]):
            for start in range(0, len(page), _WRITTEN_TOGETHER):
                part = page[start : start + _WRITTEN_TOGETHER]
                embed = partial(self._embed, new, part, embedded, failed)
                await self._indexer.patiently(None, embed)
                done.photos += len(part)
                on_progress(done.photos, max(done.photos, total))
        swap = partial(self._take_place, collection, new, embedded, failed)
        done.objects = await self._indexer.patiently(None, swap)
        await self._vectors.drop(collection.store)
        await self._catalog.finish_replacement(collection.id, collection.store)
        done.failures = list(failed.values())
        _log.info("collection.embedded_anew", collection=new.name, objects=done.objects)
        return done

    async def _take_place(
        self,
        collection: Collection,
        new: Collection,
        embedded: set[int],
        failed: dict[int, Failure],
    ) -> int:
        """Lets the new store take the old one's place; returns how many objects it has."""
        async with self._writer.turn() as ensure_held:
            current = await self._catalog.object_ids(collection.id)
            late = await self._catalog.places(sorted(current - embedded))
            late_ids = {place.image_id for place in late.values()}
            late_images = await self._catalog.images_by_id(sorted(late_ids))
            # One whose file had changed may have been indexed again since.
            failed.clear()
            await self._embed(new, late_images, embedded, failed)
            await self._vectors.delete(new.store, sorted(embedded - current))
            await ensure_held()
            if not await self._catalog.replace_vectors(
                collection,
                store=new.store,
                embedder=new.embedder,
                embedder_sha256=new.embedder_sha256,
                dim=new.dim,
            ):
                await self._vectors.drop(new.store)
                raise Conflict(
                    f"collection {collection.name!r} was dropped or embedded anew meanwhile: check"
                    " it again"
                )
            await self._catalog.fail_photos(sorted(failed), _CHANGED)
        return len(embedded & current)

    async def _check_same(self, collection: Collection) -> Collection:
        """The collection as it is now; within a turn to write.

        Raises:
            Conflict: it was dropped, or embedded anew, since it was looked at.
        """
        now = await self._catalog.collection_by_id(collection.id)
        if now is None or now.state != "ready" or now.store != collection.store:
            raise Conflict(
                f"collection {collection.name!r} was dropped or embedded anew meanwhile: check it"
                " again"
            )
        if now.other_store != collection.other_store:
            raise Conflict(
                f"collection {collection.name!r} is being embedded anew by another process: check"
                " it again when that is done"
            )
        return now

    async def _embed(
        self,
        collection: Collection,
        images: Sequence[Image],
        embedded: set[int],
        failed: dict[int, Failure],
    ) -> None:
        objects = await self._catalog.objects_of_images([image.id for image in images])
        free = asyncio.Semaphore(_IN_FLIGHT)

        async def embed(image: Image) -> list[ObjectVector]:
            places = objects.get(image.id, [])
            async with free:
                try:
                    return await self._embed_photo(image, places)
                except (EngineUnavailable, StoreRefuses):
                    raise  # it is no fault of the photo's
                except (ServiceError, OSError) as problem:
                    failed[image.id] = Failure(image.path, str(problem))
                    return []

        rows = [row for part in await asyncio.gather(*map(embed, images)) for row in part]
        await self._vectors.upsert(collection.store, rows)
        embedded.update(row.id for row in rows)

    async def _read_unchanged(self, image: Image) -> bytes:
        """A photo's bytes, where they are those that its objects were found in."""
        return await self._places.run(image.path, _read_unchanged, self._places, image)

    async def _embed_photo(self, image: Image, places: Sequence[ObjectPlace]) -> list[ObjectVector]:
        data = await self._read_unchanged(image)
        boxes = np.array([place.box for place in places], np.float32).reshape(-1, 4)
        vectors = await self._analyzer.embed_objects(data, boxes)
        return [
            ObjectVector(place.id, image.id, place.label, place.score, vector)
            for place, vector in zip(places, vectors, strict=True)
        ]


def _read_unchanged(places: PhotoPlaces, image: Image) -> bytes:
    try:
        data = places.read_file(image.path, image.size)
    except TooLarge:
        data = b""
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise InvalidImage("its file has changed since it was indexed")
    return data
