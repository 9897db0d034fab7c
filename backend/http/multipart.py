"""Reads a multipart form: photos and a few short fields, each within a limit."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import aiohttp
from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError

from backend.errors import InvalidInput, TooLarge

__all__ = ["Form", "Photo", "read_form"]

_MAX_FIELD_BYTES: Final = 8192
"""The longest field is a URL."""
_MAX_PARTS: Final = 20
_LARGE_PHOTOS: Final = 4
"""Photos as large as one may be, that one request may have: they are in memory together."""
_CHUNK_BYTES: Final = 2**16
# What aiohttp raises for bodies that are no multipart form: it has no class of its own for it.
_MALFORMED: Final = (
    ValueError,
    AssertionError,
    RuntimeError,
    aiohttp.ClientError,
    HttpProcessingError,
)


@dataclass(frozen=True)
class Photo:
    """An encoded photo, and what the client calls its file."""

    data: bytes
    filename: str | None


@dataclass
class Form:
    """The photos, in their order, and the text fields by name."""

    photos: list[Photo] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def photo(self) -> bytes | None:
        """The last photo's bytes."""
        return self.photos[-1].data if self.photos else None


async def read_form(
    request: web.Request,
    *,
    photo_field: str,
    max_photo_bytes: int,
    max_photos: int | None = None,
    hold: Callable[[int], None] = lambda size: None,
) -> Form:
    """The request's multipart body; an empty form where it has another kind of body or none.

    Args:
        request: the request.
        photo_field: name of the parts that are photos.
        max_photo_bytes: of one; all together may have so many times _LARGE_PHOTOS.
        max_photos: that there may be; unset: of several only the last is kept.
        hold: is told of photos' bytes that are in memory from now on, or no more; it may refuse.

    Raises:
        InvalidInput: the body is no well-formed multipart form, or has too many parts.
        TooLarge: a photo or a field is over its limit. What is over is never held in memory.
    """
    form = Form()
    if not request.content_type.startswith("multipart/"):
        return form
    max_parts = _MAX_PARTS + (max_photos or 0)
    try:
        reader = await request.multipart()
        parts, left = 0, _LARGE_PHOTOS * max_photo_bytes
        while (part := await reader.next()) is not None:
            parts += 1
            if parts > max_parts:
                raise InvalidInput(f"the form has more than {max_parts} parts")
            if not isinstance(part, BodyPartReader):
                raise InvalidInput("the form has a multipart body inside a part")
            name = _text(part.name)
            if name == photo_field:
                if max_photos is None:
                    hold(-sum(len(each.data) for each in form.photos))
                    form.photos.clear()
                elif len(form.photos) == max_photos:
                    raise InvalidInput(
                        f"the form has more photos than the {max_photos} that one request may have"
                    )
                data = await _read(part, name, max_photo_bytes, "MAX_UPLOAD_BYTES allows", hold)
                left -= len(data)
                if left < 0 and max_photos is not None:
                    raise TooLarge(
                        f"the photos together have more than {_LARGE_PHOTOS} times the"
                        f" {max_photo_bytes} bytes that MAX_UPLOAD_BYTES allows for one: send fewer"
                        " in a request"
                    )
                form.photos.append(Photo(data, _text(part.filename)))
            elif name:
                limit = "a field may have"
                text = await _read(part, name, _MAX_FIELD_BYTES, limit, hold)
                form.fields[name] = text.decode("utf-8", "replace").strip()
    except InvalidInput:
        raise
    except _MALFORMED as error:
        # In the messages of the client's errors there is more than one line.
        reason = error.message if isinstance(error, HttpProcessingError) else error
        raise InvalidInput(f"the multipart form cannot be read: {reason}") from None
    return form


def _text(name: str | None) -> str | None:
    """A name of a part's header, of which aiohttp keeps bytes that are no UTF-8 as surrogates."""
    return name and name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


async def _read(
    part: BodyPartReader, name: str, limit: int, allowed_by: str, hold: Callable[[int], None]
) -> bytes:
    data = bytearray()
    while chunk := await part.read_chunk(_CHUNK_BYTES):
        hold(len(chunk))
        data += chunk
        if len(data) > limit:
            raise TooLarge(f"{name!r} has more than the {limit} bytes that {allowed_by}")
    return bytes(data)
