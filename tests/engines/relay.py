"""A way to a server that a test can cut: the server itself, which others use too, goes on."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["Relay"]


class Relay:
    """Forwards `host`:`port`, a free one of loopback, to a server; `with relay.cut():` it does not.

    Whoever comes then is refused as by a machine on which nobody listens.
    """

    host = "127.0.0.1"

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self._target = host, port
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._run(self._listen())

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Breaks every connection, and takes none inside."""
        self._run(self._stop())
        try:
            yield
        finally:
            self._run(self._listen())

    def close(self) -> None:
        """Ends it all."""
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with suppress(OSError, ExceptionGroup, asyncio.CancelledError):
                there, back = await asyncio.open_connection(*self._target)
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(_pass_on(reader, back))
                        group.create_task(_pass_on(there, writer))
                finally:
                    back.transport.abort()
        finally:
            writer.transport.abort()
            self._open.discard(task)


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(2**16):
        target.write(data)
        await target.drain()
    raise ConnectionError
