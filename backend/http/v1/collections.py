"""`/api/v1/collections` and `/api/v1/info`."""

import asyncio
import importlib.metadata
from collections.abc import Sequence
from typing import Final

from aiohttp import hdrs, web

from backend.duplicates import FoundGroup
from backend.errors import NotFound
from backend.http.access import check_reaches, default_collection, reaches
from backend.http.openapi import Operation, Parameter
from backend.http.services import SETTINGS, Services, in_time, services
from backend.http.v1.presenting import answer, image_summary
from backend.http.v1.requests import decode_cursor, encode_cursor, read_json, read_query
from backend.http.v1.schemas import (
    MAX_BATCH,
    CollectionDetail,
    CollectionList,
    CollectionSummary,
    DuplicateGroup,
    DuplicateGroups,
    DuplicateGroupsQuery,
    Info,
    LabelCount,
    ModelInfo,
    NewCollection,
)
from backend.names import MAX_NAME_LENGTH, NAME_PATTERN, check_collection_name
from backend.settings import MAX_TOP_K
from backend.storage.catalog import Collection

__all__ = ["OPERATIONS"]

_DISTRIBUTION: Final = "image-similarity-search"


async def list_collections(request: web.Request) -> web.Response:
    """All collections."""
    with in_time(request):
        here = services(request)
        counted = await here.catalog.collections_with_counts()
    items = [
        _summary(here, each.collection, images=each.indexed, failed=each.failed)
        for each in counted
        if reaches(request, each.collection.name)
    ]
    return answer(CollectionList(items=sorted(items, key=lambda each: each.name)))


async def make_collection(request: web.Request) -> web.Response:
    """Makes a collection, where there is none of that name."""
    body = await read_json(request, NewCollection)
    check_reaches(request, body.name)
    with in_time(request):
        here = services(request)
        collection, made = await here.indexer.make_collection(body.name)
        detail = await _detail(here, collection)
    headers = {hdrs.LOCATION: f"/api/v1/collections/{collection.name}"}
    return answer(detail, status=201 if made else 200, headers=headers)


async def get_collection(request: web.Request) -> web.Response:
    """One collection with its labels."""
    with in_time(request):
        here = services(request)
        return answer(await _detail(here, await _collection(here, request)))


async def drop_collection(request: web.Request) -> web.Response:
    """Removes a collection; the files of loaded folders are not touched."""
    name = request.match_info["name"]
    with in_time(request):
        if not reaches(request, name) or not await services(request).indexer.drop(name):
            raise _missing(name)
    return web.Response(status=204)


async def collection_duplicates(request: web.Request) -> web.Response:
    """Groups of photos that show the same."""
    wanted = read_query(request, DuplicateGroupsQuery)
    after = 0
    if wanted.cursor is not None:
        [after] = decode_cursor(wanted.cursor, (int,), wanted, of=request.match_info["name"])
    with in_time(request):
        here = services(request)
        collection = await _collection(here, request)
        groups = await here.duplicates.in_collection(
            collection.name,
            after=after,
            limit=wanted.limit + 1,
            max_distance=wanted.max_distance,
            max_bits=wanted.max_bits,
        )
    cursor = None
    if len(groups) > wanted.limit:
        groups = groups[: wanted.limit]
        cursor = encode_cursor((groups[-1].images[0].id,), wanted, of=collection.name)
    # A group may be of very many copies.
    return await asyncio.to_thread(_answer_groups, groups, collection.name, cursor)


def _answer_groups(
    groups: Sequence[FoundGroup], collection: str, cursor: str | None
) -> web.Response:
    items = [
        DuplicateGroup(
            exact=group.exact,
            images=[image_summary(image, collection) for image in group.images],
        )
        for group in groups
    ]
    return answer(DuplicateGroups(items=items, next_cursor=cursor))


async def info(request: web.Request) -> web.Response:
    """What a client may want to know before it asks for anything."""
    settings, analyzer = request.app[SETTINGS], services(request).analyzer
    return answer(
        Info(
            version=importlib.metadata.version(_DISTRIBUTION),
            default_collection=default_collection(request),
            engine=analyzer.engine_name,
            detector=ModelInfo(name=analyzer.detector.name, sha256=analyzer.detector.sha256),
            labels=list(analyzer.detector.labels),
            embedder=ModelInfo(name=analyzer.embedder.name, sha256=analyzer.embedder.sha256),
            dimension=analyzer.embedder.dimension,
            top_k=settings.top_k,
            max_top_k=MAX_TOP_K,
            max_batch=MAX_BATCH,
            max_upload_bytes=settings.max_upload_bytes,
            fetches_urls=settings.url_fetch,
        )
    )


async def _collection(here: Services, request: web.Request) -> Collection:
    name = check_collection_name(request.match_info["name"])
    found = await here.catalog.collection(name)
    if found is None or not reaches(request, name):
        raise _missing(name)
    return found


def _missing(name: str) -> NotFound:
    return NotFound(f"there is no collection {name!r}")


async def _detail(here: Services, collection: Collection) -> CollectionDetail:
    images = await here.catalog.count_images(collection.id)
    failed = await here.catalog.count_images(collection.id, "failed")
    labels = await here.catalog.label_counts(collection.id)
    return CollectionDetail(
        **vars(_summary(here, collection, images=images, failed=failed)),
        objects=sum(count for _, count in labels),
        labels=[LabelCount(label=label, objects=count) for label, count in labels],
    )


def _summary(
    here: Services, collection: Collection, *, images: int, failed: int
) -> CollectionSummary:
    return CollectionSummary(
        name=collection.name,
        images=images,
        failed=failed,
        embedder=collection.embedder,
        dimension=collection.dim,
        compatible=collection.embedder_sha256 == here.analyzer.embedder.sha256,
    )


_NAME: Final = (
    Parameter(
        "name",
        "of the collection",
        {"type": "string", "pattern": f"^{NAME_PATTERN}$", "maxLength": MAX_NAME_LENGTH},
        required=True,
    ),
)

OPERATIONS: Final = (
    Operation(
        "GET",
        "/api/v1/collections",
        list_collections,
        "All collections",
        scope="read",
        answer=CollectionList,
        errors=(403, 503),
        problems=True,
        tag="collections",
    ),
    Operation(
        "POST",
        "/api/v1/collections",
        make_collection,
        "Make a collection",
        scope="write",
        answer=CollectionDetail,
        status=201,
        also={200: CollectionDetail},
        body=NewCollection,
        errors=(400, 403, 409, 413, 415, 500, 503),
        problems=True,
        tag="collections",
    ),
    Operation(
        "GET",
        "/api/v1/collections/{name}",
        get_collection,
        "One collection: counts, labels, embedder",
        scope="read",
        answer=CollectionDetail,
        path_parameters=_NAME,
        errors=(400, 403, 404, 503),
        problems=True,
        tag="collections",
    ),
    Operation(
        "DELETE",
        "/api/v1/collections/{name}",
        drop_collection,
        "Remove a collection with its uploads; the files of loaded folders stay",
        scope="admin",
        answer=None,
        status=204,
        path_parameters=_NAME,
        errors=(400, 403, 404, 503),
        problems=True,
        tag="collections",
    ),
    Operation(
        "GET",
        "/api/v1/collections/{name}/duplicates",
        collection_duplicates,
        "Groups of photos that show the same",
        scope="read",
        answer=DuplicateGroups,
        query=DuplicateGroupsQuery,
        path_parameters=_NAME,
        errors=(400, 403, 404, 409, 500, 503),
        problems=True,
        tag="collections",
    ),
    Operation(
        "GET",
        "/api/v1/info",
        info,
        "Version, models, limits",
        scope="read",
        answer=Info,
        errors=(403, 503),
        problems=True,
        tag="service",
    ),
)
