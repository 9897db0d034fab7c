"""`/api/v1/session`: what a browser's page stands in with for its key, in images' addresses."""

from typing import Final

from aiohttp import web

from backend.http.access import SESSION_COOKIE, caller
from backend.http.openapi import Operation
from backend.http.perimeter import PERIMETER
from backend.http.services import in_time, services
from backend.http.v1.presenting import answer
from backend.http.v1.schemas import Session
from backend.keys import SESSION_SECONDS

__all__ = ["OPERATIONS"]


async def begin_session(request: web.Request) -> web.Response:
    """Begins a session: a cookie that reads photos, for an hour, where an address is all there is.

    No other page of this browser can read it, nor have it sent along.
    """
    key = caller(request)
    response = answer(Session(seconds=SESSION_SECONDS))
    if key is not None:
        with in_time(request):
            text = await services(request).keys.begin_session(key)
        _set_cookie(response, text, SESSION_SECONDS, request.app[PERIMETER].is_encrypted(request))
    return response


async def end_session(request: web.Request) -> web.Response:
    """Ends the session whose cookie the request bears."""
    text = request.cookies.get(SESSION_COOKIE)
    response = web.Response(status=204)
    if text is not None:
        with in_time(request):
            await services(request).keys.end_session(text)
        _set_cookie(response, "", 0, request.app[PERIMETER].is_encrypted(request))
    return response


def _set_cookie(response: web.Response, text: str, seconds: int, encrypted: bool) -> None:
    # Without a path it is good for this one's folder, also behind a proxy that has put another
    # before it.
    response.cookies[SESSION_COOKIE] = text
    cookie = response.cookies[SESSION_COOKIE]
    cookie["max-age"] = str(seconds)
    cookie["httponly"] = True
    cookie["samesite"] = "Strict"
    if encrypted:
        cookie["secure"] = True


OPERATIONS: Final = (
    Operation(
        "POST",
        "/api/v1/session",
        begin_session,
        "Begin a session: its cookie stands in for the key where a browser cannot send one",
        scope="read",
        answer=Session,
        errors=(503,),
        problems=True,
        tag="service",
    ),
    Operation(
        "DELETE",
        "/api/v1/session",
        end_session,
        "End the session",
        scope="read",
        answer=None,
        status=204,
        errors=(503,),
        problems=True,
        tag="service",
    ),
)
