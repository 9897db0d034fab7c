"""Photos by URL, from real servers on the loopback interface."""

import asyncio
import datetime
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.pytest_plugin import AiohttpServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from yarl import URL

from backend.errors import (
    BadGateway,
    Forbidden,
    InvalidImage,
    InvalidInput,
    Overloaded,
    ServiceError,
    TooLarge,
)
from backend.fetching import PhotoFetcher

LIMIT = 200_000
JPEG = b"\xff\xd8\xff"
LOOPBACK = (ip_network("127.0.0.1"), ip_network("::1"))
ANY_PORT = ((1, 65535),)
NAME = "photos.example"
Lookups = list[str]


def _photo(size: int) -> bytes:
    """As many bytes that begin as a photo does."""
    return JPEG + b"x" * (size - len(JPEG))


async def _bytes(request: web.Request) -> web.Response:
    return web.Response(body=_photo(int(request.match_info["size"])))


async def _streamed(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()  # of a length that nobody announces
    await response.prepare(request)
    for _ in range(int(request.match_info["chunks"])):
        await response.write(_photo(1000))
    return response


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(_photo(2**16))


async def _dripping(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for byte in _photo(10_000):
        await response.write(bytes([byte]))
        await asyncio.sleep(0.02)
    return response


async def _status(request: web.Request) -> web.Response:
    return web.Response(status=int(request.match_info["status"]), text="a page, not a photo")


async def _hops(request: web.Request) -> web.Response:
    left = int(request.match_info["left"])
    raise web.HTTPFound(f"/hops/{left - 1}" if left > 1 else "/bytes/3")


async def _loop(_request: web.Request) -> web.Response:
    raise web.HTTPFound("/loop")


async def _elsewhere(request: web.Request) -> web.Response:
    headers = {"Location": request.query["to"], "Set-Cookie": "seen=before"}
    return web.Response(status=int(request.query.get("status", "302")), headers=headers)


async def _cut_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(_photo(100))
    assert request.transport is not None
    request.transport.close()
    return response


async def _inflating(_request: web.Request) -> web.Response:
    response = web.Response(body=bytes(5 * 2**20))
    response.enable_compression(web.ContentCoding.gzip)
    return response


async def _typed(request: web.Request) -> web.Response:
    body = request.query["body"].encode("latin-1")
    return web.Response(body=body, headers={"Content-Type": request.query["type"]})


@pytest.fixture
def asked() -> list[web.Request]:
    """The requests that have come to the site."""
    return []


@pytest.fixture
async def site(aiohttp_server: AiohttpServer, asked: list[web.Request]) -> URL:
    """The address of a server with photos, and with all that can go wrong."""

    @web.middleware
    async def note(request: web.Request, handler: Any) -> web.StreamResponse:
        asked.append(request)
        answer: web.StreamResponse = await handler(request)
        return answer

    app = web.Application(middlewares=[note])
    app.router.add_get("/bytes/{size}", _bytes)
    app.router.add_get("/streamed/{chunks}", _streamed)
    app.router.add_get("/endless", _endless)
    app.router.add_get("/dripping", _dripping)
    app.router.add_get("/status/{status}", _status)
    app.router.add_get("/hops/{left}", _hops)
    app.router.add_get("/loop", _loop)
    app.router.add_get("/elsewhere", _elsewhere)
    app.router.add_get("/cut-off", _cut_off)
    app.router.add_get("/inflating", _inflating)
    app.router.add_get("/typed", _typed)
    return (await aiohttp_server(app)).make_url("/")


@pytest.fixture
async def fetcher() -> AsyncIterator[PhotoFetcher]:
    """A fetcher that may fetch LIMIT bytes, from this machine too."""
    opened = PhotoFetcher(allowed=True, max_bytes=LIMIT, networks=LOOPBACK, ports=ANY_PORT)
    yield opened
    await opened.close()


@pytest.fixture
async def stranger() -> AsyncIterator[PhotoFetcher]:
    """A fetcher as it is by default where fetching is allowed: from what is public alone."""
    opened = PhotoFetcher(allowed=True, max_bytes=LIMIT, ports=ANY_PORT)
    yield opened
    await opened.close()


@pytest.fixture
def resolves(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Lookups]:
    """Has names lead to these addresses, one answer after the other; tells what was looked up."""

    def resolve(*answers: Sequence[str]) -> Lookups:
        lookups: Lookups = []

        def look_up(host: str, port: int, *_more: object) -> list[Any]:
            answer = answers[min(len(lookups), len(answers) - 1)]
            lookups.append(host)
            return [
                (
                    socket.AF_INET6 if ":" in address else socket.AF_INET,
                    socket.SOCK_STREAM,
                    socket.IPPROTO_TCP,
                    "",
                    (address, port, 0, 0) if ":" in address else (address, port),
                )
                for address in answer
            ]

        monkeypatch.setattr("backend.fetching.socket.getaddrinfo", look_up)
        return lookups

    return resolve


# What is fetched


async def test_a_photo_is_fetched_byte_by_byte(fetcher: PhotoFetcher, site: URL) -> None:
    assert await fetcher.fetch(str(site / "bytes/12345")) == _photo(12345)


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


async def test_what_has_no_end_is_given_up_at_the_limit(fetcher: PhotoFetcher, site: URL) -> None:
    with pytest.raises(TooLarge, match="MAX_UPLOAD_BYTES"):
        await fetcher.fetch(str(site / "endless"))
    assert await fetcher.fetch(str(site / "bytes/3")) == JPEG


async def test_what_is_compressed_is_not_unpacked(fetcher: PhotoFetcher, site: URL) -> None:
    held: list[int] = []
    with pytest.raises(BadGateway, match="/inflating answers with what is compressed"):
        await fetcher.fetch(str(site / "inflating"), held.append)
    assert held == []


async def test_what_comes_slowly_is_given_up_in_time(site: URL) -> None:
    fetcher = PhotoFetcher(
        allowed=True, max_bytes=LIMIT, networks=LOOPBACK, ports=ANY_PORT, seconds=0.3
    )
    with pytest.raises(BadGateway, match=r"/dripping was not fetched in time: .* 0\.3 s in all"):
        await fetcher.fetch(str(site / "dripping"))
    await fetcher.close()


async def test_bytes_are_told_as_they_come_and_may_be_refused(
    fetcher: PhotoFetcher, site: URL
) -> None:
    held: list[int] = []
    await fetcher.fetch(str(site / "streamed/100"), held.append)
    assert sum(held) == 100_000

    def refuse(_size: int) -> None:
        raise Overloaded("too much", 1)

    with pytest.raises(Overloaded, match="too much"):
        await fetcher.fetch(str(site / "streamed/100"), refuse)


@pytest.mark.parametrize("status", [204, 206, 300, 304, 401, 403, 404, 410, 500, 503])
async def test_an_answer_that_is_no_photo_is_told_by_its_status(
    fetcher: PhotoFetcher, site: URL, status: int
) -> None:
    with pytest.raises(BadGateway, match=f"/status/{status} answers {status}$"):
        await fetcher.fetch(str(site / f"status/{status}"))


@pytest.mark.parametrize(
    "media_type",
    ["image/jpeg", "IMAGE/JPEG; charset=x", "application/octet-stream", "binary/octet-stream"],
)
async def test_a_photo_comes_as_an_image_or_as_bytes(
    fetcher: PhotoFetcher, site: URL, media_type: str
) -> None:
    url = (site / "typed").with_query(type=media_type, body=_photo(50).decode("latin-1"))
    assert await fetcher.fetch(str(url)) == _photo(50)


@pytest.mark.parametrize("media_type", ["text/html", "application/json", "text/plain", "video/mp4"])
async def test_what_says_that_it_is_something_else_is_not_read(
    fetcher: PhotoFetcher, site: URL, media_type: str
) -> None:
    held: list[int] = []
    url = (site / "typed").with_query(type=media_type, body=_photo(50).decode("latin-1"))
    with pytest.raises(BadGateway, match="/typed answers with something else than an image"):
        await fetcher.fetch(str(url), held.append)
    assert held == []


@pytest.mark.parametrize("body", ["", "x", "<html>", "root:x:0:0:root:/root:/bin/sh", "<svg/>"])
async def test_bytes_that_are_no_photo_are_refused_whatever_they_are_called(
    fetcher: PhotoFetcher, site: URL, body: str
) -> None:
    url = (site / "typed").with_query(type="image/jpeg", body=body)
    with pytest.raises(InvalidImage, match=r"/typed is no JPEG, PNG, WebP, BMP or TIFF$"):
        await fetcher.fetch(str(url))


async def test_a_connection_that_breaks_off_is_no_photo(fetcher: PhotoFetcher, site: URL) -> None:
    with pytest.raises(BadGateway, match=r"/cut-off cannot be fetched: it breaks off"):
        await fetcher.fetch(str(site / "cut-off"))


async def test_a_port_that_nobody_listens_on_is_told(fetcher: PhotoFetcher) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # taken, so that nobody else gets it, but not listening
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.jpg"
        with pytest.raises(BadGateway, match=r"a\.jpg cannot be fetched: no connection"):
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
            with pytest.raises(BadGateway, match="does not speak HTTP") as refused:
                await fetching
            assert "ESMTP" not in str(refused.value)


async def test_only_so_many_are_fetched_at_once(fetcher: PhotoFetcher, site: URL) -> None:
    url = str(site / "dripping")
    fetching = [asyncio.ensure_future(fetcher.fetch(url)) for _ in range(32)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="32 photos are being fetched") as refused:
        await fetcher.fetch(str(site / "bytes/3"))
    assert refused.value.retry_after == 5
    for each in fetching:
        each.cancel()
    await asyncio.gather(*fetching, return_exceptions=True)
    assert await fetcher.fetch(str(site / "bytes/3")) == JPEG


async def test_nothing_of_the_service_or_of_its_environment_is_sent(
    fetcher: PhotoFetcher,
    site: URL,
    asked: list[web.Request],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ours password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    await fetcher.fetch(str((site / "elsewhere").with_query(to="/bytes/3")))
    await fetcher.fetch(str(site / "bytes/3"))
    assert len(asked) == 3
    for request in asked:
        assert {name.title() for name in request.headers} == {
            *("Host", "Accept", "Accept-Encoding", "User-Agent", "Connection"),
        } or "Connection" not in request.headers
        assert request.headers["Accept-Encoding"] == "identity"
        assert request.headers["User-Agent"] == "image-similarity-search"
        for private in ("Authorization", "Cookie", "Referer", "Proxy-Authorization"):
            assert private not in request.headers


# What is no address of a photo


@pytest.mark.parametrize(
    "url",
    [
        *("", "a.jpg", "/etc/passwd", "//host/a.jpg", "http://", "http:///a.jpg", "https:a.jpg"),
        *("file:///etc/passwd", "ftp://host/a.jpg", "javascript:alert(1)", "gopher://host/_x"),
        *("data:image/png;base64,", "dict://host:11211/stat", "ws://host/", "unix:///run/x.sock"),
        *("http://[::1/a.jpg", "http://host:port/a.jpg", "http://host:99999/", "http://\ud800/"),
        *("http://host%00.example/", "http://ho st/", "http://host\\@evil/", "http://ho$t/"),
        "http://host/" + "a" * 8181,
    ],
)
async def test_what_is_no_address_of_a_photo_is_refused(fetcher: PhotoFetcher, url: str) -> None:
    with pytest.raises(InvalidInput):
        await fetcher.fetch(url)


@pytest.mark.parametrize(
    "host",
    [
        *("2130706433", "017700000001", "0x7f000001", "0x7f.1", "127.1", "127.0.1", "0"),
        *("0177.0.0.1", "127.0.0.01", "127.0.0.1.", "127.0.0.0x1", "0x7F.0.0.1", "1.2.3.4.5"),
        *("256.1.1.1", "127.0.0.1..", "08.8.8.8", "foo.0x", "a.1"),
        *("①②⑦.⓪.⓪.①.", "\uff11\uff12\uff17.1"),
    ],
)
async def test_numbers_that_are_not_four_decimal_ones_are_no_host(
    fetcher: PhotoFetcher, resolves: Callable[..., Lookups], host: str
) -> None:
    lookups = resolves(["127.0.0.1"])
    with pytest.raises(InvalidInput):
        await fetcher.fetch(f"http://{host}/a.jpg")
    assert lookups == []


@pytest.mark.parametrize("user", ["user@", "user:secret@", ":secret@", ":@", "a%40b:c@"])
async def test_a_url_with_credentials_is_refused_and_not_repeated(
    fetcher: PhotoFetcher, site: URL, asked: list[web.Request], user: str
) -> None:
    url = str(site / "bytes/3").replace("http://", f"http://{user}")
    with pytest.raises(InvalidInput, match="a user or a password") as refused:
        await fetcher.fetch(url)
    assert "secret" not in str(refused.value)
    assert asked == []


async def test_the_scheme_may_be_in_capitals(fetcher: PhotoFetcher, site: URL) -> None:
    url = str(site / "bytes/3").replace("http", "HTTP")
    assert await fetcher.fetch(url) == JPEG


async def test_a_url_cannot_bring_headers_along(
    fetcher: PhotoFetcher, site: URL, asked: list[web.Request]
) -> None:
    for smuggled in ("?\r\nX-Evil: 1\r\n", "?%0d%0aX-Evil:%201", "# HTTP/1.1\r\nX-Evil: 1"):
        assert await fetcher.fetch(f"{site / 'bytes/3'}{smuggled}") == JPEG
    for request in asked:
        assert "X-Evil" not in request.headers
        assert request.match_info["size"] == "3"


async def test_what_is_behind_a_question_mark_is_a_secret_and_not_repeated(
    fetcher: PhotoFetcher, site: URL
) -> None:
    for path in ("status/404", "cut-off", "inflating"):
        with pytest.raises(ServiceError) as refused:
            await fetcher.fetch(str((site / path).with_query(signature="hunter2")))
        assert "hunter2" not in str(refused.value)
        assert path in str(refused.value)


async def test_a_long_url_is_cut_in_messages(fetcher: PhotoFetcher, site: URL) -> None:
    with pytest.raises(BadGateway) as refused:
        await fetcher.fetch(str(site / ("a" * 5000)))
    assert len(str(refused.value)) < 300


# From where


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.255.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1"),
        *("169.254.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192"),
        *("224.0.0.1", "255.255.255.255", "[::]", "[::1]", "[fe80::1]", "[fe80::1%25eth0]"),
        *("[fc00::1]", "[fd00:ec2::254]", "[ff02::1]", "[::ffff:127.0.0.1]", "[::ffff:8.8.8.8]"),
        *("[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::169.254.169.254]"),
        *("[2002:7f00:1::]", "[2001:0:7f00:1::]", "[0:0:0:0:0:ffff:7f00:1]"),
        *("①②⑦.⓪.⓪.①", "\uff11\uff12\uff17.0.0.1", "127。0。0。1"),
    ],
)
async def test_an_address_that_is_not_public_is_refused(
    stranger: PhotoFetcher, resolves: Callable[..., Lookups], host: str
) -> None:
    lookups = resolves(["127.0.0.1"])
    with pytest.raises(Forbidden, match=r"not public.*URL_FETCH_NETWORKS"):
        await stranger.fetch(f"http://{host}/a.jpg")
    assert lookups == []


async def test_the_server_of_an_address_that_is_not_public_hears_nothing(
    stranger: PhotoFetcher, site: URL, asked: list[web.Request]
) -> None:
    for host in ("127.0.0.1", "[::ffff:127.0.0.1]", "localhost"):
        with pytest.raises((Forbidden, BadGateway)):
            await stranger.fetch(f"http://{host}:{site.port}/bytes/3")
    assert asked == []


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["::ffff:127.0.0.1"],
        ["8.8.8.8", "127.0.0.1"],
        ["127.0.0.1", "8.8.8.8"],
        ["2606:4700::1", "fe80::1%lo"],
        [],
    ],
    ids=",".join,
)
async def test_a_name_that_leads_to_any_such_address_is_as_one_that_nobody_knows(
    stranger: PhotoFetcher,
    site: URL,
    asked: list[web.Request],
    resolves: Callable[..., Lookups],
    addresses: list[str],
) -> None:
    lookups = resolves(addresses)
    with pytest.raises(BadGateway) as refused:
        await stranger.fetch(f"http://{NAME}:{site.port}/bytes/3")
    assert str(refused.value) == (
        f"http://{NAME}:{site.port}/bytes/3 cannot be fetched: its host is not known, or leads to"
        " an address that is neither public nor in a network that URL_FETCH_NETWORKS names"
    )
    assert lookups == [NAME]
    assert asked == []


@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b", "xn--a", "x" * 64, "-"])
async def test_a_name_that_nobody_knows_is_told(stranger: PhotoFetcher, host: str) -> None:
    with pytest.raises((BadGateway, InvalidInput)) as refused:
        await stranger.fetch(f"http://{host}/a.jpg")
    if isinstance(refused.value, BadGateway):
        assert "its host is not known, or leads to" in str(refused.value)


async def test_a_name_that_is_not_resolved_in_time_keeps_no_file_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = threading.Event()

    def look_up(*_asked: object) -> list[Any]:
        answers.wait(60)
        return []

    monkeypatch.setattr("backend.fetching.socket.getaddrinfo", look_up)
    fetcher = PhotoFetcher(allowed=True, max_bytes=LIMIT, seconds=0.3)
    fetching = [fetcher.fetch(f"http://{number}.{NAME}/") for number in range(20)]
    fetched = asyncio.gather(*fetching, return_exceptions=True)
    try:
        await asyncio.sleep(0.1)  # as many look-ups as there may be are under way
        assert await asyncio.wait_for(asyncio.to_thread(len, LOOPBACK), 30) == 2
        for refused in await fetched:
            assert isinstance(refused, BadGateway)
            assert "was not fetched in time" in str(refused)
    finally:
        answers.set()
        await fetcher.close()


async def test_a_name_is_resolved_once_and_its_server_is_told_it(
    fetcher: PhotoFetcher, site: URL, asked: list[web.Request], resolves: Callable[..., Lookups]
) -> None:
    lookups = resolves(["127.0.0.1"], ["169.254.169.254"])
    assert await fetcher.fetch(f"http://{NAME}:{site.port}/bytes/3") == JPEG
    assert lookups == [NAME]
    assert asked[0].host == f"{NAME}:{site.port}"


async def test_a_name_that_is_bound_anew_between_two_fetches_is_looked_at_anew(
    fetcher: PhotoFetcher, site: URL, asked: list[web.Request], resolves: Callable[..., Lookups]
) -> None:
    lookups = resolves(["127.0.0.1"], ["127.0.0.2"])
    url = f"http://{NAME}:{site.port}/bytes/3"
    assert await fetcher.fetch(url) == JPEG
    with pytest.raises(BadGateway, match="its host is not known, or leads to"):
        await fetcher.fetch(url)
    assert lookups == [NAME, NAME]
    assert len(asked) == 1


async def test_no_socket_is_made_for_an_address_that_has_not_been_looked_at(
    stranger: PhotoFetcher, site: URL, asked: list[web.Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if all that comes before had been got around.
    monkeypatch.setattr("backend.fetching._literal", lambda host, text: None)
    with pytest.raises(BadGateway, match="no connection to it can be made"):
        await stranger.fetch(str(site / "bytes/3"))
    assert asked == []


async def test_the_next_address_of_a_name_is_tried_where_one_does_not_answer(
    site: URL, resolves: Callable[..., Lookups]
) -> None:
    networks = (ip_network("127.0.0.0/8"),)
    fetcher = PhotoFetcher(allowed=True, max_bytes=LIMIT, networks=networks, ports=ANY_PORT)
    resolves(["127.0.0.2", "127.0.0.1"])  # nobody listens at the first
    assert await fetcher.fetch(f"http://{NAME}:{site.port}/bytes/3") == JPEG
    await fetcher.close()


async def test_only_ports_that_are_named_are_fetched_from(
    site: URL, asked: list[web.Request]
) -> None:
    port = site.port
    assert port is not None
    for ports, allowed in (
        (((port, port),), True),
        (((80, 80), (port - 1, port + 1)), True),
        (((port, 65535),), True),
        (((80, 80), (443, 443)), False),
        (((1, port - 1), (port + 1, 65535)), False),
    ):
        fetcher = PhotoFetcher(allowed=True, max_bytes=LIMIT, networks=LOOPBACK, ports=ports)
        if allowed:
            assert await fetcher.fetch(str(site / "bytes/3")) == JPEG
        else:
            with pytest.raises(Forbidden, match=f"port {port}: URL_FETCH_PORTS"):
                await fetcher.fetch(str(site / "bytes/3"))
        await fetcher.close()
    assert len(asked) == 3


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed(fetcher: PhotoFetcher, site: URL, status: int) -> None:
    url = (site / "elsewhere").with_query(to="/bytes/3", status=str(status))
    assert await fetcher.fetch(str(url)) == JPEG


async def test_a_few_redirects_are_followed_and_more_are_not(
    fetcher: PhotoFetcher, site: URL
) -> None:
    assert await fetcher.fetch(str(site / "hops/5")) == JPEG
    for path in ("hops/6", "loop"):
        with pytest.raises(BadGateway, match=f"/{path} redirects more than 5 times"):
            await fetcher.fetch(str(site / path))


@pytest.mark.parametrize(
    "target",
    [
        *(
            "file:///etc/passwd",
            "ftp://127.0.0.1/a.jpg",
            "data:,x",
            "gopher://127.0.0.1",
        ),
        *("http://user:hunter2@127.0.0.1/", "http://2130706433/", "http://[::1", "//0x7f.1/"),
        *("http://10.1.2.3/", "http://169.254.169.254/latest/meta-data/", "//192.168.1.1/"),
        *("http://[fd00:ec2::254]/", "http://[::ffff:10.1.2.3]/", "http://127.0.0.2/"),
    ],
)
async def test_a_redirect_to_what_may_not_be_fetched_is_not_followed_nor_told(
    fetcher: PhotoFetcher, site: URL, target: str
) -> None:
    with pytest.raises(BadGateway) as refused:
        await fetcher.fetch(str((site / "elsewhere").with_query(to=target)))
    assert str(refused.value) == (
        f"{site / 'elsewhere'} cannot be fetched: it redirects to what may not be"
    )


async def test_a_redirect_to_a_name_is_looked_at_as_the_name_itself(
    fetcher: PhotoFetcher, site: URL, asked: list[web.Request], resolves: Callable[..., Lookups]
) -> None:
    lookups = resolves(["127.0.0.1"], ["10.1.2.3"])
    inside = f"http://db.intranet.example:{site.port}/bytes/3"
    url = URL(f"http://{NAME}:{site.port}/elsewhere").with_query(to=inside)
    with pytest.raises(BadGateway, match="its host is not known, or leads to") as refused:
        await fetcher.fetch(str(url))
    assert lookups == [NAME, "db.intranet.example"]
    for private in ("intranet", "10.1.2.3"):
        assert private not in str(refused.value)
    assert len(asked) == 1


# TLS


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of NAME, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName(NAME), x509.IPAddress(IPv4Address("127.0.0.1"))]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    files = tmp_path / "certificate.pem", tmp_path / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


async def test_tls_is_spoken_with_the_name_and_only_with_whom_is_trusted(
    fetcher: PhotoFetcher,
    certificate: tuple[Path, Path],
    resolves: Callable[..., Lookups],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names: list[str | None] = []
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    app = web.Application()
    app.router.add_get("/bytes/{size}", _bytes)
    runner = web.AppRunner(app)
    await runner.setup()
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        await web.SockSite(runner, listening, ssl_context=context).start()
        port = listening.getsockname()[1]
        resolves(["127.0.0.1"])
        with pytest.raises(BadGateway, match="its certificate is not trusted"):
            await fetcher.fetch(f"https://{NAME}:{port}/bytes/3")
        trusting = ssl.create_default_context(cafile=certificate[0])
        monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusting)
        assert await fetcher.fetch(f"https://{NAME}:{port}/bytes/3") == JPEG
        with pytest.raises(BadGateway, match="its certificate is not trusted"):
            await fetcher.fetch(f"https://other.example:{port}/bytes/3")
        assert names == [NAME, NAME, "other.example"]
        await runner.cleanup()


# Off


async def test_fetching_that_is_switched_off_is_forbidden_with_what_to_do(site: URL) -> None:
    fetcher = PhotoFetcher(allowed=False, max_bytes=LIMIT, networks=LOOPBACK, ports=ANY_PORT)
    for url in (str(site / "bytes/3"), "nonsense"):
        with pytest.raises(Forbidden, match="upload the file, or start with URL_FETCH=true"):
            await fetcher.fetch(url)
    await fetcher.close()
