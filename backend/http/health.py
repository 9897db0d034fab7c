"""Whether the service is alive, and whether it can do its work: for balancers and operators."""

from dataclasses import asdict
from typing import Any, Final

from aiohttp import web

from backend.http.access import knows_caller
from backend.http.draining import DRAINING
from backend.http.openapi import Operation
from backend.http.services import RUNNING, Running

__all__ = ["OPERATIONS"]

_MAX_AGE: Final = 2.0
"""Seconds that what a stranger is told may be old: it costs a run of both networks to find out."""


async def alive(_request: web.Request) -> web.Response:
    """Answers as long as the process does, whatever the engines do."""
    return web.json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """Lets every engine do a little real work: an inference, a vector search, a query."""
    is_known = await knows_caller(request)
    if request.app[DRAINING].is_under_way:
        body: dict[str, Any] = {"status": "stopping", "engines": [], "waiting_loads": []}
    else:
        body = await _readiness(request.app[RUNNING], 0.0 if is_known else _MAX_AGE)
    if not is_known:
        # Folders, collections and what engines say are for those who may read.
        for engine in body["engines"]:
            engine["problem"] = engine["problem"] and "the server's log has its cause"
        body["waiting_loads"] = []
    return web.json_response(
        body,
        status=200 if body["status"] == "ready" else 503,
        headers={} if body["status"] == "ready" else {"Retry-After": "5"},
    )


async def _readiness(running: Running, max_age: float) -> dict[str, Any]:
    if running.services is None:
        engines = [
            {"engine": engine, "ready": False, "problem": reason}
            for engine, reason in running.waiting.items()
        ]
        return {"status": "starting", "engines": engines, "waiting_loads": []}
    states = await running.services.readiness.check(max_age=max_age)
    return {
        "status": "ready" if all(state.is_ready for state in states) else "waiting",
        "engines": [{"ready": state.is_ready, **asdict(state)} for state in states],
        "waiting_loads": [
            {
                "id": load.id,
                "collection": load.collection.name,
                "waiting_for": load.waiting_for,
            }
            for load in running.services.indexer.waiting_loads()
        ],
    }


_TEXT = {"type": "string"}
_READINESS = {
    "type": "object",
    "required": ["status", "engines", "waiting_loads"],
    "properties": {
        "status": {"enum": ["ready", "waiting", "starting", "stopping"]},
        "engines": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["engine", "ready", "problem"],
                "properties": {
                    "engine": _TEXT,
                    "ready": {"type": "boolean"},
                    "milliseconds": {"type": "number"},
                    "problem": {"type": ["string", "null"]},
                },
            },
        },
        "waiting_loads": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "id": {"type": "integer"},
                    "collection": _TEXT,
                    "waiting_for": _TEXT,
                },
            },
        },
    },
}

OPERATIONS: Final = (
    Operation(
        "GET",
        "/healthz",
        alive,
        "Whether the process is alive",
        scope=None,
        answer={"type": "object", "properties": {"status": {"const": "ok"}}},
    ),
    Operation(
        "GET",
        "/readyz",
        ready,
        "Whether every engine does its work; 503 with the same body where one does not, or where"
        " the service is about to stop",
        scope=None,
        answer=_READINESS,
    ),
)
