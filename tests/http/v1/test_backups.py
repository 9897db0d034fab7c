"""Exports and imports over HTTP: what a client must not keep others from, or fill."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from backend.app import create_app
from backend.archive import ArchivedCollection
from backend.errors import InsufficientStorage, ServiceError
from backend.http.services import RUNNING, Services
from backend.http.v1 import backups
from backend.keys import make_key, revoke_key
from backend.settings import Settings
from tests.archives import content, photo_row
from tests.photos import draw_photo, encode

_PATH = "/api/v1/collections/{}/{}"
_TAR = {"Content-Type": "application/x-tar"}
_LARGE = 16 * 2**20
"""More bytes than the sockets between a client and the service hold."""

Running = tuple[aiohttp.ClientSession, Services]


@asynccontextmanager
async def _running(settings: Settings) -> AsyncIterator[Running]:
    """A client of a service in this process, and the service's insides."""
    app = create_app(settings)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        here = await app[RUNNING].wait_until_ready()
        host, port = runner.addresses[0][:2]
        async with aiohttp.ClientSession(f"http://{host}:{port}") as client:
            yield client, here
    finally:
        await runner.cleanup()


@pytest.fixture
async def running(settings: Settings) -> AsyncIterator[Running]:
    async with _running(settings) as opened:
        yield opened


async def _fill(here: Services, name: str, *, photo_bytes: int = 0) -> None:
    """Imports a collection of one photo, with a file of so many bytes."""
    embedder = here.analyzer.embedder
    made = content(
        ArchivedCollection(
            name=name,
            embedder=embedder.name,
            embedder_sha256=embedder.sha256,
            dimension=embedder.dimension,
            metric="L2",
        ),
        1,
    )
    if photo_bytes:
        data = encode(draw_photo(1)).ljust(photo_bytes, b"\0")
        made.images[0], photo = photo_row("/photos/a.jpg", data)
        made.photos[photo] = data
    # A real file: it is read by its descriptor.
    with TemporaryFile() as file:
        made.write(file)
        await here.backups.restore(file)


async def _export(client: aiohttp.ClientSession, name: str, **options: Any) -> bytes:
    async with client.get(_PATH.format(name, "export"), **options) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.read()


async def _problem(answering: Any) -> tuple[int, str]:
    async with answering as answer:
        return answer.status, (await answer.json(content_type=None))["code"]


async def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def _drops(
    pause: Callable[[int], Awaitable[object]], size: int = 1000
) -> AsyncIterator[bytes]:
    for number in range(10_000):
        yield bytes(size)
        await pause(number)


async def test_a_piece_has_a_minute_and_all_of_them_a_second_for_each_100_kilobytes_more() -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    pace = backups._Pace()
    for moved, seconds in ((0, 60.0), (-3 * 10**6, 30.0), (2 * 10**6, 50.0), (10**8, 60.0)):
        pace.add(moved)  # less than nothing: as if it had begun so much earlier
        when = pace.piece().when()
        assert when is not None
        assert begun + seconds <= when <= loop.time() + seconds


async def test_a_sender_of_small_pieces_just_in_time_is_too_slow_altogether(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, here = running
    await _fill(here, "t")
    with monkeypatch.context() as limits:
        limits.setattr(backups, "_PIECE_BYTES", 1000)
        limits.setattr(backups, "_PIECE_SECONDS", 1.0)
        limits.setattr(backups, "_PACE_BYTES", 10**9)
        body = _drops(lambda _: asyncio.sleep(0.1))
        sent = client.post(_PATH.format("u", "import"), data=body, headers=_TAR)
        assert await _problem(sent) == (408, "too_slow")
    whole = await _export(client, "t")
    async with client.post(_PATH.format("u", "import"), data=whole, headers=_TAR) as answer:
        assert answer.status == 200  # another has its turn


async def test_a_reader_that_stops_is_broken_off_and_another_has_its_turn(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, here = running
    await _fill(here, "t", photo_bytes=_LARGE)
    await _fill(here, "small")
    url = client._base_url
    assert url is not None
    with (
        capture_logs() as logs,
        socket.socket() as connection,
        monkeypatch.context() as limits,
    ):
        limits.setattr(backups, "_PIECE_SECONDS", 0.5)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, (url.host, url.port))
        request = f"GET {_PATH.format('t', 'export')} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        await loop.sock_sendall(connection, request.encode())
        await _until(lambda: any(each["event"] == "export.broken_off" for each in logs))
    await _export(client, "small")


async def test_a_key_that_is_revoked_meanwhile_ends_what_it_has_begun(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.keys._FRESH_SECONDS", 0.0)
    monkeypatch.setattr("backend.keys._PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(backups, "_PIECE_BYTES", 2**14)
    guarded = settings.model_copy(update={"require_api_key": True})
    async with _running(guarded) as (client, here):
        await _fill(here, "t", photo_bytes=_LARGE)
        table = here.keys._table
        key, text = await make_key(table, ["admin"])

        async def revoke(number: int) -> None:
            if number == 5:
                await revoke_key(table, key.id)

        bearer = {"Authorization": f"Bearer {text}"}
        body = _drops(revoke, 2**14)
        sent = client.post(_PATH.format("u", "import"), data=body, headers=_TAR | bearer)
        assert await _problem(sent) == (401, "unauthorized")

        key, text = await make_key(table, ["admin"])
        bearer = {"Authorization": f"Bearer {text}"}
        async with client.get(_PATH.format("t", "export"), headers=bearer) as answer:
            assert answer.status == 200
            await answer.content.readexactly(1000)
            await revoke_key(table, key.id)
            with pytest.raises(aiohttp.ClientError):
                await answer.read()


async def test_what_would_fill_the_disk_is_refused_and_leaves_nothing(
    running: Running, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, here = running
    await _fill(here, "t")
    whole = await _export(client, "t")
    refused = (507, "insufficient_storage")
    with monkeypatch.context() as limits:
        # All of a disk that has files on it.
        limits.setattr("backend.files.KEPT_FREE_BYTES", 2**62)
        limits.setattr("backend.files._KEPT_FREE_SHARE", 1.0)
        assert await _problem(client.get(_PATH.format("t", "export"))) == refused
        for body in (whole, BytesIO(whole), _drops(lambda _: asyncio.sleep(0))):
            sent = client.post(_PATH.format("u", "import"), data=body, headers=_TAR)
            assert await _problem(sent) == refused
        # Room for what is sent, and none for what is made of it.
        limits.setattr(backups, "_receive", _receive_all)
        sent = client.post(_PATH.format("u", "import"), data=whole, headers=_TAR)
        assert await _problem(sent) == refused
    assert await here.catalog.collection_in_any_state("u") is None
    assert not list(settings.uploads.rglob("*.*"))
    async with client.post(_PATH.format("u", "import"), data=whole, headers=_TAR) as answer:
        assert answer.status == 200


async def _receive_all(request: web.Request, _folder: Path, file: Any) -> None:
    file.write(await request.read())
    file.flush()


async def test_a_client_that_goes_is_no_fault_of_the_disk(running: Running) -> None:
    client, here = running
    await _fill(here, "t")
    url = client._base_url
    assert url is not None
    head = f"POST {_PATH.format('u', 'import')} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    head += "Content-Type: application/x-tar\r\nContent-Length: 5000000\r\n\r\n"
    gone = {"request.abandoned", "request.cancelled"}
    with capture_logs() as logs:
        _, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(head.encode() + bytes(10**6))
        await writer.drain()
        writer.transport.abort()
        await _until(lambda: any(each["event"] in gone for each in logs))
    assert not [each for each in logs if each["log_level"] == "error"]
    await _export(client, "t")


def test_only_a_full_disk_is_said_to_be_full(tmp_path: Path) -> None:
    with (
        pytest.raises(InsufficientStorage, match="disk is full"),
        backups._written_to(tmp_path),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")
    with (
        pytest.raises(ServiceError, match="cannot be used for it: Is a dir") as raised,
        backups._written_to(tmp_path),
    ):
        tmp_path.open("wb")
    assert raised.value.status == 500
