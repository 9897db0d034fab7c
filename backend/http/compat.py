"""The existing endpoints, as the existing web client and scripts call them.

Their names, fields, answers and casts are given; only errors differ from the system that they come
from: true status codes with `{"status": false, "msg": …}`.
"""

from typing import Final

from aiohttp import web
from pydantic import ValidationError

from backend.errors import InvalidInput, NotFound
from backend.http.access import check_reaches, default_collection, reachable, reaches
from backend.http.files import send_photo
from backend.http.limits import parse_json
from backend.http.multipart import Form, read_form
from backend.http.openapi import BINARY, Operation, Parameter
from backend.http.raw_paths import paths_meant
from backend.http.schemas import LoadBody
from backend.http.services import PLACE, SETTINGS, UNHURRIED, in_time, services
from backend.names import MAX_NAME_LENGTH, NAME_PATTERN
from backend.settings import MAX_TOP_K
from backend.storage.catalog import path_key

__all__ = ["OPERATIONS"]

_PHOTO_FIELD: Final = "image"
_TRUE: Final = frozenset({"true", "1", "yes", "on"})
_FALSE: Final = frozenset({"false", "0", "no", "off"})


async def load(request: web.Request) -> web.Response:
    """Loads a folder; answers when it is done, or, to a browser, as soon as it has begun."""
    request[UNHURRIED] = True
    body = await _load_body(request)
    table = body.table or default_collection(request)
    check_reaches(request, table)
    started = await services(request).indexer.start_load(body.folder, table)
    # A browser's page (it sends Origin) polls /progress after this answer and would show
    # nothing if it came only at the end; scripts take this answer for the end.
    if _flag(request, "wait", default="Origin" not in request.headers):
        await started.wait()
    return web.json_response("Successfully loaded data!")


async def progress(request: web.Request) -> web.Response:
    """How far the loads under way, or else the last ones, have come."""
    indexer = services(request).indexer
    with in_time(request):
        await indexer.refresh()
    current, total = indexer.progress(reachable(request))
    return web.json_response(f"current: {current}, total: {total}")


async def count(request: web.Request) -> web.Response:
    """The number of photos in a collection."""
    table = _table(request)
    if not reaches(request, table):
        return web.json_response(0)
    with in_time(request):
        return web.json_response(await services(request).searcher.count(table))


async def search(request: web.Request) -> web.Response:
    """The photos that hold the objects most similar to those of the query photo."""
    form = await _form(request)
    top_k = _top_k(form.fields.get("topk") or request.query.get("topk"), request)
    if form.photo is None:
        raise InvalidInput(_missing_photo(request))
    table = _table(request)
    if not reaches(request, table):
        return web.json_response([])
    with in_time(request):
        hits = await services(request).searcher.search(form.photo, table, top_k)
    return web.json_response([[hit.object.path, hit.distance] for hit in hits])


async def upload(request: web.Request) -> web.Response:
    """Keeps and indexes one photo, sent along or fetched from a URL."""
    table = _table(request)
    check_reaches(request, table)
    form = await _form(request)
    url = form.fields.get("url") or request.query.get("url")
    if form.photo is not None:
        data = form.photo
    elif url:
        place = request[PLACE]
        async with place.reading():
            data = await services(request).fetcher.fetch(url, place.hold)
    else:
        raise InvalidInput(f"{_missing_photo(request)}, or a 'url' to fetch it from")
    with in_time(request):
        photo = await services(request).indexer.add_photo(data, table)
    return web.json_response(f"Successfully loaded data: {photo.id}")


async def drop(request: web.Request) -> web.Response:
    """Removes a collection; nothing to remove is fine."""
    table = _table(request)
    check_reaches(request, table)
    with in_time(request):
        await services(request).indexer.drop(table)
    return web.json_response("ok")


async def data(request: web.Request) -> web.StreamResponse:
    """The file of a catalogued photo; nothing else on the disk is served."""
    _, _, raw_query = request.raw_path.partition("?")
    paths = paths_meant(raw_query, "image_path")
    if not paths:
        raise InvalidInput("the parameter 'image_path' is missing: GET /data?image_path=PATH")
    with in_time(request):
        image = await services(request).catalog.indexed_image(
            [path_key(path) for path in paths], reachable(request)
        )
    if image is None:
        raise NotFound(f"no photo of that path is indexed: {_printable(paths[0])}")
    return await send_photo(request, services(request).places, image)


async def _load_body(request: web.Request) -> LoadBody:
    expected = 'send JSON such as {"File": "/folder/of/photos", "Table": "my_photos"}'
    try:
        # Whatever the Content-Type says: scripts send JSON without naming it.
        return LoadBody.model_validate(parse_json(await request.read()))
    except ValidationError as error:
        [first, *_] = error.errors()
        name = ".".join(map(str, first["loc"])) or "the body"
        raise InvalidInput(f"{name}: {first['msg']}; {expected}") from None
    except InvalidInput as error:
        raise InvalidInput(f"{error}; {expected}") from None


async def _form(request: web.Request) -> Form:
    place, limit = request[PLACE], request.app[SETTINGS].max_upload_bytes
    async with place.reading():
        return await read_form(
            request, photo_field=_PHOTO_FIELD, max_photo_bytes=limit, hold=place.hold
        )


def _missing_photo(request: web.Request) -> str:
    return (
        f"the field {_PHOTO_FIELD!r} is missing: {request.path} takes a multipart form with a"
        f" photo in it"
    )


def _table(request: web.Request) -> str:
    return request.query.get("table_name") or default_collection(request)


def _top_k(text: str | None, request: web.Request) -> int:
    if not text:
        return request.app[SETTINGS].top_k
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= MAX_TOP_K):
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise InvalidInput(f"topk must be a whole number from 1 to {MAX_TOP_K}, not {shown!r}")
    return int(text)


def _flag(request: web.Request, name: str, *, default: bool) -> bool:
    text = request.query.get(name, "").lower()
    if not text:
        return default
    if text not in _TRUE | _FALSE:
        raise InvalidInput(f"{name} must be true or false, not {text!r}")
    return text in _TRUE


def _printable(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


_TABLE = Parameter(
    "table_name",
    "collection; DEFAULT_TABLE where it is not given, or empty",
    {"type": "string", "pattern": f"^({NAME_PATTERN})?$", "maxLength": MAX_NAME_LENGTH},
)
_TOP_K = {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K}
_TEXT = {"type": "string"}

OPERATIONS: Final = (
    Operation(
        "POST",
        "/img/load",
        load,
        "Load a folder of photos",
        scope="write",
        answer={**_TEXT, "const": "Successfully loaded data!"},
        query=(
            Parameter(
                "wait",
                "answer when the load is done (true) or has begun (false); unset: done, but begun"
                " for a request with an Origin header",
                {"type": "boolean"},
            ),
        ),
        body=LoadBody,
        errors=(400, 403, 409, 413, 502, 503),
    ),
    Operation(
        "GET",
        "/progress",
        progress,
        "How far the load has come",
        scope="read",
        answer={**_TEXT, "examples": ["current: 3, total: 20"]},
        errors=(503,),
    ),
    Operation(
        "POST",
        "/img/count",
        count,
        "Number of photos in a collection",
        scope="read",
        answer={"type": "integer"},
        query=(_TABLE,),
        errors=(400, 503),
    ),
    Operation(
        "POST",
        "/img/search",
        search,
        "Photos with the most similar objects, nearest first",
        scope="read",
        answer={
            "type": "array",
            "items": {
                "type": "array",
                "description": "the photo's path and its distance",
                "items": {"type": ["string", "number"]},
                "minItems": 2,
                "maxItems": 2,
            },
        },
        query=(_TABLE,),
        form=(
            Parameter(_PHOTO_FIELD, "the query photo", BINARY, required=True),
            Parameter("topk", "photos to return; TOP_K where it is not given", _TOP_K),
        ),
        errors=(400, 408, 409, 413, 415, 429, 503),
        admitted=True,
    ),
    Operation(
        "POST",
        "/img/upload",
        upload,
        "Keep and index one photo",
        scope="write",
        answer={**_TEXT, "examples": ["Successfully loaded data: 17"]},
        query=(_TABLE,),
        form=(
            Parameter(_PHOTO_FIELD, "the photo", BINARY),
            Parameter("url", "where to fetch the photo from, where there is no photo"),
        ),
        errors=(400, 403, 408, 409, 413, 415, 429, 502, 503),
        admitted=True,
    ),
    Operation(
        "POST",
        "/img/drop",
        drop,
        "Remove a collection",
        scope="admin",
        answer={**_TEXT, "const": "ok"},
        query=(_TABLE,),
        errors=(400, 503),
    ),
    Operation(
        "GET",
        "/data",
        data,
        "The file of an indexed photo",
        scope="read",
        answer=BINARY,
        query=(Parameter("image_path", "path as /img/search gives it", required=True),),
        also={206: BINARY},
        media_types=("image/*",),
        errors=(400, 404, 416, 502, 503),
    ),
)
