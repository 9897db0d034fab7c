"""What every request passes: an id, a line in the log, errors as answers."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import hdrs, web
from aiohttp.http import HttpProcessingError
from structlog.contextvars import bound_contextvars

from backend.errors import (
    EngineUnavailable,
    InsufficientScope,
    Overloaded,
    RangeNotSatisfiable,
    ServiceError,
    Unauthorized,
    Unavailable,
)
from backend.http.access import caller_id
from backend.http.problems import problem, problem_answer
from backend.http.request_ids import ID_HEADER, request_id
from backend.http.services import METRICS, SETTINGS, UNHURRIED
from backend.http.v1.schemas import Problem
from backend.metrics import STAGES, Stage, stage_times

__all__ = [
    "answer_errors",
    "identify_requests",
    "log_requests",
    "tell_request_id",
]

_log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_OTHER: Final = "other"
"""In figures, every path that leads nowhere, and every odd method: clients invent them at will."""


@web.middleware
async def identify_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Has every line that is logged for a request bear its id, and traces it; outermost."""
    known = request_id(request)
    traced = request.app[METRICS].traces.request(
        _method(request), _route(request), request.path, request.headers, known
    )
    with bound_contextvars(request=known), traced as answered:
        try:
            response = await handler(request)
        except web.HTTPException as redirect:  # all others are answers by now
            answered(redirect.status)
            raise
        answered(response.status)
        return response


async def tell_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """Answers with the request's id, so that a client can say which lines of the log are its."""
    response.headers[ID_HEADER] = request_id(request)


@web.middleware
async def log_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Counts a request and logs its line; outside of errors, to see what the client sees."""
    figures = request.app[METRICS]
    start = time.perf_counter()
    with figures.request_in_flight(), stage_times() as times:
        try:
            response = await handler(request)
        except asyncio.CancelledError:
            # The client has gone, or the service stops: there is nobody to be answered.
            key = caller_id(request)
            known = {} if key is None else {"key": key}
            _log.info("request.cancelled", method=request.method, path=request.path, **known)
            raise
        except web.HTTPException as redirect:  # all others are answers by now
            _tell(request, redirect.status, time.perf_counter() - start, times)
            raise
    _tell(request, response.status, time.perf_counter() - start, times)
    return response


def _tell(request: web.Request, status: int, seconds: float, times: Mapping[Stage, float]) -> None:
    route = _route(request) or _OTHER
    request.app[METRICS].count_request(_method(request), route, status, seconds)
    log = _log.bind(
        method=request.method, path=request.path, status=status, ms=_milliseconds(seconds)
    )
    if (key := caller_id(request)) is not None:
        log = log.bind(key=key)
    if seconds > request.app[SETTINGS].slow_request and not request.get(UNHURRIED, False):
        stages = {f"{stage}_ms": _milliseconds(times[stage]) for stage in STAGES if stage in times}
        log.warning("request.slow", **stages)
    else:
        log.info("request")


def _method(request: web.Request) -> str:
    return request.method if request.method in hdrs.METH_ALL else _OTHER


def _route(request: web.Request) -> str | None:
    """The path's template; None where the path leads nowhere."""
    resource = request.match_info.route.resource
    return None if resource is None else resource.canonical


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns errors into answers with their true status.

    They are problem documents under `/api/`, `{"status": false, "msg": …}` elsewhere.
    """
    try:
        return await handler(request)
    except ServiceError as error:
        if isinstance(error, EngineUnavailable):
            request.app[METRICS].count_engine_error(error)
        if error.status >= 500:
            _log.error("request.failed", path=request.path, error=str(error))
        response = _error(request, error.status, str(error), error)
        if isinstance(error, Overloaded | Unavailable):
            response.headers["Retry-After"] = str(error.retry_after)
        if isinstance(error, RangeNotSatisfiable):
            response.headers[hdrs.CONTENT_RANGE] = f"bytes */{error.size}"
        if isinstance(error, Unauthorized | InsufficientScope):
            response.headers[hdrs.WWW_AUTHENTICATE] = error.challenge
        return response
    except (web.RequestPayloadError, HttpProcessingError) as error:
        reason = error.message if isinstance(error, HttpProcessingError) else error
        return _error(request, 400, f"the request's body cannot be read: {reason}")
    except web.HTTPException as answer:
        if answer.status < 400:
            raise
        response = _error(request, answer.status, _describe(request, answer))
        if isinstance(answer, web.HTTPMethodNotAllowed):
            response.headers["Allow"] = answer.headers["Allow"]
        return response
    except ConnectionResetError:
        _log.info("request.abandoned", path=request.path)
        return _error(request, 400, "the client has gone")  # which nobody reads any more
    except Exception:
        _log.exception("request.broke", path=request.path)
        return _error(request, 500, "an internal error; the server's log has its cause")


def _error(
    request: web.Request, status: int, message: str, error: ServiceError | None = None
) -> web.Response:
    if not _is_api(request):
        return web.json_response({"status": False, "msg": message}, status=status)
    if error is not None:
        return problem_answer(problem(error, request_id(request)))
    title = HTTPStatus(status).phrase
    code = "internal_error" if status == 500 else title.lower().replace(" ", "_")
    return problem_answer(
        Problem(
            title=title, status=status, detail=message, code=code, request_id=request_id(request)
        )
    )


def _is_api(request: web.Request) -> bool:
    return request.path.startswith("/api/")


def _describe(request: web.Request, answer: web.HTTPException) -> str:
    if answer.status == 404:
        return f"there is nothing at {request.path}; GET /docs lists what there is"
    if isinstance(answer, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(answer.allowed_methods))
        return f"{request.path} is called with {allowed}, not with {answer.method}"
    return answer.text or answer.reason
