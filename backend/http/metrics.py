"""What the service tells of itself to Prometheus."""

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from backend.errors import Forbidden
from backend.http.access import reachable
from backend.http.openapi import Operation
from backend.http.services import ADMISSION, METRICS, RUNNING

__all__ = ["operations"]


async def metrics(request: web.Request) -> web.Response:
    """The figures of the service, also while it waits for its engines."""
    if reachable(request) is not None:
        raise Forbidden("the API key is for some collections alone, the figures are of all")
    figures, running = request.app[METRICS], request.app[RUNNING]
    if running.services is not None:
        figures.show_loads(running.services.indexer.load_progress())
    figures.show_tasks()
    admission = request.app[ADMISSION]
    figures.show_admitted(admission.taken, admission.held_bytes)
    return web.Response(
        body=figures.exposition(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4}
    )


def operations(*, is_open: bool) -> tuple[Operation, ...]:
    """`GET /metrics`; where it `is_open`, nobody is asked for a key."""
    return (
        Operation(
            "GET",
            "/metrics",
            metrics,
            "Figures of the service, in Prometheus' text format",
            scope=None if is_open else "read",
            answer={"type": "string"},
            media_types=("text/plain",),
        ),
    )
