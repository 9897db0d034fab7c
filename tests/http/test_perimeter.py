"""Who may call at all: by which name, from which page, how often."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.pytest_plugin import AiohttpClient
from aiohttp.test_utils import TestClient

from backend.http import middlewares, perimeter
from backend.http.access import guarded
from backend.http.perimeter import PERIMETER, Perimeter
from backend.http.services import METRICS, SETTINGS
from backend.metrics import Metrics
from backend.settings import Settings

Client = TestClient[web.Request, web.Application]
OpenClient = Callable[..., Awaitable[Client]]
FOREIGN = "http://evil.example"
NETWORK = {"host": "0.0.0.0"}


async def _good(_request: web.Request) -> web.Response:
    return web.json_response("good")


@pytest.fixture
def open_client(aiohttp_client: AiohttpClient) -> OpenClient:
    """A client of an application with these settings and the service's middlewares."""

    async def opened(**settings: Any) -> Client:
        app = web.Application(
            middlewares=[
                middlewares.identify_requests,
                middlewares.log_requests,
                middlewares.answer_errors,
                perimeter.refuse_other_hosts,
                perimeter.limit_addresses,
                perimeter.answer_preflights,
                perimeter.refuse_other_origins,
            ]
        )
        app[METRICS] = Metrics()
        app[SETTINGS] = Settings.load(**settings)
        app[PERIMETER] = Perimeter(app[SETTINGS])
        app.on_response_prepare.append(middlewares.tell_request_id)
        app.on_response_prepare.append(perimeter.allow_other_origins)
        app.router.add_get("/api/v1/collections/a/export", guarded(_good, "admin"))
        for path in ("/img/count", "/api/v1/images", "/healthz"):
            app.router.add_get(path, _good)
            app.router.add_post(path, _good)
            app.router.add_delete(path, _good)
        return await aiohttp_client(app)

    return opened


async def _status(
    client: Client, method: str = "GET", path: str = "/img/count", **headers: str
) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.request(method, path, headers=named) as answer:
        return answer.status


# By which name


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:5010", "localhost:9", "LOCALHOST", "localhost.", "[::1]:5010"),
        *("127.1.2.3", "photos.localhost", socket.gethostname(), "photos.example:443"),
    ],
)
async def test_a_server_of_this_machine_goes_by_loopbacks_names_and_listed_ones(
    open_client: OpenClient, host: str
) -> None:
    client = await open_client(allowed_hosts="Photos.Example, backend")
    assert await _status(client, Host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:5010", "127.0.0.1.evil.example", "localhost.evil.example"),
        *("192.168.1.5", "0.0.0.0", "[::]", "[2001:db8::1]:5010", "2130706433", "0x7f.1"),
        *("x.photos.example", "photos.example.evil.example", "photos", "localhost@evil.example"),
        *("", "evil.example/127.0.0.1", "localhost, evil.example", "evil.example#localhost"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_a_server_of_this_machine_goes_by_no_other_name(
    open_client: OpenClient, host: str, method: str
) -> None:
    client = await open_client(allowed_hosts="photos.example")
    headers = {"Host": host, "Origin": f"http://{host}"}
    async with client.request(method, "/img/count", headers=headers) as answer:
        assert answer.status == 421
        assert (await answer.json())["msg"].endswith("ALLOWED_HOSTS")
        assert "Access-Control-Allow-Origin" not in answer.headers


async def test_a_server_on_a_network_goes_by_addresses_and_its_own_name_too(
    open_client: OpenClient,
) -> None:
    client = await open_client(**NETWORK, allowed_hosts="backend")
    own = socket.gethostname()
    for host in (
        "192.168.1.5:5010",
        "[2001:db8::1]",
        "localhost",
        "backend:5010",
        own,
        f"{own}.local",
    ):
        assert await _status(client, Host=host) == 200, host
    for host in ("evil.example", "backend.evil.example", "192.168.1.5.evil.example", "3232235781"):
        assert await _status(client, Host=host) == 421, host


async def test_a_container_that_is_published_on_loopback_counts_as_of_this_machine(
    open_client: OpenClient,
) -> None:
    client = await open_client(**NETWORK, published_host="127.0.0.1", allowed_hosts="backend")
    assert await _status(client, Host="backend:5010") == 200
    assert await _status(client, Host="127.0.0.1:5010") == 200
    assert await _status(client, Host="172.18.0.2:5010") == 421


async def _raw(client: Client, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(request)
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return line


async def test_a_program_of_http_1_0_may_name_no_host_and_nobody_two(
    open_client: OpenClient,
) -> None:
    client = await open_client()
    assert b" 200 " in await _raw(client, b"GET /img/count HTTP/1.0\r\n\r\n")
    assert b" 421 " in await _raw(client, b"GET /img/count HTTP/1.0\r\nHost: evil.example\r\n\r\n")
    for request in (
        b"GET /img/count HTTP/1.1\r\n\r\n",
        b"GET /img/count HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET /img/count HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\n\r\n",
    ):
        assert b" 4" in await _raw(client, request), request


# From which page


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:5010", "http://127.0.0.1:8001"),
        ("127.0.0.1:5010", "http://localhost:8001"),
        ("localhost:5010", "http://[::1]:8001"),
        ("192.168.1.5:5010", "http://192.168.1.5:8001"),
        ("192.168.1.5:5010", "https://192.168.1.5"),
        ("Photos.Example:5010", "http://photos.example:8001"),
        ("192.168.1.5:5010", "http://listed.example:81"),
        ("192.168.1.5:5010", "https://listed.example"),
    ],
)
async def test_pages_of_the_same_host_and_listed_ones_may_call_and_read(
    open_client: OpenClient, host: str, origin: str
) -> None:
    client = await open_client(
        **NETWORK,
        allowed_hosts="photos.example",
        allowed_origins="http://listed.example:81,https://listed.example/",
    )
    asked = {"Host": host, "Origin": origin, "Sec-Fetch-Site": "cross-site"}
    for path in ("/img/count", "/api/v1/images", "/nothing"):
        for method in ("GET", "POST"):
            async with client.request(method, path, headers=asked) as answer:
                assert answer.status == (404 if path == "/nothing" else 200)
                assert answer.headers["Access-Control-Allow-Origin"] == origin
                assert "Access-Control-Allow-Credentials" not in answer.headers
                assert answer.headers["Vary"] == "Origin"
        preflight = asked | {
            "Access-Control-Request-Method": "DELETE",
            "Access-Control-Request-Headers": "authorization, content-type",
        }
        async with client.options(path, headers=preflight) as answer:
            assert answer.status == 204
            assert await answer.read() == b""
            methods = answer.headers["Access-Control-Allow-Methods"]
            assert {each.strip() for each in methods.split(",")} == {
                "GET",
                "HEAD",
                "POST",
                "DELETE",
            }
            assert answer.headers["Access-Control-Allow-Headers"] == "authorization, content-type"
            assert answer.headers["Access-Control-Allow-Origin"] == origin
            assert int(answer.headers["Access-Control-Max-Age"]) > 0


async def test_a_preflight_that_names_no_headers_allows_a_content_type(
    open_client: OpenClient,
) -> None:
    client = await open_client()
    headers = {"Origin": "http://localhost:1", "Access-Control-Request-Method": "POST"}
    async with client.options("/img/count", headers=headers) as answer:
        assert answer.headers["Access-Control-Allow-Headers"] == "Content-Type"


@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": "http://localhost:1"}, {"Access-Control-Request-Method": "POST"}],
)
async def test_options_that_are_no_preflight_are_an_unknown_method(
    open_client: OpenClient, headers: dict[str, str]
) -> None:
    client = await open_client()
    async with client.options("/img/count", headers=headers) as answer:
        assert answer.status == 405


@pytest.mark.parametrize(
    "origin",
    [
        FOREIGN,
        *(
            "null",
            "",
            "http://[",
            "file://",
            "http://localhost.evil.example",
            "http://evil.localhost.x",
        ),
        *("http://127.0.0.1.evil.example", "http://127.0.0.1@evil.example", "http://128.0.0.1"),
        *(
            "http://listed.example:82",
            "http://sub.listed.example:81",
            "ftp://127.0.0.1",
            "127.0.0.1",
        ),
    ],
)
@pytest.mark.parametrize("path", ["/img/count", "/api/v1/images", "/nothing"])
async def test_a_page_of_another_origin_may_do_nothing(
    open_client: OpenClient, path: str, origin: str
) -> None:
    client = await open_client(allowed_origins="http://listed.example:81")
    asked = {"Origin": origin}
    for method in ("POST", "DELETE", "PUT", "GET"):
        async with client.request(method, path, headers=asked) as answer:
            assert answer.status == 403
            assert "Access-Control-Allow-Origin" not in answer.headers
    asked["Access-Control-Request-Method"] = "POST"
    async with client.options(path, headers=asked) as answer:
        assert answer.status == 403
        assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"],
)
async def test_a_form_that_needs_no_preflight_is_refused_too(
    open_client: OpenClient, content_type: str
) -> None:
    client = await open_client()
    for more in ({"Origin": FOREIGN}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        headers = {"Content-Type": content_type, "Sec-Fetch-Mode": "navigate", **more}
        async with client.post("/img/count", data=b"{}", headers=headers) as answer:
            assert answer.status == 403, more


async def test_without_an_origin_a_browser_tells_by_fetch_metadata_or_referer(
    open_client: OpenClient,
) -> None:
    client = await open_client()
    for site in ("cross-site", "same-site"):
        for method in ("GET", "POST"):
            assert await _status(client, method, Sec_Fetch_Site=site) == 403
            assert await _status(client, method, Sec_Fetch_Site=site, Referer=f"{FOREIGN}/a") == 403
            # The existing web client's images.
            ours = "http://localhost:8001/results?a=http://b/"
            assert await _status(client, method, Sec_Fetch_Site=site, Referer=ours) == 200
    for site in ("same-origin", "none"):
        assert await _status(client, "POST", Sec_Fetch_Site=site) == 200
    # Browsers that know no Fetch Metadata.
    assert await _status(client, "POST", Referer=f"{FOREIGN}/127.0.0.1") == 403
    assert await _status(client, "POST", Referer="http://127.0.0.1:1/") == 200
    assert await _status(client, "GET", Referer=FOREIGN) == 200
    # Programs.
    assert await _status(client, "POST") == 200


async def test_a_link_may_be_followed_and_nothing_be_embedded(open_client: OpenClient) -> None:
    client = await open_client()
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert await _status(client, **link) == 200
    assert await _status(client, **link, Sec_Fetch_Dest="document") == 200
    for embedded in ("iframe", "object", "embed", "image"):
        assert await _status(client, **link, Sec_Fetch_Dest=embedded) == 403
    assert await _status(client, "POST", **link, Sec_Fetch_Dest="document") == 403


async def test_no_page_of_another_host_leads_to_what_is_for_admins(
    open_client: OpenClient,
) -> None:
    client = await open_client()
    admins = "/api/v1/collections/a/export"
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    for headers in (link, {**link, "Sec_Fetch_Dest": "document"}, {"Referer": FOREIGN}):
        for method in ("GET", "HEAD"):
            assert await _status(client, method, admins, **headers) == 403, headers
    assert await _status(client, "GET", admins, **link, Referer="http://localhost:8001/") == 200
    for site in ("none", "same-origin"):
        own = {**link, "Sec_Fetch_Site": site, "Sec_Fetch_Dest": "document"}
        assert await _status(client, "GET", admins, **own) == 200
    assert await _status(client, "GET", admins) == 200  # a program


# How often


async def test_an_address_may_make_so_many_requests_a_minute(open_client: OpenClient) -> None:
    client = await open_client(rate_limit_address=5)
    assert [await _status(client) for _ in range(5)] == [200] * 5
    for path, key in (("/img/count", "msg"), ("/api/v1/images", "detail")):
        async with client.get(path) as answer:
            assert answer.status == 429
            assert 1 <= int(answer.headers["Retry-After"]) <= 12
            assert "may make 5 requests a minute: try again in" in (await answer.json())[key]
    # Whoever ends a service that does not answer is answered.
    assert await _status(client, path="/healthz") == 200


async def test_an_address_is_not_believed_of_whoever_may_write_it(open_client: OpenClient) -> None:
    client = await open_client(rate_limit_address=2)
    answers = [await _status(client, X_Forwarded_For=f"192.0.2.{number}") for number in range(4)]
    assert answers == [200, 200, 429, 429]


async def test_of_a_trusted_proxy_its_clients_are_counted(open_client: OpenClient) -> None:
    client = await open_client(rate_limit_address=2, trusted_proxies="127.0.0.1, 10.0.0.0/8")
    for chain in (
        "192.0.2.1",
        "192.0.2.2",
        "198.51.100.1, 192.0.2.3",
        "2001:db8::1",
        "192.0.2.4, 10.1.2.3",
    ):
        answers = [await _status(client, X_Forwarded_For=chain) for _ in range(3)]
        assert answers == [200, 200, 429], chain
    # What the client itself has written before its address changes nothing.
    assert await _status(client, X_Forwarded_For="203.0.113.7, 192.0.2.1") == 429
    assert await _status(client, X_Forwarded_For="nonsense, 192.0.2.1") == 429
    assert await _status(client, X_Forwarded_For="203.0.113.7, 192.0.2.4, 10.1.2.3") == 429
    # A network of 2^64 addresses is one client's.
    assert await _status(client, X_Forwarded_For="2001:db8::ffff:1") == 429
    assert await _status(client, X_Forwarded_For="2001:db8:0:1::1") == 200
    # Of nonsense the proxy itself is counted.
    answers = [await _status(client, X_Forwarded_For=f"x{number}") for number in range(3)]
    assert answers == [200, 200, 429]


async def test_on_this_machine_nobody_is_counted_unless_it_is_said(open_client: OpenClient) -> None:
    client = await open_client()
    assert client.app is not None
    assert client.app[PERIMETER].per_address.per_minute == 0
    assert client.app[PERIMETER].per_key.per_minute == 0
    network = Settings.load(**NETWORK)
    assert (network.requests_per_address, network.requests_per_key) == (6000, 6000)
    off = Settings.load(**NETWORK, rate_limit_address="0", rate_limit_key="0")
    assert (off.requests_per_address, off.requests_per_key) == (0, 0)
