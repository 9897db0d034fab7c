"""Reads requests into their models, and says of every value what is wrong with it."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeVar, get_origin

from aiohttp import web
from pydantic import BaseModel, ValidationError

from backend.errors import InvalidInput, UnsupportedMediaType
from backend.http.limits import parse_json
from backend.http.multipart import Form, Photo, read_form
from backend.http.openapi import Parameter
from backend.http.services import PLACE, SETTINGS, services
from backend.http.v1.schemas import FetchBody, FieldProblem

__all__ = [
    "InvalidFields",
    "PHOTO_FIELD",
    "decode_cursor",
    "encode_cursor",
    "id_parameter",
    "path_id",
    "read_json",
    "read_photo",
    "read_photos",
    "read_query",
    "read_region",
    "read_url",
]

_Model = TypeVar("_Model", bound=BaseModel)
_Where = Literal["path", "query", "header", "body"]

PHOTO_FIELD: Final = "image"
_JSON: Final = "application/json"
_MAX_ID: Final = 2**63 - 1
_CHANGES: Final = frozenset({"cursor", "limit", "top_k"})
"""Parameters that may differ from page to page."""


class InvalidFields(InvalidInput):
    """Values of a request that are not usable, each with its reason."""

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{each.name}: {each.detail}" for each in problems))


def read_query(request: web.Request, model: type[_Model]) -> _Model:
    """The query string as a model; parameters that are lists may be repeated.

    Raises:
        InvalidFields: with each parameter that is wrong, unknown or given too often.
    """
    values: dict[str, Any] = {}
    repeated = []
    for name in request.query:
        given = request.query.getall(name)
        field = model.model_fields.get(name)
        if field is not None and get_origin(field.annotation) is list:
            values[name] = given
        elif len(given) > 1:
            repeated.append(name)
        else:
            values[name] = given[0]
    if repeated:
        raise InvalidFields(
            [
                FieldProblem(where="query", name=name, detail="it may be given once only")
                for name in dict.fromkeys(repeated)
            ]
        )
    return _validated(model, values, "query")


async def read_json(request: web.Request, model: type[_Model]) -> _Model:
    """The JSON body as a model.

    Raises:
        InvalidFields, InvalidInput: the body is no JSON, or not of this model.
        UnsupportedMediaType: the request says that its body is something else.
    """
    if request.content_type != _JSON:
        raise UnsupportedMediaType(
            f"{request.path} takes {_JSON}, not {request.content_type}: say so in Content-Type"
        )
    return _validated(model, parse_json(await request.read()), "body")


def _validated(model: type[_Model], values: Any, where: _Where) -> _Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InvalidFields([_problem(each, where) for each in error.errors()]) from None


def _problem(error: Any, where: _Where) -> FieldProblem:
    name = ".".join(map(str, error["loc"])) or "the body"
    detail = str(error["msg"])
    if error["type"] == "extra_forbidden":
        detail = "there is no such parameter" if where == "query" else "there is no such field"
    return FieldProblem(where=where, name=name, detail=detail)


async def read_photos(request: web.Request, *, at_most: int) -> list[Photo]:
    """The photos that a request sends along, or the one that it names by a URL.

    Raises:
        InvalidInput, InvalidFields: there is none, or there are too many.
        TooLarge: one of them, or all together.
        UnsupportedMediaType: it is neither a multipart form nor JSON.
        Forbidden, BadGateway: see `PhotoFetcher.fetch`.
        Overloaded, TooSlow: see `Place.reading`.
    """
    async with request[PLACE].reading():
        return await _read_photos(request, at_most)


async def _read_photos(request: web.Request, at_most: int) -> list[Photo]:
    hold = request[PLACE].hold
    if (url := await read_url(request)) is not None:
        return [Photo(await services(request).fetcher.fetch(url, hold), None)]
    if not request.content_type.startswith("multipart/"):
        raise UnsupportedMediaType(
            f"{request.path} takes a multipart/form-data body with a photo as {PHOTO_FIELD!r}, or"
            f' {_JSON} such as {{"url": "https://…"}}, not {request.content_type}'
        )
    form: Form = await read_form(
        request,
        photo_field=PHOTO_FIELD,
        max_photo_bytes=request.app[SETTINGS].max_upload_bytes,
        max_photos=at_most,
        hold=hold,
    )
    if unknown := sorted(form.fields):
        raise InvalidFields(
            [
                FieldProblem(where="body", name=name, detail="there is no such field")
                for name in unknown
            ]
        )
    if not form.photos:
        detail = "the photo is missing"
        raise InvalidFields([FieldProblem(where="body", name=PHOTO_FIELD, detail=detail)])
    return form.photos


async def read_url(request: web.Request) -> str | None:
    """The URL of the photo that a request is about; None where it sends photos along.

    Raises:
        InvalidFields, InvalidInput: the body is JSON, but without a URL.
    """
    if request.content_type != _JSON:
        return None
    return str((await read_json(request, FetchBody)).url)


async def read_photo(request: web.Request) -> bytes:
    """The one photo that a request is about; see `read_photos`."""
    [photo] = await read_photos(request, at_most=1)
    return photo.data


def id_parameter(description: str) -> Parameter:
    """The id in a path, as `path_id` reads it."""
    schema = {"type": "integer", "minimum": 1, "maximum": _MAX_ID}
    return Parameter("id", description, schema, required=True)


def path_id(request: web.Request) -> int:
    """The id in the path.

    Raises:
        InvalidFields: it is none.
    """
    text = request.match_info["id"]
    if text.isascii() and text.isdecimal() and len(text) < 20 and 1 <= int(text) <= _MAX_ID:
        return int(text)
    detail = f"it must be a whole number from 1 to {_MAX_ID}"
    raise InvalidFields([FieldProblem(where="path", name="id", detail=detail)])


def read_region(text: str) -> tuple[float, float, float, float]:
    """A frame, x1,y1,x2,y2 in pixels of the upright photo, from a text of four numbers.

    Raises:
        InvalidFields: the frame is empty.
    """
    x1, y1, x2, y2 = map(float, text.split(","))
    if x1 >= x2 or y1 >= y2:
        detail = "it must be x1,y1,x2,y2 with x1 < x2 and y1 < y2"
        raise InvalidFields([FieldProblem(where="query", name="region", detail=detail)])
    return x1, y1, x2, y2


def encode_cursor(position: Sequence[float], query: BaseModel, **more: object) -> str:
    """Where a page has ended, as a word that is good for this list alone.

    Args:
        position: the numbers that say where.
        query: the parameters of the request.
        more: what else tells this list from others.
    """
    content = json.dumps([_fingerprint(query, more), *position], separators=(",", ":"))
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def decode_cursor(
    cursor: str, kinds: Sequence[type[float] | type[int]], query: BaseModel, **more: object
) -> list[Any]:
    """The numbers of `encode_cursor`, of these kinds.

    Raises:
        InvalidFields: it is no cursor, or another list's.
    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        fingerprint, *position = json.loads(base64.b64decode(padded, b"-_", validate=True))
        usable = len(position) == len(kinds) and all(
            type(value) is kind and 0 <= value <= _MAX_ID  # NaN is not, nor infinity
            for value, kind in zip(position, kinds, strict=True)
        )
    except (ValueError, TypeError, RecursionError):
        usable = False
    if not usable:
        detail = "it is no `next_cursor` of an earlier answer"
        raise InvalidFields([FieldProblem(where="query", name="cursor", detail=detail)])
    if fingerprint != _fingerprint(query, more):
        detail = "it belongs to a request with other parameters: begin without it"
        raise InvalidFields([FieldProblem(where="query", name="cursor", detail=detail)])
    return list(position)


def _fingerprint(query: BaseModel, more: Mapping[str, object]) -> str:
    values = query.model_dump(mode="json", exclude=set(_CHANGES)) | dict(more)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
