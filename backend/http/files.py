"""Sends photos' files: as they are now, with validators for conditional requests.

Somebody may have put anything in a photo's place since it was indexed. So each time its folder and
its content are looked at, the media type is one of a few that nobody runs, and browsers are told
neither to guess another nor to let whatever it is do anything.
"""

import re
from typing import Final

import structlog
from aiohttp import hdrs, web

from backend.errors import (
    Forbidden,
    InvalidImage,
    NotFound,
    RangeNotSatisfiable,
    StoreRefuses,
    StoreUnavailable,
)
from backend.http.services import in_time
from backend.places import PhotoPlaces
from backend.storage.catalog import Image
from backend.vision.decode import CONTENT_TYPES, SNIFF_BYTES, sniff

__all__ = ["DEFUSED", "is_known", "send_photo"]

_log = structlog.get_logger(__name__)

DEFUSED: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
}
"""Headers of bytes that come from somebody else: as a page of its own, they can do nothing."""

_NO_PHOTO_ANY_MORE: Final = "the photo is indexed, but its file is no photo any more"
_CHUNK_BYTES: Final = 2**18
_RANGE: Final = re.compile(r"bytes=(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})", re.I)
"""One range of bytes: of several, all of the photo is sent, as RFC 9110 allows."""


def is_known(request: web.Request, tag: str) -> bool:
    """Whether the client has just that (RFC 9110, 13.1.2): it is answered 304 then."""
    return any(each.value in (tag, "*") for each in request.if_none_match or ())


async def send_photo(request: web.Request, places: PhotoPlaces, image: Image) -> web.StreamResponse:
    """Sends a catalogued photo's file, which somebody may have replaced since it was indexed.

    What is looked at is what is sent: the file is opened once. aiohttp's FileResponse would open
    it anew, and prefer a file of the same name with `.gz` behind it.

    Raises:
        NotFound: the file is gone, is no photo any more, or lies in none of the places.
        StoreUnavailable, StoreRefuses: the store that it lies in cannot be asked for it.
    """

    async def read() -> bytes:
        with in_time(request):
            return await places.run(image.path, file.read, _CHUNK_BYTES)

    try:
        with in_time(request):
            file = await places.run(image.path, places.open_file, image.path)
    except OSError as error:
        raise _unreadable(error) from None
    except Forbidden as reason:
        raise NotFound(f"the photo is indexed, but its file is not served: {reason}") from None
    except InvalidImage:
        raise NotFound(_NO_PHOTO_ANY_MORE) from None
    with file:
        tag = f"{file.mtime_ns:x}-{file.size:x}"
        headers = DEFUSED | {
            "Cache-Control": "private, no-cache",  # kept, but asked about each time
            hdrs.ETAG: f'"{tag}"',
            hdrs.ACCEPT_RANGES: "bytes",
        }
        if is_known(request, tag):
            return web.Response(status=304, headers=headers)
        try:
            chunk = await read()
        except OSError as error:
            raise _unreadable(error) from None
        image_format = sniff(chunk[:SNIFF_BYTES])
        if image_format is None:
            raise NotFound(_NO_PHOTO_ANY_MORE)
        name = f"photo-{image.id}.{image_format.lower()}"  # as which a browser saves it
        headers |= {
            hdrs.CONTENT_TYPE: CONTENT_TYPES[image_format],
            hdrs.CONTENT_DISPOSITION: f'inline; filename="{name}"',
        }
        start, left = _wanted(request, tag, file.size)
        if left < file.size:
            if not left:
                raise RangeNotSatisfiable(file.size)
            headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{start + left - 1}/{file.size}"
            if start < len(chunk):
                chunk = chunk[start:]
            else:
                file.seek(start)
                chunk = b""
        response = web.StreamResponse(status=206 if left < file.size else 200, headers=headers)
        response.content_length = left
        try:
            await response.prepare(request)
            if request.method == "HEAD":
                left = 0
            while left:
                chunk = chunk or await read()
                if not chunk:
                    raise OSError("the file has become shorter")
                await response.write(chunk[:left])
                left -= len(chunk[:left])
                chunk = b""
            await response.write_eof()
        except (OSError, StoreUnavailable, StoreRefuses) as error:
            # The client has gone, or the file is not what was announced. The answer has begun:
            # only the connection's end can tell that it is not whole.
            _log.info("photo.broken_off", path=image.path, reason=str(error))
            if request.transport is not None:
                request.transport.abort()
    return response


def _wanted(request: web.Request, tag: str, size: int) -> tuple[int, int]:
    """Where the bytes that are asked for begin, and how many they are (RFC 9110, section 14).

    All, where no one range is asked for, or one of what the file was before; none, where the range
    lies behind its end.
    """
    condition = request.headers.get(hdrs.IF_RANGE)
    if request.method != "GET" or condition not in (None, f'"{tag}"'):
        return 0, size
    found = _RANGE.fullmatch(request.headers.get(hdrs.RANGE, "").replace(" ", ""))
    if found is None or not (found["first"] or found["last"]):
        return 0, size
    if not found["first"]:
        start, end = max(0, size - int(found["last"])), size
    else:
        start = int(found["first"])
        end = min(size, int(found["last"]) + 1) if found["last"] else size
        if found["last"] and int(found["last"]) < start:
            return 0, size
    return start, max(0, end - start)


def _unreadable(error: OSError) -> NotFound:
    return NotFound(f"the photo is indexed, but its file cannot be read: {error.strerror}")
