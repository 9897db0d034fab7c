"""Clients that are slow, idle, or never read: they are ended, and others are answered."""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote, urlsplit

import psutil
import pytest
from aiohttp import web

from backend.http.connections import CONNECTIONS, Connections, Site, notice_requests
from tests.overload import wait_for
from tests.photos import draw_photo, encode
from tests.service import Service, start
from tests.slow_clients import Crowd, Figures, crowded, measure, prepared


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Path]]:
    """A service that waits for nobody for longer than two seconds, and a large photo of its."""
    flags = ("--idle-timeout", "2", "--upload-timeout", "2", "--send-timeout", "2")
    service, large = prepared(tmp_path_factory.mktemp("impatient"), *flags)
    yield service, large
    service.stop()


def test_a_crowd_of_them_is_ended_while_others_are_answered(
    impatient: tuple[Service, Path],
) -> None:
    service, large = impatient
    process = psutil.Process(service.process.pid)
    figures = Figures()
    asyncio.run(measure(service, encode(draw_photo(3)), figures, 0.5))  # opens what stays open
    descriptors = process.num_fds()
    crowd = Crowd(slow=40, idle=100, never_read=5)

    async def run() -> None:
        async with crowded(service, crowd, large):
            end = time.monotonic() + 60
            while len(crowd.answered) < 145 and time.monotonic() < end:
                await measure(service, encode(draw_photo(3)), figures, 0.2)
                await asyncio.sleep(1.0)
            while crowd.here != crowd.wanted and time.monotonic() < end:
                await asyncio.sleep(0.01)  # whoever was ended comes again
            assert crowd.here == crowd.wanted

    asyncio.run(run())
    assert Counter(kind for kind, _ in crowd.answered) == crowd.wanted
    assert len(figures.searches) > 3
    assert len(figures.small) > 10
    # Pools of threads and connections to engines may have grown by some: they have limits.
    wait_for(lambda: process.num_fds() <= descriptors + 20)
    assert "event=connection.stuck" in service.log.read_text()
    assert "level=error" not in service.log.read_text()


def _connect(service: Service, of: str = "127.0.0.1") -> socket.socket:
    parts = urlsplit(service.url)
    return socket.create_connection((parts.hostname, parts.port or 0), 30, (of, 0))


def test_a_body_that_does_not_come_in_gets_a_408(impatient: tuple[Service, Path]) -> None:
    service, _ = impatient
    for address in ("/img/load", "/api/v1/loads", "/api/v1/collections"):
        with _connect(service) as connection:
            connection.sendall(
                f"POST {address} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n"
                "Content-Type: application/json\r\n\r\n{".encode()
            )
            answer = connection.recv(2**16).decode()
        assert answer.startswith("HTTP/1.1 408 "), answer
        assert "UPLOAD_TIMEOUT" in answer


def test_who_reads_slowly_but_reads_is_not_cut_off(impatient: tuple[Service, Path]) -> None:
    service, large = impatient
    with _connect(service) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        path = quote(str(large))
        request = f"GET /data?image_path={path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        connection.sendall(request.encode())
        received, end = 0, time.monotonic() + 5.0  # far more than SEND_TIMEOUT
        while time.monotonic() < end:
            received += len(connection.recv(2**16))
            time.sleep(0.05)
        while received < large.stat().st_size:
            chunk = connection.recv(2**20)
            assert chunk, f"cut off after {received} bytes"
            received += len(chunk)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that takes three connections."""
    folder = tmp_path_factory.mktemp("small")
    service = start(folder, ("--max-connections", "3"), folder / "data")
    yield service
    service.stop()


def test_the_connection_that_is_idle_for_longest_makes_room(small: Service) -> None:
    with ExitStack() as stack:
        connections = []
        for _ in range(3):
            connections.append(stack.enter_context(_connect(small)))
            time.sleep(0.05)
        # The first is used, so that the second is the one that has waited longest.
        connections[0].sendall(b"GET /progress HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert connections[0].recv(2**16).startswith(b"HTTP/1.1 200")
        assert small.get("/progress").status_code == 200
        assert connections[1].recv(1) == b""
        for index in (0, 2):
            connections[index].sendall(b"GET /progress HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert connections[index].recv(2**16).startswith(b"HTTP/1.1 200")


_BODY = b"POST /img/load HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n"
_BODY_SECONDS = 1.2
"""After which a body that has not come in may have to make room."""


def test_where_none_is_idle_the_body_that_has_come_in_for_longest_makes_room(
    small: Service,
) -> None:
    with ExitStack() as stack:
        connections = []
        # The first is from another address, which has but this one: it is let be.
        for address in ("127.0.0.2", "127.0.0.1", "127.0.0.1"):
            connections.append(stack.enter_context(_connect(small, address)))
            connections[-1].sendall(_BODY)
            time.sleep(0.05)
        time.sleep(_BODY_SECONDS)
        for connection in connections:
            connection.sendall(b"1")  # it is still coming in
        assert small.get("/progress").status_code == 200
        assert connections[1].recv(2**16).startswith(b"HTTP/1.1 408 ")
        assert connections[1].recv(1) == b""
        for index in (0, 2):
            connections[index].sendall(b"2345678}")
            assert connections[index].recv(2**16).startswith(b"HTTP/1.1 400 ")
    assert "event=connection.slow client=127.0.0.1" in small.log.read_text()
    assert "level=error" not in small.log.read_text()


def test_slow_bodies_of_one_client_that_come_again_and_again_keep_nobody_out(
    small: Service,
) -> None:
    with ExitStack() as stack:
        for _ in range(3):
            for _ in range(3):
                stack.enter_context(_connect(small)).sendall(_BODY)
            time.sleep(_BODY_SECONDS)
            assert small.get("/progress").status_code == 200


async def test_where_all_are_at_work_the_next_is_told_so() -> None:
    may_end = asyncio.Event()
    at_work = asyncio.Semaphore(0)

    async def work(_: web.Request) -> web.Response:
        at_work.release()
        await may_end.wait()
        return web.Response()

    app = web.Application(middlewares=[notice_requests])
    app[CONNECTIONS] = connections = Connections(2, 60)
    app.router.add_get("/", work)
    runner = web.AppRunner(app)
    await runner.setup()
    await Site(runner, "127.0.0.1", 0, connections).start()
    try:
        [address] = runner.addresses
        clients = [await asyncio.open_connection(*address) for _ in range(2)]
        for _, writer in clients:
            writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            await at_work.acquire()
        reader, late = await asyncio.open_connection(*address)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 5" in answer
        may_end.set()
        for reader, _ in clients:
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        for writer in (late, *(writer for _, writer in clients)):
            writer.close()
    finally:
        await runner.cleanup()


def test_no_answer_tells_the_versions_of_what_it_is_made_with(small: Service) -> None:
    assert "Server" not in small.get("/progress").headers
