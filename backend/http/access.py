"""Who calls, and what their API key lets them do: asked before a handler sees the request.

A key comes as `Authorization: Bearer KEY` or `X-API-Key: KEY`. Where a browser can send neither (an
image's address), the page's session does: a cookie, good for what is declared so, which is reading
alone, and sent by the browser to nobody's page but ours.

What a key must not see is answered as if it were not there; what it must not change, and what it
is not made for, with 403, there or not.
"""

from dataclasses import dataclass
from typing import Final

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from structlog.contextvars import bound_contextvars

from backend.errors import Forbidden, InsufficientScope, Unauthorized, Unavailable
from backend.http.perimeter import PERIMETER, check_rate
from backend.http.services import RUNNING, SETTINGS, services
from backend.keys import ApiKey, KeyRing, Scope

__all__ = [
    "KEY_HEADER",
    "SESSION_COOKIE",
    "caller",
    "caller_id",
    "check_reaches",
    "check_still_welcome",
    "default_collection",
    "guarded",
    "is_still_welcome",
    "knows_caller",
    "reachable",
    "reaches",
]

_log = structlog.get_logger(__name__)

KEY_HEADER: Final = "X-API-Key"
SESSION_COOKIE: Final = "image_search_session"
_REALM: Final = 'Bearer realm="image similarity search"'


@dataclass(frozen=True)
class _Caller:
    """`key` is None where none is demanded."""

    key: ApiKey | None


_CALLER: Final = web.RequestKey("caller", _Caller)


def guarded(handler: Handler, scope: Scope, *, takes_session: bool = False) -> Handler:
    """A handler that gets a request only of those whose key has the scope, where one is demanded.

    `takes_session`: whether a page's session stands in for a key.
    """

    async def guard(request: web.Request) -> web.StreamResponse:
        if scope == "admin" and request.app[PERIMETER].is_foreign(request, links=False):
            raise Forbidden(
                "a page of another host may not lead here: open the address itself, or call it from"
                " a program"
            )
        if not request.app[SETTINGS].demands_keys:
            request[_CALLER] = _Caller(None)
            return await handler(request)
        key = await _find(services(request).keys, request, takes_session=takes_session)
        request[_CALLER] = _Caller(key)
        with bound_contextvars(key=key.parent or key.id):
            check_rate(request.app[PERIMETER].per_key, key.parent or key.id, "API key")
            if not key.may(scope):
                raise InsufficientScope(
                    f"the API key has not the scope {scope!r}, which this needs: take another, or"
                    " have one made",
                    f'{_REALM}, error="insufficient_scope", scope="{scope}"',
                )
            return await handler(request)

    return guard


async def _find(keys: KeyRing, request: web.Request, *, takes_session: bool) -> ApiKey:
    given = _given(request)
    if len(given) > 1:
        raise Unauthorized(
            "the request bears several API keys: send one", f'{_REALM}, error="invalid_request"'
        )
    if given:
        [text] = given
        found = await keys.find(text)
    else:
        cookie = _cookie(request) if takes_session else None
        if cookie is None:
            raise Unauthorized(
                "this needs an API key: send it as 'Authorization: Bearer KEY' or as"
                f" '{KEY_HEADER}: KEY'; the service's operator makes one with 'python -m backend"
                " keys create'",
                _REALM,
            )
        found = await keys.find_session(cookie)
    if found is None:
        raise _not_good()
    return found


def _not_good() -> Unauthorized:
    return Unauthorized(
        "the API key is not known, or not good any more: have a new one made",
        f'{_REALM}, error="invalid_token"',
    )


def _given(request: web.Request) -> set[str]:
    """The keys that a request bears; those of other schemes are a proxy's business."""
    given = {text.strip() for text in request.headers.getall(KEY_HEADER, [])}
    for text in request.headers.getall(hdrs.AUTHORIZATION, []):
        scheme, _, key = text.strip().partition(" ")
        if scheme.lower() == "bearer":
            given.add(key.strip())
    return given


def _cookie(request: web.Request) -> str | None:
    # Ports share cookies, and so would a page of another port.
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return None
    return request.cookies.get(SESSION_COOKIE)


async def knows_caller(request: web.Request) -> bool:
    """Whether the request may be told all that is of an operator's interest: of an open path."""
    if not request.app[SETTINGS].demands_keys:
        return True
    here = request.app[RUNNING].services
    if here is None:
        return False
    try:
        key = await _find(here.keys, request, takes_session=False)
    except (Unauthorized, Unavailable):
        return False
    return key.may("read") and key.collections is None


async def is_still_welcome(request: web.Request) -> bool:
    """Whether the key of a request that takes long is still good, as far as can be told."""
    key = caller(request)
    try:
        return key is None or await services(request).keys.is_good(key)
    except Unavailable:  # it was good when the request began
        return True


async def check_still_welcome(request: web.Request) -> None:
    """Raises Unauthorized where the key of a request that takes long is not good any more."""
    if not await is_still_welcome(request):
        raise _not_good()


def caller(request: web.Request) -> ApiKey | None:
    """The key, or session, of whoever calls; None where none is demanded."""
    known = request.get(_CALLER)
    return None if known is None else known.key


def caller_id(request: web.Request) -> str | None:
    """What logs call the key by; None where there is none."""
    key = caller(request)
    return None if key is None else key.parent or key.id


def reachable(request: web.Request) -> tuple[str, ...] | None:
    """The only collections that the caller may reach; None for all."""
    key = caller(request)
    return None if key is None else key.collections


def reaches(request: web.Request, collection: str) -> bool:
    """Whether the caller may reach a collection; else it is to be as if it were not there."""
    key = caller(request)
    return key is None or key.reaches(collection)


def check_reaches(request: web.Request, collection: str) -> None:
    """Raises Forbidden for a collection that the caller must not change, there or not."""
    if not reaches(request, collection):
        raise Forbidden(f"the API key is not for collection {collection!r}: take another")


def default_collection(request: web.Request) -> str:
    """The collection that is meant where a request names none.

    That is DEFAULT_TABLE, or, where the caller's key is not for it, the first that it is for.
    """
    name = request.app[SETTINGS].default_table
    only = reachable(request)
    return only[0] if only and name not in only else name
