"""Photos that show the same: of the same bytes, or resized, recompressed, cropped a little, …

Two photos of different bytes are near-duplicates where their perceptual hashes differ in few bits
and their objects' embeddings are near each other. Either alone takes look-alikes for duplicates;
benchmarks/README.md says how many, and how the two limits were chosen.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from backend.deadlines import acquire, time_left
from backend.errors import EngineUnavailable, InvalidInput, NotFound, Unavailable, VectorsLost
from backend.names import check_collection_name
from backend.storage.catalog import Catalog, Collection, Image, PhotoHashes
from backend.storage.vectors import StoreMissing, VectorStore
from backend.vision.perceptual_hash import HASH_BITS, differing_bits, similar_pairs

__all__ = [
    "MAX_BITS",
    "MOST_GROUP_BITS",
    "MAX_DISTANCE",
    "DuplicateFinder",
    "FoundDuplicate",
    "FoundGroup",
    "photo_distance",
]

_T = TypeVar("_T")
_P = ParamSpec("_P")

MAX_BITS: Final = 10
"""That may differ between the hashes of near-duplicates, unless told otherwise."""
MAX_DISTANCE: Final = 0.5
"""Between the objects of near-duplicates, unless told otherwise."""

MOST_GROUP_BITS: Final = 16
"""In a whole collection: above, every photo is like many others by its hash, and each pair would
have to be compared."""
_MOST_DISTANCE: Final = 4.0
_CANDIDATES: Final = 1000
"""Photos whose objects are compared with those of one photo: the nearest by their hashes."""
_OBJECTS: Final = 32
"""Objects of a photo that are compared, best score first."""
_GROUP: Final = 10_000
"""Photos that hang together by their hashes: their vectors are in memory at once, 200 MB of them
at 2,048 dimensions and two to three objects a photo."""
_MANY_PAIRS: Final = 10_000
"""Of things that hang together, of which most are known to do so already."""
_PHOTOS_AT_ONCE: Final = 500
"""Photos whose vectors are read together."""


@dataclass(frozen=True)
class FoundDuplicate:
    """A photo that shows the same as another.

    Attributes:
        exact: the files' bytes are the same.
        bits: that differ between the perceptual hashes; None where there are no hashes.
        distance: between the photos' objects, see `photo_distance`; 0 for the same bytes.
    """

    image: Image
    exact: bool
    bits: int | None
    distance: float


@dataclass(frozen=True)
class FoundGroup:
    """Photos that show the same, in the order of their ids, at least two.

    Each is a duplicate of some other one of the group, not necessarily of each.

    Attributes:
        exact: all files' bytes are the same.
    """

    images: tuple[Image, ...]
    exact: bool


class DuplicateFinder:
    """Finds duplicates among the indexed photos of a collection.

    A photo without a perceptual hash (it is of one plain colour, or was indexed before there were
    hashes), or without objects, has exact duplicates only.

    One question is answered at a time, in a thread of its own: each looks at every photo of a
    collection, which takes seconds of a processor where there are many, and whoever asks a hundred
    at once is not to keep searches waiting.
    """

    def __init__(self, catalog: Catalog, vectors: VectorStore) -> None:
        self._catalog = catalog
        self._vectors = vectors
        self._turn = asyncio.Semaphore(1)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="duplicates")

    async def of_image(
        self,
        image_id: int,
        *,
        max_distance: float | None = None,
        max_bits: int | None = None,
    ) -> list[FoundDuplicate]:
        """The duplicates of an indexed photo in its collection: exact ones first, then the nearest.

        Of the photos that are like it by their hashes, the nearest 1,000 are looked at.

        Args:
            image_id: the photo.
            max_distance: between the photos' objects, 0 to 4; None for what was measured best.
            max_bits: that may differ between the hashes, 0 to 64; None likewise.

        Raises:
            NotFound: there is no such indexed photo.
            InvalidInput: a limit is out of range.
            VectorsLost: the vector engine does not have the collection.
            Unavailable: an engine does not answer, or not before the deadline, or those who have
                asked before take longer than that.
        """
        limits = _limits(max_distance, max_bits, most_bits=HASH_BITS)
        async with self._in_turn():
            return await self._of_image(image_id, limits)

    async def _of_image(self, image_id: int, limits: "_Limits") -> list[FoundDuplicate]:
        image = next(iter(await self._catalog.images_by_id([image_id])), None)
        if image is None or image.state != "indexed":
            raise NotFound(f"there is no indexed photo {image_id}")
        collection = await self._catalog.collection_by_id(image.collection_id)
        if collection is None or collection.state != "ready":
            raise NotFound(f"there is no indexed photo {image_id}: its collection was dropped")
        photos = await self._photos(collection)
        exact = await self._run(_exact, image, photos)
        near = await self._run(_near, image, photos, limits.bits)
        distances: dict[int, float] = {}
        if near:
            objects = await self._objects(collection, [image.id, *near])
            distances = await self._run(_distances, image.id, near, objects)
        distances = {id_: far for id_, far in distances.items() if far <= limits.distance}
        same_bits = None if image.phash is None else 0
        found = [
            FoundDuplicate(other, True, same_bits, 0.0)
            if other.id in exact
            else FoundDuplicate(other, False, near[other.id], distances[other.id])
            for other in await self._catalog.images_by_id([*exact, *distances])
            if other.state == "indexed"
        ]
        return sorted(
            found, key=lambda one: (not one.exact, one.distance, one.bits or 0, one.image.id)
        )

    async def in_collection(
        self,
        name: str,
        *,
        after: int = 0,
        limit: int,
        max_distance: float | None = None,
        max_bits: int | None = None,
    ) -> list[FoundGroup]:
        """The groups of duplicates of a collection, in the order of their smallest ids.

        Args:
            name: the collection.
            after: groups whose smallest id is at most this are left out: that of the last group of
                the page before, 0 for the first page.
            limit: groups of a page; fewer come on the last page only.
            max_distance: between the photos' objects, 0 to 4; None for what was measured best.
            max_bits: that may differ between the hashes, 0 to 16; None likewise.

        Raises:
            NotFound: there is no such collection.
            InvalidInput: a limit is out of range, or too many photos are alike.
            VectorsLost: the vector engine does not have the collection.
            Unavailable: as `of_image`.
        """
        limits = _limits(max_distance, max_bits, most_bits=MOST_GROUP_BITS)
        check_collection_name(name)
        async with self._in_turn():
            while (found := await self._in_collection(name, after, limit, limits)) is None:
                pass
        return found

    async def _in_collection(
        self, name: str, after: int, limit: int, limits: "_Limits"
    ) -> list[FoundGroup] | None:
        """None where photos were removed meanwhile, so that it has to be looked at again."""
        collection = await self._catalog.collection(name)
        if collection is None:
            raise NotFound(f"there is no collection {name!r}")
        photos = await self._photos(collection)
        candidates = await self._run(_candidates, photos, limits.bits, after)
        end = time.monotonic() + time_left(math.inf)  # threads go on when their request has ended
        groups: list[list[int]] = []
        for some in _batches(candidates):
            # Those to come have no photo before their first one past `after`.
            if len(groups) >= limit and groups[limit - 1][0] < some[0].first_past(after):
                break
            firsts = [photo.id for one in some for photo in one.to_compare]
            objects = await self._objects(collection, firsts) if firsts else {}
            groups += await self._run(_confirmed, some, objects, limits, end)
            groups = sorted(group for group in groups if group[0] > after)
        found = await self._described(groups[:limit])
        if len(found) < min(limit, len(groups)):
            return None  # a page that is not full would pass for the last one
        return found

    @asynccontextmanager
    async def _in_turn(self) -> AsyncIterator[None]:
        try:
            await acquire(self._turn)
        except TimeoutError:
            raise Unavailable(
                "duplicates are looked for by one request after another, and those before this one"
                " take too long: ask for one thing at a time, and try again later"
            ) from None
        try:
            yield
        finally:
            self._turn.release()

    async def _run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        call = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def close(self) -> None:
        """Ends the thread, after what it has begun; the rest is not run."""
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    async def _photos(self, collection: Collection) -> list[PhotoHashes]:
        photos = []
        async for page in self._catalog.hashes(collection.id):
            photos += page
        return photos

    async def _objects(
        self, collection: Collection, image_ids: Sequence[int]
    ) -> dict[int, NDArray[np.float32]]:
        """Embeddings, float32 [N, D], of the objects of each of the photos that has some."""
        found: dict[int, NDArray[np.float32]] = {}
        for begin in range(0, len(image_ids), _PHOTOS_AT_ONCE):
            some = image_ids[begin : begin + _PHOTOS_AT_ONCE]
            places = await self._catalog.objects_of_images(some)
            chosen = {
                image_id: [place.id for place in its[:_OBJECTS]] for image_id, its in places.items()
            }
            ids = [id_ for its in chosen.values() for id_ in its]
            vectors = await self._stored(collection, ids)
            found |= await self._run(_stacked, chosen, vectors)
        return found

    async def _stored(
        self, collection: Collection, object_ids: Sequence[int]
    ) -> dict[int, NDArray[np.float32]]:
        try:
            return await self._vectors.vectors(collection.store, object_ids)
        except StoreMissing:
            now = await self._catalog.collection_by_id(collection.id)
            if now is None or now.state != "ready":
                raise NotFound(f"collection {collection.name!r} was dropped meanwhile") from None
            if now.store == collection.store:
                if await self._is_lost(now):
                    raise VectorsLost(self._vectors.engine_name, now.name) from None
                raise
        # It was embedded anew meanwhile, under the same ids.
        return await self._vectors.vectors(now.store, object_ids)

    async def _is_lost(self, collection: Collection) -> bool:
        try:
            return not await self._vectors.exists(collection.store)
        except EngineUnavailable:
            return False  # the failure before is what matters

    async def _described(self, groups: Sequence[Sequence[int]]) -> list[FoundGroup]:
        images = {
            image.id: image
            for image in await self._catalog.images_by_id([id_ for ids in groups for id_ in ids])
            if image.state == "indexed"
        }
        found = []
        for ids in groups:
            left = tuple(images[id_] for id_ in ids if id_ in images)
            if len(left) > 1:  # else the others were removed meanwhile
                found.append(FoundGroup(left, len({image.sha256 for image in left}) == 1))
        return found


def photo_distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """How far two photos' objects are from each other: 0 for the same, 4 for opposites.

    The mean of each object's squared L2 distance to the nearest one of the other photo, both ways:
    an object that a detector finds in but one of two copies counts for little where there are more.

    Args:
        one: unit vectors of a photo's objects, float32 [N, D].
        other: of the other photo's, float32 [M, D].
    """
    distances = 2 - 2 * (one @ other.T)
    both = distances.min(axis=1).mean() + distances.min(axis=0).mean()
    return max(0.0, float(both) / 2)


@dataclass(frozen=True)
class _Limits:
    bits: int
    distance: float


def _limits(max_distance: float | None, max_bits: int | None, *, most_bits: int) -> _Limits:
    bits = MAX_BITS if max_bits is None else max_bits
    distance = MAX_DISTANCE if max_distance is None else max_distance
    if not 0 <= bits <= most_bits:
        raise InvalidInput(f"max_bits={bits}: it must be from 0 to {most_bits} here")
    if not 0 <= distance <= _MOST_DISTANCE:
        raise InvalidInput(f"max_distance={distance}: it must be from 0 to {_MOST_DISTANCE:g}")
    return _Limits(bits, distance)


def _stacked(
    chosen: Mapping[int, Sequence[int]], vectors: Mapping[int, NDArray[np.float32]]
) -> dict[int, NDArray[np.float32]]:
    """Each photo's vectors, float32 [N, D], of those that have some."""
    found = {
        image_id: [vectors[id_] for id_ in ids if id_ in vectors]
        for image_id, ids in chosen.items()
    }
    return {image_id: np.stack(some) for image_id, some in found.items() if some}


# One photo


def _exact(image: Image, photos: Sequence[PhotoHashes]) -> set[int]:
    """Ids of the other photos of the same bytes."""
    return {photo.id for photo in photos if photo.sha256 == image.sha256} - {image.id}


def _near(image: Image, photos: Sequence[PhotoHashes], max_bits: int) -> dict[int, int]:
    """Ids of the photos of other bytes that are like it by their hashes, with the bits between."""
    if image.phash is None:
        return {}
    others = [
        (photo.id, photo.phash)
        for photo in photos
        if photo.phash is not None and photo.sha256 != image.sha256
    ]
    bits = differing_bits(np.array([phash for _, phash in others], np.int64), image.phash)
    chosen = np.flatnonzero(bits <= max_bits)
    chosen = chosen[np.argsort(bits[chosen], kind="stable")][:_CANDIDATES]
    return {others[index][0]: int(bits[index]) for index in chosen.tolist()}


def _distances(
    image_id: int, others: Iterable[int], objects: Mapping[int, NDArray[np.float32]]
) -> dict[int, float]:
    if image_id not in objects:
        return {}
    return {
        other: photo_distance(objects[image_id], objects[other])
        for other in others
        if other in objects
    }


# A whole collection


@dataclass(frozen=True)
class _Candidates:
    """Photos that hang together by their bytes or their hashes; see `_candidates`.

    `of_bytes` are their ids by the bytes they have, each list in order; `to_compare` is one photo
    for each of these whose objects are to be compared with the others'.
    """

    ids: list[int]
    of_bytes: dict[str, list[int]]
    to_compare: list[PhotoHashes]

    def first_past(self, after: int) -> int:
        """The smallest id that a group that begins past `after` may have."""
        return next(id_ for id_ in self.ids if id_ > after)


class _Sets:
    """Which of N things hang together."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def root(self, one: int) -> int:
        parents = self._parents
        while parents[one] != one:
            parents[one] = parents[parents[one]]
            one = parents[one]
        return one

    def join(self, one: int, other: int) -> None:
        one, other = self.root(one), self.root(other)
        self._parents[max(one, other)] = min(one, other)

    def join_all(self, ones: NDArray[np.int64], others: NDArray[np.int64]) -> None:
        if len(ones) > _MANY_PAIRS:
            roots = np.array(self._parents, np.int64)
            while np.any(roots[roots] != roots):
                roots = roots[roots]
            apart = roots[ones] != roots[others]
            ones, others = ones[apart], others[apart]
        for one, other in zip(ones.tolist(), others.tolist(), strict=True):
            self.join(one, other)

    def groups(self) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for one in range(len(self._parents)):
            found.setdefault(self.root(one), []).append(one)
        return list(found.values())


def _candidates(photos: Sequence[PhotoHashes], max_bits: int, after: int) -> list[_Candidates]:
    """Photos that may be groups that begin past `after`, in the order of their first ids past it.

    Raises:
        InvalidInput: more photos hang together than can be compared.
    """
    of_bytes: dict[str, list[int]] = {}
    phashes: dict[str, int] = {}
    for photo in photos:
        of_bytes.setdefault(photo.sha256, []).append(photo.id)
        if photo.phash is not None:
            # Of copies that were indexed before there were hashes and later, the later ones know.
            phashes[photo.sha256] = photo.phash
    contents = list(of_bytes)
    sets = _Sets(len(contents))
    hashed = [index for index, sha256 in enumerate(contents) if sha256 in phashes]
    values, inverse = np.unique(
        np.array([phashes[contents[index]] for index in hashed], np.int64), return_inverse=True
    )
    first = np.zeros(len(values), np.int64)
    first[inverse[::-1]] = hashed[::-1]
    for index, value in zip(hashed, inverse.tolist(), strict=True):
        sets.join(index, int(first[value]))
    for one, other in similar_pairs(values, max_bits):
        sets.join_all(first[one], first[other])
    found = []
    for group in sets.groups():
        ids = sorted(id_ for index in group for id_ in of_bytes[contents[index]])
        if sum(id_ > after for id_ in ids) < 2:
            continue
        if len(group) > _GROUP:
            raise InvalidInput(
                f"{len(group)} photos of the collection hang together by their hashes, more than"
                f" the {_GROUP} that can be compared: ask with a smaller max_bits than {max_bits},"
                " or for the duplicates of one photo"
            )
        mine = {contents[index]: of_bytes[contents[index]] for index in group}
        to_compare = [
            PhotoHashes(mine[sha256][0], sha256, phashes[sha256])
            for sha256 in mine
            if len(group) > 1
        ]
        found.append(_Candidates(ids, mine, to_compare))
    return sorted(found, key=lambda one: one.first_past(after))


def _batches(candidates: Sequence[_Candidates]) -> Iterator[list[_Candidates]]:
    """Candidates in their order, so many at a time that reading their vectors is worth a call."""
    batch: list[_Candidates] = []
    photos = 0
    for one in candidates:
        batch.append(one)
        photos += max(1, len(one.to_compare))
        if photos >= _PHOTOS_AT_ONCE:
            yield batch
            batch, photos = [], 0
    if batch:
        yield batch


def _confirmed(
    candidates: Sequence[_Candidates],
    objects: Mapping[int, NDArray[np.float32]],
    limits: _Limits,
    end: float,
) -> list[list[int]]:
    """The groups that are left of the candidates, as ids in order.

    Raises:
        InvalidInput: so many are alike that `end`, of the monotonic clock, has come before.
    """
    return [group for one in candidates for group in _groups_in(one, objects, limits, end)]


def _groups_in(
    candidates: _Candidates,
    objects: Mapping[int, NDArray[np.float32]],
    limits: _Limits,
    end: float,
) -> Iterator[list[int]]:
    of_bytes = list(candidates.of_bytes.values())
    photos = candidates.to_compare
    hashes = np.array([photo.phash for photo in photos], np.int64)
    labels = np.arange(len(of_bytes))  # the same for those that hang together
    for index, photo in enumerate(photos):
        if time.monotonic() > end:
            raise InvalidInput(
                f"{len(photos)} photos of the collection are so much alike that they cannot be"
                " compared in time: ask with a smaller max_bits or a larger max_distance, or for"
                " the duplicates of one photo"
            )
        near = differing_bits(hashes[index + 1 :], int(hashes[index])) <= limits.bits
        # What hangs together already need not be compared: of n copies about n pairs are, not n².
        near &= labels[index + 1 :] != labels[index]
        for later in (np.flatnonzero(near) + index + 1).tolist():
            if labels[later] == labels[index] or not {photo.id, photos[later].id} <= objects.keys():
                continue
            distance = photo_distance(objects[photo.id], objects[photos[later].id])
            if distance <= limits.distance:
                labels[labels == labels[later]] = labels[index]
    for label in dict.fromkeys(labels.tolist()):
        group = np.flatnonzero(labels == label).tolist()
        ids = sorted(id_ for index in group for id_ in of_bytes[index])
        if len(ids) > 1:
            yield ids
