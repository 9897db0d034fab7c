"""`/api/v1/images`: photos of collections, their files, thumbnails and near-duplicates."""

import asyncio
import hashlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from aiohttp import hdrs, web

from backend.errors import IdempotencyKeyReused, NotFound, ServiceError, Unavailable
from backend.http.access import caller_id, check_reaches, default_collection, reachable, reaches
from backend.http.files import DEFUSED, is_known, send_photo
from backend.http.multipart import Photo
from backend.http.openapi import BINARY, Operation, Parameter
from backend.http.problems import problem
from backend.http.request_ids import request_id
from backend.http.services import PLACE, Services, in_time, services
from backend.http.v1.presenting import answer, image_detail, image_summary
from backend.http.v1.requests import (
    PHOTO_FIELD,
    InvalidFields,
    decode_cursor,
    encode_cursor,
    id_parameter,
    path_id,
    read_photos,
    read_query,
    read_url,
)
from backend.http.v1.schemas import (
    Duplicate,
    DuplicateList,
    DuplicatesQuery,
    FetchBody,
    FieldProblem,
    ImageDetail,
    ImageList,
    ImagesQuery,
    ThumbnailQuery,
    UploadAnswer,
    UploadQuery,
    UploadResult,
)
from backend.storage.catalog import Collection, Image, KeptAnswer
from backend.thumbnails import RECIPE, thumbnail_type

__all__ = ["MAX_UPLOADS", "OPERATIONS"]

MAX_UPLOADS: Final = 64
"""Photos of one request that brings several."""
_KEY_HEADER: Final = "Idempotency-Key"
_MAX_KEY: Final = 255
_KEY: Final = f"[!-~]{{1,{_MAX_KEY}}}"
_KEPT: Final = timedelta(hours=24)
"""For so long an answer to a request with a key is given again."""


async def upload_images(request: web.Request) -> web.Response:
    """Keeps and indexes photos; what is wrong with one is the others' no concern."""
    wanted = read_query(request, UploadQuery)
    key = _key(request)
    name = wanted.collection or default_collection(request)
    check_reaches(request, name)
    if key is not None and (owner := caller_id(request)) is not None:
        # Each API key has words of its own: nobody is told by them what others have sent.
        key = f"{owner} {key}"
    here = services(request)
    fingerprint = ""
    if key is not None:
        async with request[PLACE].reading():
            url = await read_url(request)
        if url is not None:
            # What has been answered is not fetched again: it may be something else by now.
            fingerprint = _fingerprint(name, [f"url {url}"])
            with in_time(request):
                if (kept := await _kept(here, key, datetime.now(UTC))) is not None:
                    return _again(kept, key, fingerprint)
    photos = await read_photos(request, at_most=MAX_UPLOADS)
    with in_time(request):
        if key is None:
            return _uploaded(await _keep_all(here, request, name, photos))
        fingerprint = fingerprint or await asyncio.to_thread(_of_photos, name, photos)
        return await _once(here, request, key, fingerprint, name, photos)


async def _once(
    here: Services,
    request: web.Request,
    key: str,
    fingerprint: str,
    name: str,
    photos: Sequence[Photo],
) -> web.Response:
    """Uploads, or what an earlier request with the same key was answered."""
    now = datetime.now(UTC)
    kept = await _kept(here, key, now)
    if kept is None:
        # Of two that come at once both do the work, which is the same photos twice: that changes
        # nothing. The first to have done it decides what both are answered.
        done = await _keep_all(here, request, name, photos)
        if any(result.status >= 500 for result in done.results):
            return _uploaded(done)  # worth another try
        mine = KeptAnswer(
            key=key,
            fingerprint=fingerprint,
            status=_status(done),
            answer=done.model_dump(mode="json"),
            created_at=_iso(now),
        )
        kept = await here.catalog.keep_answer(mine)
        if kept == mine:
            return _uploaded(done)
    return _again(kept, key, fingerprint)


async def _kept(here: Services, key: str, now: datetime) -> KeptAnswer | None:
    """What a request with this key was answered, where that is no older than answers are kept."""
    kept = await here.catalog.kept_answer(key)
    if kept is None or datetime.fromisoformat(kept.created_at) < now - _KEPT:
        await here.catalog.forget_answers(_iso(now - _KEPT))
        return None
    return kept


def _again(kept: KeptAnswer, key: str, fingerprint: str) -> web.Response:
    if kept.fingerprint != fingerprint:
        raise IdempotencyKeyReused(
            f"the {_KEY_HEADER} {key.rpartition(' ')[2]!r} came with other photos or another"
            " collection before: take a new one for each upload"
        )
    first = UploadAnswer.model_validate(kept.answer)
    headers = {"Idempotency-Replayed": "true", **_location(first)}
    return web.json_response(kept.answer, status=kept.status, headers=headers)


async def _keep_all(
    here: Services, request: web.Request, name: str, photos: Sequence[Photo]
) -> UploadAnswer:
    turns = asyncio.Semaphore(request[PLACE].widen(len(photos)))

    async def keep(photo: Photo) -> UploadResult:
        try:
            async with turns:
                added = await here.indexer.add_photo(photo.data, name)
            detail = await _detail(here, request, added.id)
        except ServiceError as error:
            if len(photos) == 1:
                raise
            return UploadResult(
                status=error.status,
                filename=photo.filename,
                problem=problem(error, request_id(request)),
            )
        status = 201 if added.created else 200
        return UploadResult(status=status, filename=photo.filename, image=detail)

    return UploadAnswer(results=await asyncio.gather(*map(keep, photos)))


def _uploaded(done: UploadAnswer) -> web.Response:
    return answer(done, status=_status(done), headers=_location(done))


def _location(done: UploadAnswer) -> dict[str, str]:
    if len(done.results) == 1 and (image := done.results[0].image) is not None:
        return {hdrs.LOCATION: f"/api/v1/images/{image.id}"}
    return {}


def _status(done: UploadAnswer) -> int:
    statuses = {result.status for result in done.results}
    if any(status >= 400 for status in statuses):
        return 207
    return max(statuses)


def _key(request: web.Request) -> str | None:
    key = request.headers.get(_KEY_HEADER)
    if key is None or re.fullmatch(_KEY, key):
        return key
    detail = f"it must have 1 to {_MAX_KEY} visible characters of ASCII"
    raise InvalidFields([FieldProblem(where="header", name=_KEY_HEADER, detail=detail)])


def _of_photos(name: str, photos: Sequence[Photo]) -> str:
    return _fingerprint(name, [hashlib.sha256(photo.data).hexdigest() for photo in photos])


def _fingerprint(name: str, photos: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([name, photos]).encode()).hexdigest()


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


async def list_images(request: web.Request) -> web.Response:
    """The photos of a collection, page by page in the order of their ids."""
    wanted = read_query(request, ImagesQuery)
    name = wanted.collection or default_collection(request)
    after = 0
    if wanted.cursor is not None:
        [after] = decode_cursor(wanted.cursor, (int,), wanted)
    with in_time(request):
        catalog = services(request).catalog
        collection = await catalog.collection(name)
        if collection is None or not reaches(request, name):
            raise NotFound(f"there is no collection {name!r}")
        images = await catalog.list_images(
            collection.id,
            state=wanted.state,
            label=wanted.label,
            after=after,
            limit=wanted.limit + 1,
        )
    cursor = None
    if len(images) > wanted.limit:
        images = images[: wanted.limit]
        cursor = encode_cursor((images[-1].id,), wanted)
    items = [image_summary(image, name) for image in images]
    return answer(ImageList(items=items, next_cursor=cursor))


async def get_image(request: web.Request) -> web.Response:
    """One photo with its objects."""
    image_id = path_id(request)
    with in_time(request):
        return answer(await _detail(services(request), request, image_id))


async def delete_image(request: web.Request) -> web.Response:
    """Takes a photo out; the file of an upload is removed, one of a folder is not touched."""
    image_id = path_id(request)
    with in_time(request):
        here = services(request)
        if reachable(request) is not None:
            await _image(here, request, image_id)
        if not await here.indexer.remove_photo(image_id):
            raise _missing(image_id)
    return web.Response(status=204)


async def image_file(request: web.Request) -> web.StreamResponse:
    """The photo's file, as it is."""
    image_id = path_id(request)
    with in_time(request):
        image, _ = await _image(services(request), request, image_id)
    return await send_photo(request, services(request).places, image)


async def thumbnail(request: web.Request) -> web.Response:
    """A small, upright copy of a photo, of the best type that the client takes."""
    image_id = path_id(request)
    size = read_query(request, ThumbnailQuery).size
    media_type = thumbnail_type(request.headers.get(hdrs.ACCEPT))
    with in_time(request):
        here = services(request)
        image, _ = await _image(here, request, image_id)
        if image.state != "indexed":
            raise NotFound(f"photo {image_id} could not be indexed and has no thumbnail")
        tag = f"{image.sha256[:32]}-{size}-{RECIPE}-{media_type.partition('/')[2]}"
        headers = DEFUSED | {
            # The id may come to mean other bytes, when the file is replaced and loaded again.
            "Cache-Control": "private, max-age=300",
            hdrs.ETAG: f'"{tag}"',
            hdrs.VARY: hdrs.ACCEPT,
        }
        if is_known(request, tag):
            return web.Response(status=304, headers=headers)
        try:
            data = await here.thumbnails.get(image.path, image.sha256, size, media_type)
        except TimeoutError:
            raise Unavailable("the thumbnail was not made in time: try again later") from None
    return web.Response(body=data, headers=headers | {hdrs.CONTENT_TYPE: media_type})


async def image_duplicates(request: web.Request) -> web.Response:
    """The photos of the same collection that show the same."""
    image_id = path_id(request)
    wanted = read_query(request, DuplicatesQuery)
    with in_time(request):
        here = services(request)
        _, collection = await _image(here, request, image_id)
        found = await here.duplicates.of_image(
            image_id, max_distance=wanted.max_distance, max_bits=wanted.max_bits
        )
    items = [
        Duplicate(
            image=image_summary(each.image, collection.name),
            exact=each.exact,
            bits=each.bits,
            distance=each.distance,
        )
        for each in found
    ]
    return answer(DuplicateList(items=items))


async def _detail(here: Services, request: web.Request, image_id: int) -> ImageDetail:
    image, collection = await _image(here, request, image_id)
    objects = await here.catalog.objects_of_images([image_id])
    return image_detail(image, collection.name, objects.get(image_id, []))


async def _image(here: Services, request: web.Request, image_id: int) -> tuple[Image, Collection]:
    found = await here.catalog.images_by_id([image_id])
    if found and found[0].state in ("indexed", "failed"):
        collection = await here.catalog.collection_by_id(found[0].collection_id)
        if (
            collection is not None
            and collection.state == "ready"
            and reaches(request, collection.name)
        ):
            return found[0], collection
    raise _missing(image_id)


def _missing(image_id: int) -> NotFound:
    return NotFound(f"there is no photo {image_id}")


_ID: Final = (id_parameter("of the photo"),)
_IF_NONE_MATCH: Final = Parameter("If-None-Match", "ETag of what the client has")

OPERATIONS: Final = (
    Operation(
        "POST",
        "/api/v1/images",
        upload_images,
        f"Keep and index up to {MAX_UPLOADS} photos",
        scope="write",
        answer=UploadAnswer,
        status=201,
        also={200: UploadAnswer, 207: UploadAnswer},
        query=UploadQuery,
        headers=(
            Parameter(
                _KEY_HEADER,
                "a word of the client's for this upload: sent again with it, within a day, it is"
                " answered as the first time",
                {"type": "string", "minLength": 1, "maxLength": _MAX_KEY, "pattern": f"^{_KEY}$"},
            ),
        ),
        form=(
            Parameter(
                PHOTO_FIELD,
                "the photos, a part each",
                {"type": "array", "items": BINARY, "minItems": 1, "maxItems": MAX_UPLOADS},
                required=True,
            ),
        ),
        body=FetchBody,
        errors=(400, 403, 404, 408, 409, 413, 415, 422, 429, 500, 502, 503),
        problems=True,
        admitted=True,
        tag="images",
    ),
    Operation(
        "GET",
        "/api/v1/images",
        list_images,
        "The photos of a collection",
        scope="read",
        answer=ImageList,
        query=ImagesQuery,
        errors=(400, 403, 404, 503),
        problems=True,
        tag="images",
    ),
    Operation(
        "GET",
        "/api/v1/images/{id}",
        get_image,
        "One photo with its objects",
        scope="read",
        answer=ImageDetail,
        path_parameters=_ID,
        errors=(400, 403, 404, 503),
        problems=True,
        tag="images",
    ),
    Operation(
        "DELETE",
        "/api/v1/images/{id}",
        delete_image,
        "Take a photo out; the file of an upload is removed, one of a folder stays",
        scope="write",
        answer=None,
        status=204,
        path_parameters=_ID,
        errors=(400, 403, 404, 409, 500, 503),
        problems=True,
        tag="images",
    ),
    Operation(
        "GET",
        "/api/v1/images/{id}/file",
        image_file,
        "The photo's file",
        scope="read",
        takes_session=True,
        answer=BINARY,
        also={206: BINARY, 304: None},
        media_types=("image/*",),
        path_parameters=_ID,
        headers=(_IF_NONE_MATCH,),
        errors=(400, 403, 404, 416, 502, 503),
        problems=True,
        tag="images",
    ),
    Operation(
        "GET",
        "/api/v1/images/{id}/thumbnail",
        thumbnail,
        "A small, upright copy of the photo",
        scope="read",
        takes_session=True,
        answer=BINARY,
        also={304: None},
        media_types=("image/avif", "image/webp", "image/jpeg"),
        path_parameters=_ID,
        query=ThumbnailQuery,
        headers=(_IF_NONE_MATCH,),
        errors=(400, 403, 404, 413, 502, 503),
        problems=True,
        tag="images",
    ),
    Operation(
        "GET",
        "/api/v1/images/{id}/duplicates",
        image_duplicates,
        "The photos of the same collection that show the same",
        scope="read",
        answer=DuplicateList,
        path_parameters=_ID,
        query=DuplicatesQuery,
        errors=(400, 403, 404, 409, 500, 503),
        problems=True,
        tag="images",
    ),
)
