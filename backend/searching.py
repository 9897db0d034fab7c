"""Photos out: which photos hold objects that look like those of a query photo.

`Searcher.search` is the existing endpoint's search. `Searcher.find` takes conditions, ranks objects
as well as photos, and gives its ranking out in pages. The vector engine says what may be near, and
each hit's distance is then computed from the stored vectors. An engine's own distance of one and
the same pair differs in its last digits with what else it is asked for and with how its index lies
at the moment, so that a hit on the border of two pages could come twice, or never.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from backend.analysis import PhotoAnalyzer
from backend.deadlines import acquire
from backend.errors import EngineUnavailable, InvalidInput, NotFound, VectorsLost
from backend.metrics import Metrics
from backend.names import check_collection_name
from backend.storage.catalog import Catalog, Collection, ObjectPlace
from backend.storage.vectors import MAX_HITS, ObjectFilter, StoreMissing, VectorHit, VectorStore

__all__ = [
    "MAX_QUERY_OBJECTS",
    "Hit",
    "HitPage",
    "ObjectMatch",
    "PhotoHit",
    "Position",
    "Searcher",
    "Wanted",
]

_HITS_PER_PHOTO: Final = 4
"""Hits to ask for first for each photo wanted: a photo of VOC has two to three objects."""
_HITS_PER_OBJECT: Final = 2
"""Hits to ask for first for each object wanted, since several query vectors may be near to one."""
_MORE: Final = 4
"""How many times as many hits to ask for when their photos were too few."""
_HITS_PER_ANSWER: Final = 4096
"""Hits of one answer of the vector engine: 10 ms of parsing, measured."""
_FINDING: Final = 4
"""Searches that look at hits at a time: each may hold 16,384 for each of 32 objects, 100 MB."""
MAX_QUERY_OBJECTS: Final = 32
"""Objects of a query photo that are searched for, best score first."""
_HITS_FOR_ALL: Final = 16
"""Hits to ask for first for each photo wanted that is to be near to all query vectors."""
_MAX_MEASURED: Final = 256
"""Objects or photos whose distances are computed at a time."""
_ROUNDING: Final = 1e-5
"""More than an engine's 32-bit distances differ from ours: by 5e-7, measured at 2048 dimensions."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class PhotoHit:
    """A photo, the object of it that is nearest to one of the query's, and their distance.

    `distance` is squared L2 of unit vectors, 2 - 2 cos: 0 for the same, 4 for opposites.
    """

    object: ObjectPlace
    distance: float


@dataclass(frozen=True)
class Wanted:
    """Among what to search, and how to rank.

    Attributes:
        labels: only objects of any of these; none is no condition.
        min_score: only objects that the detector is at least so sure of, 0 to 1; compared as
            32-bit numbers, which its scores are.
        min_area: only objects whose box fills at least this part of their photo, 0 to 1. Where a
            photo's size is not known, none of its objects does.
        max_distance: only hits whose distance is at most this.
        exclude_images: no objects of these photos.
        match: `any`: by the distance to the nearest query vector. `all`: photos by the mean, over
            the query vectors, of the distance to the photo's nearest object.
        group_by: a hit for each photo or, with `any` alone, for each object.
    """

    labels: tuple[str, ...] = ()
    min_score: float | None = None
    min_area: float | None = None
    max_distance: float | None = None
    exclude_images: tuple[int, ...] = ()
    match: Literal["any", "all"] = "any"
    group_by: Literal["image", "object"] = "image"


@dataclass(frozen=True)
class Position:
    """Where in the ranking a page has ended: at a hit of this distance, whose first matching object
    has this id. `seen` counts the hits of all pages up to it."""

    distance: float
    id: int
    seen: int


@dataclass(frozen=True)
class ObjectMatch:
    """An object, and the query vector, by its index, that it is so far from."""

    query: int
    distance: float
    object: ObjectPlace


@dataclass(frozen=True)
class Hit:
    """A photo or an object that is like the query, and how far it is from it.

    `matches` is one object; with match="all" the nearest for each query vector, in their order.
    """

    distance: float
    matches: tuple[ObjectMatch, ...]


@dataclass(frozen=True)
class HitPage:
    """Hits, nearest first, and where the next page begins; None where there are no more."""

    hits: list[Hit]
    next: Position | None


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An object, or with match="all" a photo, that may be a hit or, of several, the nearest of one.

    `unit` is the id of the photo or object that the hit is for. The distance is at least `bound`,
    and at most `at_most`, but for rounding.
    """

    id: int
    unit: int
    bound: float
    at_most: float


class Searcher:
    """Answers queries; many may be in flight together."""

    def __init__(
        self, catalog: Catalog, vectors: VectorStore, analyzer: PhotoAnalyzer, figures: Metrics
    ) -> None:
        self._catalog = catalog
        self._vectors = vectors
        self._analyzer = analyzer
        self._figures = figures
        self._finding = asyncio.Semaphore(_FINDING)
        self._labels: dict[int, set[str]] = {}
        """By collection: labels that have been seen in the catalog."""

    async def count(self, name: str) -> int:
        """Indexed photos of the collection; 0 where there is none."""
        collection = await self._catalog.collection(check_collection_name(name))
        return 0 if collection is None else await self._catalog.count_images(collection.id)

    async def search(self, data: bytes, name: str, top_k: int) -> list[PhotoHit]:
        """The `top_k` photos with the objects nearest to the query photo's, nearest first.

        Each photo comes once, by its nearest object. Empty where there is no such collection.

        Raises:
            InvalidImage, UnsupportedFormat, TooLarge: see `Decoders.decode`.
            EmbedderMismatch: the collection was filled by another embedder.
            VectorsLost: the vector engine does not have the collection.
            EngineUnavailable: an engine does not answer, or not before the deadline.
        """
        check_collection_name(name)
        # Side by side: a query that is no photo is an error, whatever there is to search in.
        lookup = asyncio.create_task(self._collection(name))
        try:
            query = await self._analyzer.analyze(data)
        except BaseException:
            # Without this it would go on behind the answer, and may outlive the application.
            lookup.cancel()
            await asyncio.gather(lookup, return_exceptions=True)
            raise
        collection = await lookup
        if collection is None or not query.objects:
            return []
        vectors = query.embeddings[:MAX_QUERY_OBJECTS]
        hits = await self._ask(collection, lambda now: self.nearest(now, vectors, top_k))
        return [] if hits is None else hits

    async def _collection(self, name: str) -> Collection | None:
        """The collection of that name, where there is one; it can be searched in."""
        with self._figures.stage("lookup"):
            collection = await self._catalog.collection(name)
        if collection is not None:
            self._analyzer.check_collection(collection)
        return collection

    async def find(
        self,
        name: str,
        vectors: NDArray[np.float32],
        wanted: Wanted,
        top_k: int,
        after: Position | None = None,
    ) -> HitPage:
        """A page of at most `top_k` hits for query vectors, float32 [Q, D] of unit length.

        Hits are ranked by their distance, and those of the same distance by the id of their first
        matching object. The page begins right behind `after`. As long as nothing is written to the
        collection, the pages joined are the ranking: no hit comes twice or never. That is exact
        where the index is. An approximate one such as HNSW may miss what is near for one page and
        not for another; one that keeps vectors in fewer bits gives a wrong order as well.

        The MAX_HITS nearest objects to each query vector that meet `labels`, `min_score` and
        `exclude_images` are ranked, and the pages end where they end. Behind the distance of the
        last of them there may be others that belong between them.

        Raises:
            InvalidInput: values that make no sense, or not together.
            NotFound: there is no such collection.
            EmbedderMismatch: the collection was filled by another embedder.
            VectorsLost: the vector engine does not have the collection.
            EngineUnavailable: an engine does not answer, or not before the deadline.
        """
        check_collection_name(name)
        _check(wanted, top_k, after)
        collection = await self._collection(name)
        if collection is None:
            raise _no_collection(name)
        if vectors.ndim != 2 or vectors.shape[1] != collection.dim:
            raise InvalidInput(
                f"the query vectors are of shape {list(vectors.shape)}, those of collection"
                f" {name!r} have {collection.dim} dimensions"
            )
        if not np.isfinite(vectors).all():
            raise InvalidInput("the query vectors hold values that are no numbers")
        if not len(vectors):
            return HitPage([], None)
        try:
            await acquire(self._finding)
        except TimeoutError:
            engine = self._vectors.engine_name
            raise EngineUnavailable(
                engine,
                f"{engine} has more to search for than it can at the moment: try again later",
            ) from None
        try:
            page = await self._ask(
                collection, lambda now: self._page(now, vectors, wanted, top_k, after)
            )
        finally:
            self._finding.release()
        if page is None:
            raise _no_collection(name)
        return page

    async def object_vectors(self, object_ids: Sequence[int]) -> NDArray[np.float32]:
        """The stored vectors, float32 [N, D], of indexed objects of one collection.

        Raises:
            InvalidInput: the objects are of several collections, or none is named.
            NotFound: one of them is no indexed object.
            EmbedderMismatch: the collection was filled by another embedder.
            VectorsLost: the vector engine does not have them.
            EngineUnavailable: an engine does not answer, or not before the deadline.
        """
        with self._figures.stage("lookup"):
            homes = await self._catalog.collections_of_objects(object_ids)
        for object_id in object_ids:
            if object_id not in homes:
                raise _no_object(object_id)
        if len(set(homes.values())) != 1:
            raise InvalidInput("name objects of one collection, and at least one")
        [collection_id] = set(homes.values())
        collection = await self._catalog.collection_by_id(collection_id)
        if collection is None or collection.state != "ready":
            raise _no_object(object_ids[0])
        self._analyzer.check_collection(collection)
        found = await self._ask(
            collection, lambda now: self._vectors.vectors(now.store, object_ids)
        )
        if found is None:
            raise _no_object(object_ids[0])
        if missing := [object_id for object_id in object_ids if object_id not in found]:
            # Whoever has removed them meanwhile has told the catalog first.
            there = await self._catalog.collections_of_objects(missing)
            for object_id in missing:
                if object_id not in there:
                    raise _no_object(object_id)
            raise VectorsLost(self._vectors.engine_name, collection.name)
        return np.stack([found[object_id] for object_id in object_ids])

    async def _ask(
        self, collection: Collection, question: Callable[[Collection], Awaitable[_T]]
    ) -> _T | None:
        """The answer about the collection, which may be embedded anew meanwhile.

        None where it was dropped.
        """
        self._vectors.catch_up(collection.store, collection.written)
        try:
            return await question(collection)
        except EngineUnavailable as trouble:
            now = await self._now(collection)
            if now is None or now.state != "ready":
                return None
            if now.store == collection.store:
                if isinstance(trouble, StoreMissing) and await self._is_lost(collection):
                    raise VectorsLost(self._vectors.engine_name, collection.name) from None
                raise
        # It was embedded anew.
        self._analyzer.check_collection(now)
        self._vectors.catch_up(now.store, now.written)
        return await question(now)

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
            with self._figures.stage("lookup"):
                hits = await self._placed(best, top_k)
            complete = len(hits) >= top_k and hits[top_k - 1].distance <= unseen
            if complete or unseen == math.inf or limit == MAX_HITS:
                return hits[:top_k]
            limit = min(MAX_HITS, _MORE * limit)

    async def _placed(self, best: Sequence[VectorHit], top_k: int) -> list[PhotoHit]:
        """The first `top_k` or more of the hits that are in the catalog, in their order.

        The catalog is the truth: what it does not (or not yet) call indexed is no hit.
        """
        hits: list[PhotoHit] = []
        for start in range(0, len(best), top_k):
            some = best[start : start + top_k]
            places = await self._catalog.places([hit.object_id for hit in some])
            hits += [
                PhotoHit(places[hit.object_id], max(0.0, hit.distance))
                for hit in some
                if hit.object_id in places
            ]
            if len(hits) >= top_k:
                break
        return hits

    async def _nearest_objects(
        self, collection: Collection, vectors: NDArray[np.float32], limit: int
    ) -> tuple[list[VectorHit], float]:
        """The nearest hit of each image, nearest first, from `limit` hits a query vector.

        Also the distance beyond which there may be hits that were not asked for; infinite where
        all were seen.
        """
        nearest: dict[int, VectorHit] = {}
        answers = await self._lists(collection, vectors, limit, ObjectFilter())
        for hits in answers:
            for hit in hits:
                known = nearest.get(hit.image_id)
                if known is None or _rank(hit) < _rank(known):
                    nearest[hit.image_id] = hit
        return sorted(nearest.values(), key=_rank), min(_ends(answers, limit), default=math.inf)

    async def _lists(
        self, collection: Collection, vectors: NDArray[np.float32], limit: int, where: ObjectFilter
    ) -> list[list[VectorHit]]:
        """The `limit` nearest objects to each query vector."""
        # Answers are parsed on the event loop: not too many hits at a time.
        step = max(1, _HITS_PER_ANSWER // limit)
        return [
            hits
            for start in range(0, len(vectors), step)
            for hits in await self._vectors.search(
                collection.store, vectors[start : start + step], limit, where
            )
        ]

    async def _page(
        self,
        collection: Collection,
        vectors: NDArray[np.float32],
        wanted: Wanted,
        top_k: int,
        after: Position | None,
    ) -> HitPage:
        """See `find`.

        The threshold algorithm of Fagin, Lotem and Naor ("Optimal aggregation algorithms for
        middleware", 2003): the engine's lists, one for each query vector, are the sorted access,
        the stored vectors the random access. What is in no list is no nearer than the lists' ends
        say. Lists are asked for anew, and longer, until the page's last hit is.
        """
        labels = await self._known_labels(collection, wanted.labels)
        if wanted.labels and not labels:
            return HitPage([], None)
        where = ObjectFilter(
            labels=labels, min_score=wanted.min_score, not_image_ids=wanted.exclude_images
        )
        seen = 0 if after is None else after.seen
        furthest = math.inf if wanted.max_distance is None else wanted.max_distance
        limit = min(MAX_HITS, _first_limit(wanted) * (seen + top_k + 1))
        measured: dict[int, Hit | None] = {}
        while True:
            with self._figures.stage("search"):
                lists = await self._lists(collection, vectors, limit, where)
            # Hundreds of thousands of hits take a while.
            candidates, unseen = await asyncio.to_thread(_candidates, wanted, lists, limit)
            hits = await self._best(
                collection, vectors, wanted, candidates, top_k + 1, after, furthest, measured
            )
            complete = len(hits) > top_k and hits[top_k - 1].distance + _ROUNDING <= unseen
            if complete or unseen > furthest + _ROUNDING or unseen == math.inf or limit == MAX_HITS:
                break
            limit = min(MAX_HITS, _MORE * limit)
        page = hits[:top_k]
        if len(hits) <= top_k:
            return HitPage(page, None)
        return HitPage(page, Position(*_place_of(page[-1]), seen + len(page)))

    async def _best(
        self,
        collection: Collection,
        vectors: NDArray[np.float32],
        wanted: Wanted,
        candidates: list[_Candidate],
        count: int,
        after: Position | None,
        furthest: float,
        measured: dict[int, Hit | None],
    ) -> list[Hit]:
        """The `count` best hits of the candidates behind `after`, of fewer if there are fewer.

        The last one may have others before it. `measured` is what is known of candidates, by their
        ids, and what is found out about more of them.
        """
        begin = -math.inf if after is None else after.distance
        passed: set[int] = set()
        # What only the catalog knows may shut out the object by which a photo is so near.
        if wanted.min_area is None:
            passed = {each.unit for each in candidates if each.at_most < begin - _ROUNDING}
        waiting = [each for each in candidates if each.unit not in passed]
        waiting.sort(key=lambda each: (each.bound, each.id))
        best: dict[int, Hit] = {}
        hits: list[Hit] = []
        start, size = 0, count
        while start < len(waiting):
            bound = waiting[start].bound - _ROUNDING
            if bound > furthest or (len(hits) >= count and hits[count - 2].distance < bound):
                break
            batch: list[_Candidate] = []
            while start < len(waiting) and len(batch) < size:
                each = waiting[start]
                start += 1
                known = best.get(each.unit)
                if known is None or each.bound - _ROUNDING <= known.distance:
                    batch.append(each)
            size = min(2 * size, _MAX_MEASURED)
            new = [each.id for each in batch if each.id not in measured]
            measured.update(dict.fromkeys(new))
            measured.update(await self._measure(collection, vectors, wanted, new))
            for each in batch:
                hit = measured[each.id]
                if hit is not None and (
                    each.unit not in best or _place_of(hit) < _place_of(best[each.unit])
                ):
                    best[each.unit] = hit
            hits = sorted(
                (
                    hit
                    for hit in best.values()
                    if hit.distance <= furthest
                    and (after is None or _place_of(hit) > (after.distance, after.id))
                ),
                key=_place_of,
            )
        return hits[:count]

    async def _measure(
        self,
        collection: Collection,
        vectors: NDArray[np.float32],
        wanted: Wanted,
        ids: Sequence[int],
    ) -> dict[int, Hit]:
        """Those of the objects, or with match="all" of the photos, that are hits, by their ids."""
        # The catalog is the truth: what it does not (or not yet) call indexed is no hit.
        with self._figures.stage("lookup"):
            if wanted.match == "all":
                groups = await self._catalog.objects_of_images(ids)
            else:
                groups = {id_: [found] for id_, found in (await self._catalog.places(ids)).items()}
        allowed = [place for group in groups.values() for place in group if _allows(wanted, place)]
        with self._figures.stage("search"):
            stored = await self._vectors.vectors(collection.store, [place.id for place in allowed])
            places = [place for place in allowed if place.id in stored]
            if not places:
                return {}
            distances = await asyncio.to_thread(
                _distances, vectors, [stored[place.id] for place in places]
            )
        if wanted.match == "any":
            return {
                place.id: _hit([_nearest(distances[:, [column]], [place])])
                for column, place in enumerate(places)
            }
        columns: dict[int, list[int]] = {}
        for column, place in enumerate(places):
            columns.setdefault(place.image_id, []).append(column)
        return {
            image_id: _hit(
                [
                    _nearest(
                        distances[[query]][:, mine], [places[column] for column in mine], query
                    )
                    for query in range(len(vectors))
                ]
            )
            for image_id, mine in columns.items()
        }

    async def _known_labels(self, collection: Collection, labels: Sequence[str]) -> tuple[str, ...]:
        """Those of the labels that are in the catalog.

        Seen once, a label is not looked up again: where it has gone, nothing bears it.
        """
        known = self._labels.setdefault(collection.id, set())
        if new := sorted(set(labels) - known):
            with self._figures.stage("lookup"):
                known |= await self._catalog.labels_among(collection.id, new)
        return tuple(sorted(known.intersection(labels)))


def _rank(hit: VectorHit) -> tuple[float, int]:
    """Nearest first; ties in the order of ids."""
    return hit.distance, hit.object_id


def _place_of(hit: Hit) -> tuple[float, int]:
    """Where in the ranking a hit is."""
    return hit.distance, hit.matches[0].object.id


def _first_limit(wanted: Wanted) -> int:
    """Hits to ask for first for each hit wanted."""
    if wanted.match == "all":
        return _HITS_FOR_ALL
    return _HITS_PER_PHOTO if wanted.group_by == "image" else _HITS_PER_OBJECT


def _ends(lists: Iterable[Sequence[VectorHit]], limit: int) -> list[float]:
    """Of each list, the distance beyond which there may be objects that are not in it."""
    return [hits[-1].distance if len(hits) == limit else math.inf for hits in lists]


def _candidates(
    wanted: Wanted, lists: Sequence[Sequence[VectorHit]], limit: int
) -> tuple[list[_Candidate], float]:
    """What is in the lists, and the distance that is the least for everything else."""
    if wanted.match == "all":
        return _photos(lists, limit)
    unseen = min(_ends(lists, limit))
    nearest: dict[int, VectorHit] = {}
    for hits in lists:
        for hit in hits:
            known = nearest.get(hit.object_id)
            if known is None or hit.distance < known.distance:
                nearest[hit.object_id] = hit
    by_photo = wanted.group_by == "image"
    return [
        _Candidate(
            id=hit.object_id,
            unit=hit.image_id if by_photo else hit.object_id,
            bound=min(hit.distance, unseen),
            at_most=hit.distance,
        )
        for hit in nearest.values()
    ], unseen


def _photos(lists: Sequence[Sequence[VectorHit]], limit: int) -> tuple[list[_Candidate], float]:
    """The photos of the lists, and the mean distance that is the least for all others."""
    if not all(lists):
        return [], math.inf
    nearest: list[dict[int, float]] = []
    for hits in lists:
        # The first of each photo is its nearest.
        nearest.append({hit.image_id: hit.distance for hit in reversed(hits)})
    candidates = []
    for image_id in set().union(*nearest):
        bound = math.fsum(
            known.get(image_id, hits[-1].distance)
            for known, hits in zip(nearest, lists, strict=True)
        ) / len(lists)
        complete = all(image_id in known for known in nearest)
        candidates.append(_Candidate(image_id, image_id, bound, bound if complete else math.inf))
    return candidates, math.fsum(_ends(lists, limit)) / len(lists)


def _allows(wanted: Wanted, place: ObjectPlace) -> bool:
    """Whether the object meets the conditions that are about single objects."""
    if wanted.labels and place.label not in wanted.labels:
        return False
    # As Milvus compares them: see `ObjectFilter`.
    if wanted.min_score is not None and np.float32(place.score) < np.float32(wanted.min_score):
        return False
    if wanted.min_area is None:
        return True
    x1, y1, x2, y2 = place.box
    area = place.width * place.height
    return area > 0 and (x2 - x1) * (y2 - y1) >= wanted.min_area * area


def _distances(
    vectors: NDArray[np.float32], stored: Sequence[NDArray[np.float32]]
) -> NDArray[np.float64]:
    """Squared L2, float64 [Q, N].

    Not by a product of matrices, whose last digits depend on their shapes.
    """
    rows = np.stack(stored).astype(np.float64)
    distances = np.empty((len(vectors), len(rows)))
    for query, vector in enumerate(vectors.astype(np.float64)):
        distances[query] = np.square(rows - vector).sum(axis=1)
    return distances


def _nearest(
    distances: NDArray[np.float64], places: Sequence[ObjectPlace], first_query: int = 0
) -> ObjectMatch:
    """The least of distances, float64 [Q, N], from some query vectors to objects."""
    query, column = np.unravel_index(distances.argmin(), distances.shape)
    distance = float(distances[query, column])
    return ObjectMatch(first_query + int(query), distance, places[int(column)])


def _hit(matches: Sequence[ObjectMatch]) -> Hit:
    return Hit(math.fsum(each.distance for each in matches) / len(matches), tuple(matches))


def _check(wanted: Wanted, top_k: int, after: Position | None) -> None:
    """Raises InvalidInput for values that make no sense, or not together."""
    if top_k < 1:
        raise InvalidInput(f"top_k is {top_k}: ask for at least one hit")
    for name, most in (("min_score", 1.0), ("min_area", 1.0), ("max_distance", 4.0)):
        value = getattr(wanted, name)
        if value is not None and not 0 <= value <= most:
            raise InvalidInput(f"{name} is {value}: it must be from 0 to {most:g}")
    for label in wanted.labels:
        try:
            label.encode()
        except UnicodeEncodeError:
            raise InvalidInput(f"the label {label!r} is not Unicode text") from None
    if wanted.match == "all" and wanted.group_by == "object":
        raise InvalidInput(
            "match=all ranks photos by all query vectors together: it cannot be had with"
            " group_by=object; use group_by=image, or match=any"
        )
    if after is not None and (not math.isfinite(after.distance) or after.seen < 0):
        raise InvalidInput(f"there is no such place in a ranking: {after}")


def _no_collection(name: str) -> NotFound:
    return NotFound(f"there is no collection {name!r}")


def _no_object(object_id: int) -> NotFound:
    return NotFound(f"there is no indexed object {object_id}")
