"""`/api/v1/search`, `/api/v1/queries` and `/api/v1/detect`."""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

import numpy as np
from aiohttp import hdrs, web
from numpy.typing import NDArray

from backend.errors import Forbidden, InvalidImage, InvalidInput, NotFound, ServiceError, TooLarge
from backend.http.access import default_collection, reaches
from backend.http.files import DEFUSED, is_known
from backend.http.multipart import Photo
from backend.http.openapi import BINARY, Operation, Parameter
from backend.http.problems import problem
from backend.http.request_ids import request_id
from backend.http.services import ADMISSION, PLACE, SETTINGS, Services, in_time, services
from backend.http.v1.presenting import (
    answer,
    detections,
    image_summary,
    object_detail,
)
from backend.http.v1.requests import (
    PHOTO_FIELD,
    InvalidFields,
    decode_cursor,
    encode_cursor,
    read_photo,
    read_photos,
    read_query,
    read_region,
)
from backend.http.v1.schemas import (
    MAX_BATCH,
    Batch,
    BatchOptions,
    BatchResult,
    Detected,
    FetchBody,
    FieldProblem,
    Hit,
    Match,
    QueryPhoto,
    SearchAnswer,
    SearchOptions,
    SearchQuery,
)
from backend.places import PhotoPlaces
from backend.queries import QueryPhoto as KeptPhoto
from backend.searching import MAX_QUERY_OBJECTS, HitPage, Position, Wanted
from backend.storage.catalog import Collection, Image, ObjectPlace
from backend.vision.decode import CONTENT_TYPES, SNIFF_BYTES, sniff

__all__ = ["OPERATIONS"]


@dataclass(frozen=True)
class _Query:
    """What is searched with: vectors, what of the photo they are, and what to leave out.

    `sha256` is of a photo that was sent; `collection` is where an indexed one is.
    """

    photo: QueryPhoto
    vectors: NDArray[np.float32]
    sha256: str | None = None
    collection: str | None = None
    own_images: tuple[int, ...] = ()


async def search_photo(request: web.Request) -> web.Response:
    """Searches with a photo that is sent or named by a URL."""
    options = read_query(request, SearchOptions)
    data = await read_photo(request)
    with in_time(request):
        return answer(await _search_photo(services(request), request, options, data))


async def search_again(request: web.Request) -> web.Response:
    """Searches with what is on the server: a query photo, an indexed photo or object."""
    wanted = read_query(request, SearchQuery)
    given = {"query": wanted.query, "image_id": wanted.image_id, "object_id": wanted.object_id}
    if sum(value is not None for value in given.values()) != 1:
        raise InvalidFields(
            [
                FieldProblem(
                    where="query",
                    name="query",
                    detail="give exactly one of query, image_id and object_id",
                )
            ]
        )
    with in_time(request):
        here = services(request)
        # What has been found already needs no place: the networks have nothing to do for it.
        found = wanted.query is None or here.queries.remembers(wanted.query)
        works = wanted.region is not None or not found
        with request.app[ADMISSION].place() if works else nullcontext():
            query = await _again(here, request, wanted)
        return answer(await _search(here, request, wanted, query))


async def _again(here: Services, request: web.Request, wanted: SearchQuery) -> _Query:
    if wanted.query is not None:
        kept = await here.queries.get(wanted.query)
        return await _of_photo(here, request, wanted, kept)
    if wanted.image_id is not None:
        return await _of_image(here, request, wanted, wanted.image_id)
    assert wanted.object_id is not None
    return await _of_object(here, request, wanted, wanted.object_id)


async def search_batch(request: web.Request) -> web.Response:
    """Searches with each of several photos; what is wrong with one is the others' no concern."""
    options = SearchOptions(**read_query(request, BatchOptions).model_dump())
    photos = await read_photos(request, at_most=MAX_BATCH)
    here = services(request)
    turns = asyncio.Semaphore(request[PLACE].widen(len(photos)))

    async def one(photo: Photo) -> BatchResult:
        try:
            async with turns:
                found = await _search_photo(here, request, options, photo.data)
        except ServiceError as error:
            if len(photos) == 1:
                raise
            told = problem(error, request_id(request))
            return BatchResult(filename=photo.filename, problem=told)
        return BatchResult(filename=photo.filename, answer=found)

    with in_time(request):
        results = await asyncio.gather(*map(one, photos))
    return answer(Batch(results=results))


async def detect(request: web.Request) -> web.Response:
    """The objects of a photo, of which nothing is kept."""
    data = await read_photo(request)
    with in_time(request):
        width, height, objects = await services(request).analyzer.detect(data)
    return answer(Detected(width=width, height=height, objects=detections(objects)))


async def query_file(request: web.Request) -> web.Response:
    """The bytes of a query photo."""
    query_id = request.match_info["id"]
    headers = DEFUSED | {
        # An id is the SHA-256 of just these bytes.
        "Cache-Control": "private, max-age=31536000, immutable",
        hdrs.ETAG: f'"{query_id}"',
    }
    data = await services(request).queries.read(query_id)
    if is_known(request, query_id):
        return web.Response(status=304, headers=headers)
    image_format = sniff(data[:SNIFF_BYTES])
    assert image_format is not None  # it has been analysed
    return web.Response(body=data, headers=headers | {"Content-Type": CONTENT_TYPES[image_format]})


async def _search_photo(
    here: Services, request: web.Request, options: SearchOptions, data: bytes
) -> SearchAnswer:
    kept = await here.queries.keep(data)
    return await _search(here, request, options, await _of_photo(here, request, options, kept))


async def _of_photo(
    here: Services, request: web.Request, options: SearchOptions, kept: KeptPhoto
) -> _Query:
    photo = kept.photo
    searched, vectors = await _choice(here, options, len(photo.objects), kept.data)
    if vectors is None:
        vectors = photo.embeddings[searched]
    own: tuple[int, ...] = ()
    if options.exclude_self:
        name = options.collection or default_collection(request)
        if (collection := await here.catalog.collection(name)) is not None:
            own = await _same_bytes(here, collection, kept.id)
    shown = QueryPhoto(
        id=kept.id if kept.is_kept else None,
        width=photo.width,
        height=photo.height,
        objects=detections(photo.objects),
        searched=searched,
    )
    return _Query(shown, vectors, sha256=kept.id, own_images=own)


async def _of_image(
    here: Services, request: web.Request, options: SearchOptions, image_id: int
) -> _Query:
    image, collection = await _indexed(here, request, image_id)
    objects = (await here.catalog.objects_of_images([image_id])).get(image_id, [])
    data = None
    if options.region is not None:
        limit = request.app[SETTINGS].max_file_bytes
        data = await here.places.run(image.path, _read_indexed, here.places, image, limit)
    searched, vectors = await _choice(here, options, len(objects), data)
    if vectors is None and searched:
        vectors = await here.searcher.object_vectors([objects[index].id for index in searched])
    if vectors is None:
        vectors = np.empty((0, here.analyzer.embedder.dimension), np.float32)
    return await _of_indexed(here, options, image, collection, objects, searched, vectors)


def _read_indexed(places: PhotoPlaces, image: Image, limit: int) -> bytes:
    try:
        data = places.read_file(image.path, limit)
    except TooLarge:
        raise NotFound(
            "the photo is indexed, but its file is larger now than MAX_FILE_BYTES allows"
        ) from None
    except (OSError, Forbidden, InvalidImage) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise NotFound(f"the photo is indexed, but its file cannot be read: {reason}") from None
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise NotFound(
            f"the file of photo {image.id} has changed since it was indexed: load its folder again"
        )
    return data


async def _of_object(
    here: Services, request: web.Request, options: SearchOptions, object_id: int
) -> _Query:
    if options.object or options.region is not None:
        detail = "an object is searched for as it is: give image_id to choose others, or a region"
        raise InvalidFields([FieldProblem(where="query", name="object_id", detail=detail)])
    place = (await here.catalog.places([object_id])).get(object_id)
    if place is None:
        raise NotFound(f"there is no indexed object {object_id}")
    try:
        image, collection = await _indexed(here, request, place.image_id)
    except NotFound:
        raise NotFound(f"there is no indexed object {object_id}") from None
    objects = (await here.catalog.objects_of_images([image.id])).get(image.id, [])
    searched = [index for index, each in enumerate(objects) if each.id == object_id]
    vectors = await here.searcher.object_vectors([object_id])
    return await _of_indexed(here, options, image, collection, objects, searched, vectors)


async def _of_indexed(
    here: Services,
    options: SearchOptions,
    image: Image,
    collection: Collection,
    objects: Sequence[ObjectPlace],
    searched: list[int],
    vectors: NDArray[np.float32],
) -> _Query:
    own: tuple[int, ...] = ()
    if options.exclude_self is not False and options.collection in (None, collection.name):
        own = (image.id, *await _same_bytes(here, collection, image.sha256))
    shown = QueryPhoto(
        image_id=image.id,
        width=image.width,
        height=image.height,
        objects=detections(objects),
        searched=searched,
    )
    return _Query(shown, vectors, collection=collection.name, own_images=own)


async def _choice(
    here: Services, options: SearchOptions, objects: int, data: bytes | None
) -> tuple[list[int], NDArray[np.float32] | None]:
    """Which of a photo's objects are searched for; of a region, its vector instead."""
    if options.region is not None:
        if options.object:
            detail = "give object or region, not both"
            raise InvalidFields([FieldProblem(where="query", name="region", detail=detail)])
        assert data is not None
        box = read_region(options.region)
        return [], await here.analyzer.embed_region(data, box)
    if not options.object:
        return list(range(min(objects, MAX_QUERY_OBJECTS))), None
    for index in options.object:
        if index >= objects:
            detail = f"the query photo has {objects} objects, counted from 0: there is no {index}"
            raise InvalidFields([FieldProblem(where="query", name="object", detail=detail)])
    return list(dict.fromkeys(options.object)), None


async def _search(
    here: Services, request: web.Request, options: SearchOptions, query: _Query
) -> SearchAnswer:
    settings = request.app[SETTINGS]
    name = options.collection or query.collection or default_collection(request)
    if not reaches(request, name):
        raise NotFound(f"there is no collection {name!r}")
    if options.match == "all" and options.group_by == "object":
        raise InvalidInput("match=all ranks photos: it does not go with group_by=object")
    # A photo that was sent is gone on with by its id: both make the same list.
    asked = SearchOptions(**options.model_dump(include=set(SearchOptions.model_fields)))
    by = query.sha256 or query.photo.image_id
    identity = {"of": name, "by": by, "searched": query.photo.searched}
    after = None
    if options.cursor is not None:
        kinds = (float, int, int)
        distance, hit_id, seen = decode_cursor(options.cursor, kinds, asked, **identity)
        after = Position(distance, hit_id, seen)
    wanted = Wanted(
        labels=tuple(dict.fromkeys(options.label)),
        min_score=options.min_score,
        min_area=options.min_area,
        max_distance=options.max_distance,
        exclude_images=query.own_images,
        match=options.match,
        group_by=options.group_by,
    )
    page = await here.searcher.find(
        name, query.vectors, wanted, options.top_k or settings.top_k, after
    )
    cursor = None
    if page.next is not None:
        position = (float(page.next.distance), page.next.id, page.next.seen)
        cursor = encode_cursor(position, asked, **identity)
    return SearchAnswer(
        collection=name,
        query=query.photo,
        hits=await _hits(here, name, query.photo.searched, page),
        next_cursor=cursor,
    )


async def _hits(here: Services, name: str, searched: list[int], page: HitPage) -> list[Hit]:
    ids = {hit.matches[0].object.image_id for hit in page.hits}
    images = {
        image.id: image
        for image in await here.catalog.images_by_id(sorted(ids))
        if image.state == "indexed"  # not deleted, or indexed again, meanwhile
    }
    return [
        Hit(
            distance=hit.distance,
            image=image_summary(images[hit.matches[0].object.image_id], name),
            matches=[
                Match(
                    query_object=searched[match.query] if searched else None,
                    distance=match.distance,
                    object=object_detail(match.object),
                )
                for match in hit.matches
            ],
        )
        for hit in page.hits
        if hit.matches[0].object.image_id in images
    ]


async def _indexed(here: Services, request: web.Request, image_id: int) -> tuple[Image, Collection]:
    found = await here.catalog.images_by_id([image_id])
    if found and found[0].state == "indexed":
        collection = await here.catalog.collection_by_id(found[0].collection_id)
        if (
            collection is not None
            and collection.state == "ready"
            and reaches(request, collection.name)
        ):
            return found[0], collection
    raise NotFound(f"there is no indexed photo {image_id}")


async def _same_bytes(here: Services, collection: Collection, sha256: str) -> tuple[int, ...]:
    found = await here.catalog.images_by_sha256(collection.id, [sha256])
    return tuple(image.id for image in found.get(sha256, ()))


_PHOTO: Final = Parameter(PHOTO_FIELD, "the photo", BINARY, required=True)
_PHOTOS: Final = Parameter(
    PHOTO_FIELD,
    "the photos, a part each",
    {"type": "array", "items": BINARY, "minItems": 1, "maxItems": MAX_BATCH},
    required=True,
)
_OF_PHOTO: Final = (400, 403, 408, 409, 413, 415, 429, 500, 502, 503)

OPERATIONS: Final = (
    Operation(
        "POST",
        "/api/v1/search",
        search_photo,
        "Search with a photo that is sent, or fetched from a URL",
        scope="read",
        answer=SearchAnswer,
        query=SearchOptions,
        form=(_PHOTO,),
        body=FetchBody,
        errors=(404, *_OF_PHOTO),
        problems=True,
        admitted=True,
        tag="search",
    ),
    Operation(
        "GET",
        "/api/v1/search",
        search_again,
        "Search with an earlier query photo, an indexed photo or an indexed object",
        scope="read",
        answer=SearchAnswer,
        query=SearchQuery,
        errors=(400, 403, 404, 409, 429, 500, 502, 503),
        problems=True,
        tag="search",
    ),
    Operation(
        "POST",
        "/api/v1/search/batch",
        search_batch,
        f"Search with each of up to {MAX_BATCH} photos",
        scope="read",
        answer=Batch,
        query=BatchOptions,
        form=(_PHOTOS,),
        errors=(404, *_OF_PHOTO),
        problems=True,
        admitted=True,
        tag="search",
    ),
    Operation(
        "GET",
        "/api/v1/queries/{id}/file",
        query_file,
        "The file of a query photo",
        scope="read",
        takes_session=True,
        answer=BINARY,
        also={304: None},
        media_types=("image/*",),
        path_parameters=(Parameter("id", "as `query.id` of an answer"),),
        errors=(403, 404, 503),
        problems=True,
        tag="search",
    ),
    Operation(
        "POST",
        "/api/v1/detect",
        detect,
        "The objects of a photo, of which nothing is kept",
        scope="read",
        answer=Detected,
        form=(_PHOTO,),
        body=FetchBody,
        errors=_OF_PHOTO,
        problems=True,
        admitted=True,
        tag="search",
    ),
)
