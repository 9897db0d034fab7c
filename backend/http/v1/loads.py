"""`/api/v1/loads`: folders on their way into collections."""

import asyncio
from typing import Final

from aiohttp import hdrs, web
from aiohttp_sse import sse_response

from backend.errors import NotFound, Unavailable
from backend.http.access import (
    check_reaches,
    default_collection,
    is_still_welcome,
    reachable,
    reaches,
)
from backend.http.openapi import Operation
from backend.http.services import UNHURRIED, in_time, services
from backend.http.v1.presenting import answer, load_detail, load_row
from backend.http.v1.requests import (
    decode_cursor,
    encode_cursor,
    id_parameter,
    path_id,
    read_json,
    read_query,
)
from backend.http.v1.schemas import LoadDetail, LoadList, LoadsQuery, NewLoad

__all__ = ["OPERATIONS"]

_EVENTS: Final = "text/event-stream; charset=utf-8"
_FAILURES_IN_NEWS: Final = 100
"""The first ones, of an event that comes five times a second; the last event has all."""
_NEWS_SECONDS: Final = 0.2
"""Between two events at least: a person sees no more, and a load of small photos has hundreds."""


async def start_load(request: web.Request) -> web.Response:
    """Starts loading a folder; answers as soon as it runs."""
    body = await read_json(request, NewLoad)
    name = body.collection or default_collection(request)
    check_reaches(request, name)
    load = await services(request).indexer.start_load(body.folder, name, prune=body.prune)
    headers = {hdrs.LOCATION: f"/api/v1/loads/{load.id}"}
    return answer(load_detail(load), status=202, headers=headers)


async def list_loads(request: web.Request) -> web.Response:
    """The loads, newest first."""
    wanted = read_query(request, LoadsQuery)
    before = None
    if wanted.cursor is not None:
        [before] = decode_cursor(wanted.cursor, (int,), wanted)
    with in_time(request):
        here = services(request)
        collection = None
        if wanted.collection is not None:
            collection = await here.catalog.collection(wanted.collection)
            if collection is None or not reaches(request, wanted.collection):
                raise NotFound(f"there is no collection {wanted.collection!r}")
        await here.indexer.refresh()
        rows = await here.catalog.loads(
            None if collection is None else collection.id,
            before=before,
            limit=wanted.limit + 1,
            only=reachable(request),
        )
    cursor = None
    if len(rows) > wanted.limit:
        rows = rows[: wanted.limit]
        cursor = encode_cursor((rows[-1].id,), wanted)
    items = []
    for row in rows:
        live = here.indexer.active_load(row.id)
        items.append(load_row(row) if live is None else load_detail(live, failures=0))
    return answer(LoadList(items=items, next_cursor=cursor))


async def get_load(request: web.Request) -> web.Response:
    """One load."""
    with in_time(request):
        return answer(await _detail(request, path_id(request)))


async def load_events(request: web.Request) -> web.StreamResponse:
    """How a load goes, as it goes: server-sent events."""
    request[UNHURRIED] = True
    here, load_id = services(request), path_id(request)
    with in_time(request):
        detail = await _detail(request, load_id)
    load = here.indexer.active_load(load_id)
    if request.method == "HEAD":
        return web.Response(content_type="text/event-stream", charset="utf-8")
    async with sse_response(request, headers={"Content-Type": _EVENTS}) as stream:
        while load is not None and load.state == "running":
            if not await is_still_welcome(request):
                return stream
            known = load.version
            news = load_detail(load, failures=_FAILURES_IN_NEWS)
            await stream.send(news.model_dump_json(), event="progress")
            await asyncio.sleep(_NEWS_SECONDS)
            try:
                await load.next_change(known)
            except Unavailable:
                return stream  # the service stops: the load goes on, and so may who follows it
        if load is not None:
            detail = load_detail(load)
        # One that a start has not gone on with yet, or that another process runs, has not ended.
        event = "progress" if detail.state == "running" else "end"
        await stream.send(detail.model_dump_json(), event=event)
    return stream


async def cancel_load(request: web.Request) -> web.Response:
    """Ends a load at a safe point; what it has indexed stays."""
    load_id = path_id(request)
    with in_time(request):
        here = services(request)
        detail = await _detail(request, load_id)
        load = here.indexer.active_load(load_id)
        if load is None or load.state != "running":
            return answer(detail)  # it has ended: nothing is left to be done
        await here.indexer.cancel_load(load)
        return answer(load_detail(load))


async def resume_load(request: web.Request) -> web.Response:
    """Goes on with a load that has ended: what is indexed and unchanged is passed over."""
    load_id = path_id(request)
    await _detail(request, load_id)
    return answer(load_detail(await services(request).indexer.resume_load(load_id)))


async def _detail(request: web.Request, load_id: int) -> LoadDetail:
    here = services(request)
    await here.indexer.refresh()
    live = here.indexer.active_load(load_id)
    if live is not None and reaches(request, live.collection.name):
        return load_detail(live)
    row = await here.catalog.load(load_id)
    if row is None or not reaches(request, row.collection):
        raise NotFound(f"there is no load {load_id}")
    return load_row(row, await here.catalog.load_failures(load_id))


_ID: Final = (id_parameter("of the load"),)

OPERATIONS: Final = (
    Operation(
        "POST",
        "/api/v1/loads",
        start_load,
        "Load a folder of photos, recursively",
        scope="write",
        answer=LoadDetail,
        status=202,
        body=NewLoad,
        errors=(400, 403, 409, 413, 415, 500, 502, 503),
        problems=True,
        tag="loads",
    ),
    Operation(
        "GET",
        "/api/v1/loads",
        list_loads,
        "The loads, newest first",
        scope="read",
        answer=LoadList,
        query=LoadsQuery,
        errors=(400, 403, 404, 503),
        problems=True,
        tag="loads",
    ),
    Operation(
        "GET",
        "/api/v1/loads/{id}",
        get_load,
        "One load: counts, rate, failures",
        scope="read",
        answer=LoadDetail,
        path_parameters=_ID,
        errors=(400, 403, 404, 503),
        problems=True,
        tag="loads",
    ),
    Operation(
        "GET",
        "/api/v1/loads/{id}/events",
        load_events,
        "How a load goes: events `progress`, and at its end `end`, with the load as data",
        scope="read",
        takes_session=True,
        answer={
            "type": "object",
            "required": ["event", "data"],
            "properties": {
                "event": {"enum": ["progress", "end"]},
                "data": {"type": "string", "contentMediaType": "application/json"},
            },
        },
        media_types=("text/event-stream",),
        path_parameters=_ID,
        errors=(400, 403, 404, 503),
        problems=True,
        tag="loads",
    ),
    Operation(
        "POST",
        "/api/v1/loads/{id}/cancel",
        cancel_load,
        "End a load at a safe point; what it has indexed stays",
        scope="write",
        answer=LoadDetail,
        path_parameters=_ID,
        errors=(400, 403, 404, 503),
        problems=True,
        tag="loads",
    ),
    Operation(
        "POST",
        "/api/v1/loads/{id}/resume",
        resume_load,
        "Go on with a load that has ended",
        scope="write",
        answer=LoadDetail,
        path_parameters=_ID,
        errors=(400, 403, 404, 409, 500, 502, 503),
        problems=True,
        tag="loads",
    ),
)
