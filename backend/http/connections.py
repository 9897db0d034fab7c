"""How many connections there are, and when one has to go, so that slow clients keep nobody out.

One that waits for a request, or of which the head does not come in, is ended by aiohttp after
IDLE_TIMEOUT. One whose client takes nothing of its answer is ended here after SEND_TIMEOUT. Beyond
MAX_CONNECTIONS the one that has waited longest makes room for the next; where none waits, the one
whose body has been coming in for longest, of the address that has most of these. Where all are at
work, the next is told so and closed.
"""

import asyncio
import resource
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from backend.errors import TooSlow
from backend.http.services import ADMISSION

__all__ = [
    "CONNECTIONS",
    "Connections",
    "Site",
    "body_in_time",
    "hide_versions",
    "notice_requests",
    "watch_connections",
]

_log = structlog.get_logger(__name__)

_BACKLOG: Final = 1024
"""Clients that the system has connected and that wait to be taken: where a crowd comes at once,
more would try again after a second, and after two, and four."""
_LOOKS: Final = 4
"""At what is left to send, within SEND_TIMEOUT."""
_OTHER_FILES: Final = 512
"""Descriptors that the engines, photos and threads need besides the connections."""
_PATIENCE_SECONDS: Final = 1.0
"""A body from near by has come in by then: one that takes longer may have to make room."""
_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)


@dataclass(frozen=True, eq=False)
class _Answering:
    """A request that is being answered, and since when."""

    request: web.Request
    since: float

    @property
    def is_receiving(self) -> bool:
        """Whether its body is still coming in."""
        return self.request.transport is not None and not self.request.content.is_eof()

    def end(self) -> None:
        """Ends the connection; its client is told why, unless an answer is on its way."""
        transport = self.request.transport
        if transport is not None and not self.request.writer.output_size:
            transport.write(_TOO_SLOW)
        self.request.protocol.force_close()


@dataclass(eq=False)
class _Sending:
    """What one connection had left to send when it last sent something."""

    left: int = 0
    since: float = 0.0


@dataclass(eq=False)
class Connections:
    """The connections of one application.

    Attributes:
        most: that there may be.
        send_timeout: seconds after which a client that takes nothing of its answer is cut off.
    """

    most: int
    send_timeout: float
    _busy: dict[web.RequestHandler, _Answering] = field(default_factory=dict)
    _idle_since: dict[web.RequestHandler, float] = field(default_factory=dict)
    _sending: dict[asyncio.Transport, _Sending] = field(default_factory=dict)

    def make_room(self, server: web.Server) -> bool:
        """Whether there is room for one more, if need be by ending the idlest, or the slowest."""
        connections = server.connections
        if len(connections) < self.most:
            return True
        here = [each for each in connections if each.transport is not None]  # others are closing
        if len(here) < self.most:
            return True
        now = asyncio.get_running_loop().time()
        idle = [each for each in here if each not in self._busy]
        if idle:
            min(idle, key=lambda each: self._idle_since.get(each, now)).force_close()
            return True
        slow = [
            each
            for each in self._busy.values()
            if now - each.since > _PATIENCE_SECONDS and each.is_receiving
        ]
        if not slow:
            return False
        of_address = Counter(each.request.remote for each in slow)
        # One address with very many does not push out others that have few.
        slowest = min(slow, key=lambda each: (-of_address[each.request.remote], each.since))
        _log.info("connection.slow", client=slowest.request.remote, seconds=now - slowest.since)
        slowest.end()
        return True

    def opened(self, connection: web.RequestHandler) -> None:
        """A connection that has no request yet."""
        self._idle_since[connection] = asyncio.get_running_loop().time()

    @contextmanager
    def answering(self, request: web.Request) -> Iterator[None]:
        """A connection's request is being answered inside."""
        connection, transport = request.protocol, request.transport
        if transport is not None:
            self._sending.setdefault(transport, _Sending())
        self._busy[connection] = _Answering(request, asyncio.get_running_loop().time())
        try:
            yield
        finally:
            del self._busy[connection]
            if transport is not None and not transport.is_closing():
                self._idle_since[connection] = asyncio.get_running_loop().time()

    async def watch(self) -> None:
        """Ends connections whose clients take nothing, over and over."""
        while True:
            await asyncio.sleep(self.send_timeout / _LOOKS)
            self._look(asyncio.get_running_loop().time())

    def _look(self, now: float) -> None:
        for transport, sending in list(self._sending.items()):
            left = transport.get_write_buffer_size()
            if not left and transport.is_closing():
                del self._sending[transport]
            elif not left or left != sending.left:
                sending.left, sending.since = left, now
            elif now - sending.since >= self.send_timeout:
                _log.info("connection.stuck", unsent=left, seconds=self.send_timeout)
                transport.abort()
                del self._sending[transport]
        gone = [each for each in self._idle_since if each.transport is None]
        for connection in gone:
            del self._idle_since[connection]


CONNECTIONS: Final = web.AppKey("connections", Connections)


class _Refusal(asyncio.Protocol):
    """Tells a client that there is no room, and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(_FULL)
        transport.close()


class Site(web.TCPSite):
    """Listens, and takes no more connections than there may be."""

    def __init__(
        self, runner: web.AppRunner, host: str, port: int, connections: Connections
    ) -> None:
        super().__init__(runner, host, port, backlog=_BACKLOG)
        self._connections = connections

    async def start(self) -> None:
        """Listens from now on.

        Raises:
            OSError: the address is taken, or not ours.
        """
        server = self._runner.server
        assert server is not None
        connections = self._connections
        connections.most = _room_for(connections.most)

        def accept() -> asyncio.Protocol:
            if not connections.make_room(server):
                return _Refusal()
            connection = server()
            connections.opened(connection)
            return connection

        await web.BaseSite.start(self)
        self._server = await asyncio.get_running_loop().create_server(
            accept, self._host, self._port, backlog=self._backlog
        )


def _room_for(connections: int) -> int:
    """So many connections, or as many as the system gives descriptors for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < wanted:
            fewer = max(1, soft - _OTHER_FILES)
            _log.warning("connections.limited", wanted=connections, have=fewer, by="RLIMIT_NOFILE")
            return fewer
    return connections


@web.middleware
async def notice_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tells connections that are being answered from those that are idle."""
    with request.app[CONNECTIONS].answering(request):
        return await handler(request)


async def watch_connections(app: web.Application) -> AsyncIterator[None]:
    """Looks after the connections while the application runs."""
    watching = asyncio.create_task(app[CONNECTIONS].watch(), name="connections")
    yield
    watching.cancel()
    await asyncio.wait([watching])


async def hide_versions(_request: web.Request, response: web.StreamResponse) -> None:
    """Keeps aiohttp from telling which versions of it and of Python are to be attacked."""
    response.headers.popall(hdrs.SERVER, None)


def body_in_time(handler: Handler) -> Handler:
    """A handler of a JSON body that gets its request only when all of that is there.

    Raises:
        TooSlow: it has not come in within UPLOAD_TIMEOUT.
    """

    async def wait(request: web.Request) -> web.StreamResponse:
        seconds = request.app[ADMISSION].body_timeout
        try:
            async with asyncio.timeout(seconds):
                await request.read()  # and keeps it
        except TimeoutError:
            raise TooSlow(
                f"the body has not come in within the {seconds:g} s that UPLOAD_TIMEOUT allows"
            ) from None
        return await handler(request)

    return wait
