"""The web page as it is served: from memory, compressed, validated, and shut to strangers."""

import gzip
import re

import pytest
from aiohttp import web
from pytest_aiohttp.plugin import AiohttpClient

from backend.http.page import add_page


@pytest.fixture
def app() -> web.Application:
    app = web.Application()
    add_page(app)
    return app


async def test_the_index_names_files_that_are_all_there(
    aiohttp_client: AiohttpClient, app: web.Application
) -> None:
    client = await aiohttp_client(app)
    async with client.get("/") as answer:
        assert answer.status == 200
        assert answer.content_type == "text/html"
        index = await answer.text()
    names = set(re.findall(r'(?:src|href)="(page/[^"]+)"', index))
    assert {"page/app.js", "page/style.css", "page/icon.svg"} <= names
    types = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    modules = set()
    for name in names:
        async with client.get(f"/{name}") as answer:
            assert answer.status == 200, name
            assert answer.content_type == types[name.rpartition(".")[2]]
            modules |= set(re.findall(r'from "\./([\w.]+)"', await answer.text()))
    # What is imported is named by the index: nothing waits for a module that waited for another.
    assert {f"page/{module}" for module in modules} <= names


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/page/style.css"])
async def test_a_policy_forbids_whatever_is_not_the_pages_own(
    aiohttp_client: AiohttpClient, app: web.Application, path: str
) -> None:
    client = await aiohttp_client(app)
    async with client.get(path) as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Referrer-Policy"] == "same-origin"


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip, deflate, br", True),
        ("br, *;q=0.5", True),
        ("GZIP;q=0.1", True),
        ("br", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip;q=nonsense", False),
        ("", False),
    ],
)
async def test_whoever_takes_gzip_gets_it(
    aiohttp_client: AiohttpClient, app: web.Application, accepted: str, packed: bool
) -> None:
    client = await aiohttp_client(app, auto_decompress=False)
    async with client.get("/page/app.js", headers={"Accept-Encoding": "identity"}) as answer:
        plain = await answer.read()
    async with client.get("/page/app.js", headers={"Accept-Encoding": accepted}) as answer:
        assert answer.headers["Vary"] == "Accept-Encoding"
        assert (answer.headers.get("Content-Encoding") == "gzip") is packed
        body = await answer.read()
    assert (gzip.decompress(body) if packed else body) == plain
    assert not packed or len(body) < len(plain) / 2


async def test_what_a_browser_has_is_not_sent_again(
    aiohttp_client: AiohttpClient, app: web.Application
) -> None:
    client = await aiohttp_client(app)
    async with client.get("/page/style.css") as answer:
        tag = answer.headers["ETag"]
        assert answer.headers["Cache-Control"] == "no-cache"
    for known in (tag, f'"other", W/{tag}', "*"):
        async with client.get("/page/style.css", headers={"If-None-Match": known}) as answer:
            assert answer.status == 304
            assert await answer.read() == b""
            assert answer.headers["ETag"] == tag
    plain = {"If-None-Match": tag, "Accept-Encoding": "identity"}
    async with client.get("/page/style.css", headers=plain) as answer:
        assert answer.status == 200  # those were other bytes


async def test_head_tells_what_get_would(
    aiohttp_client: AiohttpClient, app: web.Application
) -> None:
    client = await aiohttp_client(app, auto_decompress=False)
    async with client.get("/") as full, client.head("/") as head:
        assert head.status == 200
        assert head.headers["Content-Length"] == full.headers["Content-Length"]
        assert head.headers["ETag"] == full.headers["ETag"]
        assert await head.read() == b""


@pytest.mark.parametrize("name", ["nothing.js", "__init__.py", "..%2Fdocs.py", "index.html.gz", ""])
async def test_only_the_pages_files_are_served(
    aiohttp_client: AiohttpClient, app: web.Application, name: str
) -> None:
    client = await aiohttp_client(app)
    async with client.get(f"/page/{name}") as answer:
        assert answer.status == 404
