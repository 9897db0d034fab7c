"""Whether the service is alive, and whether it can do its work: for balancers and operators."""

from dataclasses import asdict
from typing import Final

from aiohttp import web

from backend.http.openapi import Operation
from backend.http.services import RUNNING, Running

__all__ = ["OPERATIONS"]


async def alive(_request: web.Request) -> web.Response:
    """Answers as long as the process does, whatever the engines do."""
    return web.json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """Lets every engine do a little real work: an inference, a vector search, a query."""
    body = await _readiness(request.app[RUNNING])
    return web.json_response(
        body,
        status=200 if body["status"] == "ready" else 503,
        headers={} if body["status"] == "ready" else {"Retry-After": "5"},
    )


async def _readiness(running: Running) -> dict[str, object]:
    if running.services is None:
        engines = [
            {"engine": engine, "ready": False, "problem": reason}
            for engine, reason in running.waiting.items()
        ]
        return {"status": "starting", "engines": engines, "waiting_loads": []}
    states = await running.services.readiness.check()
    return {
        "status": "ready" if all(state.is_ready for state in states) else "waiting",
        "engines": [{"ready": state.is_ready, **asdict(state)} for state in states],
        "waiting_loads": [
            {
                "id": load.id,
                "collection": load.collection.name,
                "root": load.root,
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
        "status": {"enum": ["ready", "waiting", "starting"]},
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
                    "root": _TEXT,
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
        answer={"type": "object", "properties": {"status": {"const": "ok"}}},
    ),
    Operation(
        "GET",
        "/readyz",
        ready,
        "Whether every engine does its work; 503 with the same body where one does not",
        answer=_READINESS,
    ),
)
