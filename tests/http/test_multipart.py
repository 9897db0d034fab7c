"""Multipart forms, as a client sends them over a socket and as none should."""

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.pytest_plugin import AiohttpClient
from aiohttp.test_utils import TestClient

from backend.http.middlewares import answer_errors
from backend.http.multipart import read_form

MAX_PHOTO = 100_000
MAX_FIELD = 8192
TYPE = "multipart/form-data; boundary=xyz"
Client = TestClient[web.Request, web.Application]
Send = Callable[..., Awaitable[tuple[int, Any]]]


async def _answer(request: web.Request) -> web.Response:
    form = await read_form(request, photo_field="image", max_photo_bytes=MAX_PHOTO)
    photo = None if form.photo is None else base64.b64encode(form.photo).decode()
    return web.json_response({"photo": photo, "fields": form.fields})


@pytest.fixture
async def client(aiohttp_client: AiohttpClient) -> Client:
    """A server that answers with what it has read of a form, and its client."""
    app = web.Application(middlewares=[answer_errors], client_max_size=1000)
    app.router.add_post("/", _answer)
    return await aiohttp_client(app)


@pytest.fixture
def send(client: Client) -> Send:
    """Sends a raw body; returns status and answer."""

    async def send(body: bytes, content_type: str | None = TYPE) -> tuple[int, Any]:
        headers = {} if content_type is None else {"Content-Type": content_type}
        async with client.post("/", data=body, headers=headers) as answer:
            return answer.status, await answer.json()

    return send


def _part(content: bytes, name: str | None = "image", *headers: str) -> bytes:
    disposition = "form-data" + (f'; name="{name}"' if name is not None else "")
    lines = [f"Content-Disposition: {disposition}", *headers]
    return b"--xyz\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + content + b"\r\n"


def _form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--xyz--\r\n"


def _photo(answer: Any) -> bytes:
    return base64.b64decode(answer["photo"])


async def test_a_photo_and_its_fields_are_read(client: Client) -> None:
    photo = bytes(range(256)) * 300 + b"\r\n--not the boundary"
    form = aiohttp.FormData({"topk": "5", "url": " http://é/a.jpg "})
    form.add_field("image", photo, filename="a b.jpg", content_type="image/jpeg")
    async with client.post("/", data=form) as answer:
        assert answer.status == 200
        read = await answer.json()
    assert _photo(read) == photo
    assert read["fields"] == {"topk": "5", "url": "http://é/a.jpg"}


async def test_a_photo_is_read_without_a_file_name_too(send: Send) -> None:
    status, read = await send(_form(_part(b"abc")))
    assert (status, _photo(read)) == (200, b"abc")


async def test_an_empty_photo_is_a_photo_of_no_bytes(send: Send) -> None:
    status, read = await send(_form(_part(b"")))
    assert (status, read["photo"]) == (200, "")


async def test_parts_without_a_name_are_passed_over(send: Send) -> None:
    status, read = await send(_form(_part(b"x", None), _part(b"abc"), b"--xyz\r\n\r\ny\r\n"))
    assert (status, _photo(read), read["fields"]) == (200, b"abc", {})


async def test_a_field_that_is_not_utf_8_is_read_as_far_as_it_goes(send: Send) -> None:
    _, read = await send(_form(_part(b"caf\xe9", "url")))
    assert read["fields"] == {"url": "caf\ufffd"}


# Limits


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_photo_at_the_limit_is_read_and_one_byte_more_is_refused(
    client: Client, chunked: bool
) -> None:
    async def post(size: int) -> tuple[int, Any]:
        form = aiohttp.FormData()
        form.add_field("image", bytes(size), filename="a.jpg")
        async with client.post("/", data=form(), chunked=chunked or None) as answer:
            return answer.status, await answer.json()

    status, read = await post(MAX_PHOTO)
    assert (status, len(_photo(read))) == (200, MAX_PHOTO)
    status, read = await post(MAX_PHOTO + 1)
    assert status == 413
    assert read == {
        "status": False,
        "msg": f"'image' has more than the {MAX_PHOTO} bytes that MAX_UPLOAD_BYTES allows",
    }


async def test_a_field_at_the_limit_is_read_and_one_byte_more_is_refused(send: Send) -> None:
    status, read = await send(_form(_part(b"u" * MAX_FIELD, "url")))
    assert (status, read["fields"]) == (200, {"url": "u" * MAX_FIELD})
    status, read = await send(_form(_part(b"u" * (MAX_FIELD + 1), "url")))
    assert status == 413
    assert read["msg"] == f"'url' has more than the {MAX_FIELD} bytes that a field may have"


async def test_twenty_parts_are_read_and_one_more_is_refused(send: Send) -> None:
    parts = [_part(b"v", f"field{number}") for number in range(21)]
    status, read = await send(_form(*parts[:20]))
    assert (status, len(read["fields"])) == (200, 20)
    status, read = await send(_form(*parts))
    assert (status, read["msg"]) == (400, "the form has more than 20 parts")


async def test_what_is_over_the_limit_is_refused_before_the_rest_has_come(client: Client) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        yield b'--xyz\r\nContent-Disposition: form-data; name="image"\r\n\r\n'
        while True:
            yield bytes(2**16)
            sent += 2**16

    # The server answers and hangs up: the client may see either first.
    try:
        async with client.post("/", data=endless(), headers={"Content-Type": TYPE}) as answer:
            assert answer.status == 413
    except aiohttp.ClientError:
        assert sent > MAX_PHOTO
    assert sent < 100 * 2**20


# What is no form


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/x-www-form-urlencoded", "image/jpeg", "text/plain", None],
)
async def test_a_body_of_another_kind_is_an_empty_form(
    send: Send, content_type: str | None
) -> None:
    assert await send(b'{"image": 1}', content_type) == (200, {"photo": None, "fields": {}})


async def test_no_body_at_all_is_an_empty_form(client: Client) -> None:
    async with client.post("/") as answer:
        assert (answer.status, await answer.json()) == (200, {"photo": None, "fields": {}})


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", _form(_part(b"abc"))),
        ("multipart/form-data; boundary=", _form(_part(b"abc"))),
        ("multipart/form-data; boundary=" + "x" * 100, _form(_part(b"abc"))),
        ("multipart/form-data; boundary=other", _form(_part(b"abc"))),
        (TYPE, b""),
        (TYPE, b"no form at all\r\n" * 10),
        (TYPE, b"--xyz\r\nno header\r\n\r\nabc\r\n--xyz--\r\n"),
        (TYPE, b"--xyz\r\n" + b"X: y\r\n" * 5000 + b"\r\nabc\r\n--xyz--\r\n"),
        (TYPE, b"--xyz\r\nX: " + b"y" * 100_000 + b"\r\n\r\nabc\r\n--xyz--\r\n"),
        (TYPE, _form(_part(b"abc")).replace(b"\r\n", b"\n")),
    ],
    ids=[
        "no boundary",
        "empty boundary",
        "long boundary",
        "other boundary",
        "empty",
        "text",
        "no header",
        "many headers",
        "long header",
        "bare newlines",
    ],
)
async def test_a_malformed_form_is_refused_with_a_reason(
    send: Send, content_type: str, body: bytes
) -> None:
    status, read = await send(body, content_type)
    assert status == 400
    assert read["status"] is False
    assert read["msg"].startswith("the multipart form cannot be read: ")


# aiohttp warns of a header that is cut off, in the log; the answer is what counts here.
@pytest.mark.filterwarnings("ignore::aiohttp.BadContentDispositionHeader")
@pytest.mark.parametrize("missing", range(6, 110, 8))
async def test_a_form_that_breaks_off_is_refused(send: Send, missing: int) -> None:
    whole = _form(_part(b"v" * 30, "topk"), _part(b"abc" * 10))
    status, read = await send(whole[:-missing])
    assert (status, read["status"]) == (400, False)
    assert read["msg"].startswith("the multipart form cannot be read: ")


async def test_a_form_inside_a_part_is_refused(send: Send) -> None:
    inner = b"--q\r\n\r\nabc\r\n--q--\r\n"
    nested = _part(inner, "image", "Content-Type: multipart/mixed; boundary=q")
    status, read = await send(_form(nested))
    assert (status, read["msg"]) == (400, "the form has a multipart body inside a part")
    status, _ = await send(_form(_part(inner, "image", "Content-Type: multipart/mixed")))
    assert status == 400


@pytest.mark.parametrize(
    "charset", [b"y" * 100, b"bogus", b"\xff\xfe"], ids=["long", "bogus", "bytes"]
)
async def test_a_declared_default_charset_breaks_nothing(send: Send, charset: bytes) -> None:
    # RFC 7578, 4.6: a field of this name declares the charset of the others.
    status, read = await send(_form(_part(charset, "_charset_"), _part(b"5", "topk")))
    assert status in (200, 400), read
    assert "internal error" not in str(read)
