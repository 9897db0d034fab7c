"""Sends photos' files: from the disk as they are now, with validators for conditional requests."""

import asyncio
import os
from typing import Final

import structlog
from aiohttp import hdrs, web

from backend.errors import InvalidImage, NotFound
from backend.files import open_regular_file
from backend.vision.decode import CONTENT_TYPES, SNIFF_BYTES, sniff

__all__ = ["is_known", "send_photo"]

_log = structlog.get_logger(__name__)

_NO_PHOTO_ANY_MORE: Final = "the photo is indexed, but its file is no photo any more"
_CHUNK_BYTES: Final = 2**18


def is_known(request: web.Request, tag: str) -> bool:
    """Whether the client has just that (RFC 9110, 13.1.2): it is answered 304 then."""
    return any(each.value in (tag, "*") for each in request.if_none_match or ())


async def send_photo(request: web.Request, path: str) -> web.StreamResponse:
    """Sends a photo's file, which somebody may have replaced since it was indexed.

    What is looked at is what is sent: the file is opened once. aiohttp's FileResponse would open
    it anew, and prefer a file of the same name with `.gz` behind it.

    Raises:
        NotFound: the file is gone, or is no photo any more.
    """
    try:
        file = await asyncio.to_thread(open_regular_file, path)
    except OSError as error:
        raise NotFound(
            f"the photo is indexed, but its file cannot be read: {error.strerror}"
        ) from None
    except InvalidImage:
        raise NotFound(_NO_PHOTO_ANY_MORE) from None
    with file:
        status = os.fstat(file.fileno())
        tag = f"{status.st_mtime_ns:x}-{status.st_size:x}"
        headers = {
            "Cache-Control": "private, no-cache",  # kept, but asked about each time
            "X-Content-Type-Options": "nosniff",
            hdrs.ETAG: f'"{tag}"',
        }
        if is_known(request, tag):
            return web.Response(status=304, headers=headers)
        chunk = await asyncio.to_thread(file.read, _CHUNK_BYTES)
        image_format = sniff(chunk[:SNIFF_BYTES])
        if image_format is None:
            raise NotFound(_NO_PHOTO_ANY_MORE)
        response = web.StreamResponse(
            headers=headers | {"Content-Type": CONTENT_TYPES[image_format]}
        )
        left = status.st_size
        response.content_length = left
        try:
            await response.prepare(request)
            if request.method == "HEAD":
                left = 0
            while left and chunk:
                await response.write(chunk[:left])
                left -= len(chunk[:left])
                chunk = await asyncio.to_thread(file.read, _CHUNK_BYTES)
            if left:
                raise OSError("the file has become shorter")
            await response.write_eof()
        except OSError as error:
            # The client has gone, or the file is not what was announced. The answer has begun:
            # only the connection's end can tell that it is not whole.
            _log.info("photo.broken_off", path=path, reason=str(error))
            if request.transport is not None:
                request.transport.abort()
    return response
