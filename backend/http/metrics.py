"""What the service tells of itself to Prometheus."""

from typing import Final

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from backend.http.openapi import Operation
from backend.http.services import ADMISSION, METRICS, RUNNING

__all__ = ["OPERATIONS"]


async def metrics(request: web.Request) -> web.Response:
    """The figures of the service, also while it waits for its engines."""
    figures, running = request.app[METRICS], request.app[RUNNING]
    if running.services is not None:
        figures.show_loads(running.services.indexer.load_progress())
    admission = request.app[ADMISSION]
    figures.show_admitted(admission.taken, admission.held_bytes)
    return web.Response(
        body=figures.exposition(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4}
    )


OPERATIONS: Final = (
    Operation(
        "GET",
        "/metrics",
        metrics,
        "Figures of the service, in Prometheus' text format",
        answer={"type": "string"},
        media_types=("text/plain",),
    ),
)
