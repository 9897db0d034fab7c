"""Reads a multipart form: one photo and a few short fields, each within a limit."""

from dataclasses import dataclass, field
from typing import Final

import aiohttp
from aiohttp import BodyPartReader, web

from backend.errors import InvalidInput, TooLarge

__all__ = ["Form", "read_form"]

_MAX_FIELD_BYTES: Final = 8192
"""The longest field is a URL."""
_MAX_PARTS: Final = 20
_CHUNK_BYTES: Final = 2**16
# What aiohttp raises for bodies that are no multipart form: it has no class of its own for it.
_MALFORMED: Final = (
    ValueError,
    AssertionError,
    RuntimeError,
    aiohttp.ClientError,
    aiohttp.http.HttpProcessingError,
)


@dataclass
class Form:
    """The photo, where there was one, and the text fields by name."""

    photo: bytes | None = None
    fields: dict[str, str] = field(default_factory=dict)


async def read_form(request: web.Request, *, photo_field: str, max_photo_bytes: int) -> Form:
    """The request's multipart body; an empty form where it has another kind of body or none.

    Raises:
        InvalidInput: the body is no well-formed multipart form, or has too many parts.
        TooLarge: the photo or a field is over its limit. What is over is never held in memory.
    """
    form = Form()
    if not request.content_type.startswith("multipart/"):
        return form
    try:
        reader = await request.multipart()
        parts = 0
        while (part := await reader.next()) is not None:
            parts += 1
            if parts > _MAX_PARTS:
                raise InvalidInput(f"the form has more than {_MAX_PARTS} parts")
            if not isinstance(part, BodyPartReader):
                raise InvalidInput("the form has a multipart body inside a part")
            if part.name == photo_field:
                form.photo = await _read(part, max_photo_bytes, "MAX_UPLOAD_BYTES allows")
            elif part.name:
                limit = "a field may have"
                text = await _read(part, _MAX_FIELD_BYTES, limit)
                form.fields[part.name] = text.decode("utf-8", "replace").strip()
    except InvalidInput:
        raise
    except _MALFORMED as error:
        raise InvalidInput(f"the multipart form cannot be read: {error}") from None
    return form


async def _read(part: BodyPartReader, limit: int, allowed_by: str) -> bytes:
    data = bytearray()
    while chunk := await part.read_chunk(_CHUNK_BYTES):
        data += chunk
        if len(data) > limit:
            raise TooLarge(f"{part.name!r} has more than the {limit} bytes that {allowed_by}")
    return bytes(data)
