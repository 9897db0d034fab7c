"""How a service stops that has others beside it: it sends its clients there first.

From SIGTERM on, for DRAIN_SECONDS, `/readyz` answers that it stops, so that balancers let it go;
whatever comes all the same is answered as ever, with `Connection: close`, so that clients that keep
their connections open their next one elsewhere. Then it ends as it does without all that.
"""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from aiohttp import hdrs, web

__all__ = ["DRAINING", "Draining", "close_connections", "drain_at_sigterm"]

_log = structlog.get_logger(__name__)


class Draining:
    """Whether clients are being sent elsewhere."""

    is_under_way = False


DRAINING: Final = web.AppKey("draining", Draining)


async def close_connections(request: web.Request, response: web.StreamResponse) -> None:
    """Ends a connection with the answer that it is at, while clients are sent elsewhere."""
    if request.app[DRAINING].is_under_way:
        # aiohttp has written its own header by now, or none.
        response.headers[hdrs.CONNECTION] = "close"
        response.force_close()


@contextmanager
def drain_at_sigterm(draining: Draining, seconds: float) -> Iterator[None]:
    """Has SIGTERM begin a drain, which SIGINT ends: by itself when the time is up.

    With 0 seconds SIGTERM stays what it is. A second one changes nothing: supervisors repeat it.
    """
    if not seconds:
        yield
        return
    loop = asyncio.get_running_loop()
    ending: asyncio.TimerHandle | None = None

    def begin() -> None:
        nonlocal ending
        if ending is None:
            draining.is_under_way = True
            _log.info("server.draining", seconds=seconds)
            ending = loop.call_later(seconds, signal.raise_signal, signal.SIGINT)

    loop.add_signal_handler(signal.SIGTERM, begin)
    try:
        yield
    finally:
        loop.add_signal_handler(signal.SIGTERM, lambda: None)  # it is stopping already
        if ending is not None:
            ending.cancel()
