"""Photos by URL, from a real server on the loopback interface."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.pytest_plugin import AiohttpServer
from yarl import URL

from backend.errors import BadGateway, Forbidden, InvalidInput, TooLarge
from backend.fetching import PhotoFetcher

LIMIT = 200_000


async def _bytes(request: web.Request) -> web.Response:
    return web.Response(body=b"x" * int(request.match_info["size"]))


async def _streamed(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()  # of a length that nobody announces
    await response.prepare(request)
    for _ in range(int(request.match_info["chunks"])):
        await response.write(b"x" * 1000)
    return response


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(bytes(2**16))


async def _status(request: web.Request) -> web.Response:
    return web.Response(status=int(request.match_info["status"]), text="a page, not a photo")


async def _hops(request: web.Request) -> web.Response:
    left = int(request.match_info["left"])
    raise web.HTTPFound(f"/hops/{left - 1}" if left > 1 else "/bytes/3")


async def _loop(_request: web.Request) -> web.Response:
    raise web.HTTPFound("/loop")


async def _elsewhere(request: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": request.query["to"]})


async def _cut_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b"x" * 100)
    assert request.transport is not None
    request.transport.close()
    return response


async def _inflating(request: web.Request) -> web.Response:
    response = web.Response(body=bytes(50 * 2**20))
    response.enable_compression(web.ContentCoding.gzip)
    return response


@pytest.fixture
async def site(aiohttp_server: AiohttpServer) -> URL:
    """The address of a server with photos, and with all that can go wrong."""
    app = web.Application()
    app.router.add_get("/bytes/{size}", _bytes)
    app.router.add_get("/streamed/{chunks}", _streamed)
    app.router.add_get("/endless", _endless)
    app.router.add_get("/status/{status}", _status)
    app.router.add_get("/hops/{left}", _hops)
    app.router.add_get("/loop", _loop)
    app.router.add_get("/elsewhere", _elsewhere)
    app.router.add_get("/cut-off", _cut_off)
    app.router.add_get("/inflating", _inflating)
    return (await aiohttp_server(app)).make_url("/")


@pytest.fixture
async def fetcher() -> AsyncIterator[PhotoFetcher]:
    """A fetcher that may fetch LIMIT bytes."""
    opened = PhotoFetcher(allowed=True, max_bytes=LIMIT)
    yield opened
    await opened.close()


async def test_a_photo_is_fetched_byte_by_byte(fetcher: PhotoFetcher, site: URL) -> None:
    assert await fetcher.fetch(str(site / "bytes/12345")) == b"x" * 12345


@pytest.mark.parametrize("kind", ["announced", "streamed"])
async def test_a_photo_at_the_limit_is_fetched_and_more_is_refused(
    fetcher: PhotoFetcher, site: URL, kind: str
) -> None:
    if kind == "announced":
        fits, too_large = site / f"bytes/{LIMIT}", site / f"bytes/{LIMIT + 1}"
    else:
        fits, too_large = site / f"streamed/{LIMIT // 1000}", site / f"streamed/{LIMIT // 1000 + 1}"
    assert len(await fetcher.fetch(str(fits))) == LIMIT
    with pytest.raises(TooLarge, match=f"more than the {LIMIT} bytes that MAX_UPLOAD_BYTES"):
        await fetcher.fetch(str(too_large))


@pytest.mark.parametrize("path", ["endless", "inflating"])
async def test_what_has_no_end_is_given_up_at_the_limit(
    fetcher: PhotoFetcher, site: URL, path: str
) -> None:
    with pytest.raises(TooLarge, match="MAX_UPLOAD_BYTES"):
        await fetcher.fetch(str(site / path))
    assert await fetcher.fetch(str(site / "bytes/3")) == b"xxx"


@pytest.mark.parametrize("status", [204, 206, 401, 403, 404, 410, 500, 503])
async def test_an_answer_that_is_no_photo_is_told_by_its_status(
    fetcher: PhotoFetcher, site: URL, status: int
) -> None:
    with pytest.raises(BadGateway, match=f"/status/{status} answers {status}"):
        await fetcher.fetch(str(site / f"status/{status}"))


async def test_a_few_redirects_are_followed_and_more_are_not(
    fetcher: PhotoFetcher, site: URL
) -> None:
    assert await fetcher.fetch(str(site / "hops/4")) == b"xxx"
    for path in ("hops/9", "loop"):
        with pytest.raises(BadGateway, match=f"/{path} redirects more than 5 times"):
            await fetcher.fetch(str(site / path))


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/a.jpg", "http://", "data:,x"]
)
async def test_a_redirect_to_anything_but_http_is_not_followed(
    fetcher: PhotoFetcher, site: URL, target: str
) -> None:
    with pytest.raises(BadGateway, match=r"/elsewhere.* cannot be fetched"):
        await fetcher.fetch(str((site / "elsewhere").with_query(to=target)))


async def test_a_connection_that_breaks_off_is_no_photo(fetcher: PhotoFetcher, site: URL) -> None:
    with pytest.raises(BadGateway, match=r"/cut-off cannot be fetched: \S+"):
        await fetcher.fetch(str(site / "cut-off"))


async def test_a_port_that_nobody_listens_on_is_told(fetcher: PhotoFetcher) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # taken, so that nobody else gets it, but not listening
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.jpg"
        with pytest.raises(BadGateway, match=r"a\.jpg cannot be fetched: \S+"):
            await fetcher.fetch(url)


async def test_a_server_that_speaks_no_http_is_told(fetcher: PhotoFetcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        loop = asyncio.get_running_loop()
        fetching = asyncio.ensure_future(
            fetcher.fetch(f"http://127.0.0.1:{server.getsockname()[1]}/a.jpg")
        )
        connection, _ = await loop.sock_accept(server)
        with connection:
            await loop.sock_sendall(connection, b"220 mail.example ESMTP\r\n\r\n")
            with pytest.raises(BadGateway, match="cannot be fetched"):
                await fetching


@pytest.mark.parametrize(
    "url",
    [
        *("", "a.jpg", "/etc/passwd", "//host/a.jpg", "http://", "http:///a.jpg", "https:a.jpg"),
        *(
            "file:///etc/passwd",
            "ftp://host/a.jpg",
            "javascript:alert(1)",
            "data:image/png;base64,",
        ),
        *("http://[::1/a.jpg", "http://host:port/a.jpg", "http://host:99999/", "http://\ud800/"),
    ],
)
async def test_what_is_no_address_of_a_photo_is_refused(fetcher: PhotoFetcher, url: str) -> None:
    with pytest.raises(InvalidInput, match="is no http:// or https:// address of a photo"):
        await fetcher.fetch(url)


async def test_the_scheme_may_be_in_capitals(fetcher: PhotoFetcher, site: URL) -> None:
    url = str(site / "bytes/3").replace("http", "HTTP")
    assert await fetcher.fetch(url) == b"xxx"


async def test_fetching_that_is_switched_off_is_forbidden_with_what_to_do(site: URL) -> None:
    fetcher = PhotoFetcher(allowed=False, max_bytes=LIMIT)
    for url in (str(site / "bytes/3"), "nonsense"):
        with pytest.raises(Forbidden, match="upload the file, or start with URL_FETCH=true"):
            await fetcher.fetch(url)
    await fetcher.close()
