"""What Schemathesis cannot know of the service: real photos, a real folder, what goes together.

A schema says what each value looks like. That a frame has an inside, that a folder exists, or that
a cursor was given by an earlier answer it cannot say, so valid requests are given such values.
"""

import os
import uuid
from typing import Any

import schemathesis
from hypothesis import strategies
from schemathesis import GenerationMode

from tests.photos import draw_photo, encode

_PHOTOS = [
    encode(draw_photo(seed, width=96, height=64), extension)
    for seed, extension in enumerate((".jpg", ".png", ".webp"))
]
_FOLDER = os.environ.get("SCHEMATHESIS_FOLDER", "")
_SOURCES = ("query", "image_id", "object_id")

schemathesis.openapi.format("binary", strategies.sampled_from(_PHOTOS))
schemathesis.openapi.media_type("application/x-tar", strategies.binary(max_size=4096))


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Gives a valid request values that go together."""
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    query = case.query = case.query or {}
    body = case.body if isinstance(case.body, dict) else {}
    path = case.operation.path
    query.pop("cursor", None)
    if "region" in query:
        query["region"] = "0,0,32.5,32"
        query.pop("object", None)
    if query.get("object"):
        query["object"] = [0]
    if query.get("match") == "all":
        query.pop("group_by", None)
    if path == "/api/v1/search" and case.method == "GET":
        given = [name for name in _SOURCES if query.get(name) is not None] or ["image_id"]
        for name in _SOURCES:
            query.pop(name, None)
        query[given[0]] = "0" * 64 if given[0] == "query" else 1
        if given[0] == "object_id":
            query.pop("object", None)
            query.pop("region", None)
    if case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = uuid.uuid4().hex
    for name in ("File", "folder"):
        if name in body:
            body[name] = _FOLDER
