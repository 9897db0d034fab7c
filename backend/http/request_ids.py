"""The id by which a client and the log speak of the same request."""

import re
import uuid
from typing import Final

from aiohttp import web

__all__ = ["ID_HEADER", "request_id"]

ID_HEADER: Final = "X-Request-ID"
_ID: Final = web.RequestKey("id", str)
_GIVEN_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


def request_id(request: web.Request) -> str:
    """The client's own id where it is one that a log can bear, else a new one."""
    known = request.get(_ID)
    if known is None:
        given = request.headers.get(ID_HEADER, "")
        known = given if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
        request[_ID] = known
    return known
