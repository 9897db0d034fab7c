"""How much of everything a request may have: at each limit it passes, one past it is a 4xx."""

import gzip
import socket
import time
from http.client import HTTPResponse
from urllib.parse import urlsplit

import pytest
import requests

from backend.errors import InvalidInput
from backend.http.limits import (
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_LINE_BYTES,
    parse_json,
)
from tests.photos import draw_photo, encode
from tests.service import Service

DEPTH = 16
VALUES = 1000
PARAMETERS = 200
BOUNDARY = "b0undary"
PHOTO = encode(draw_photo(1))


# JSON


def test_json_is_parsed_as_json_is() -> None:
    text = '{"a": [1, -2.5e3, true, null, "é\\u00e9\\"[{"], "b": {}}'
    expected = {"a": [1, -2500.0, True, None, 'éé"[{'], "b": {}}
    for encoding in ("utf-8", "utf-8-sig", "utf-16-le", "utf-16", "utf-32"):
        assert parse_json(text.encode(encoding)) == expected


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_json_is_nested_so_deep_and_no_deeper(opening: str, closing: str) -> None:
    inner = "1"
    for _ in range(DEPTH):
        inner = f"{opening}{inner}{closing}"
    assert parse_json(inner.encode())
    with pytest.raises(InvalidInput, match=f"nested more than {DEPTH} deep"):
        parse_json(f"{opening}{inner}{closing}".encode())


def test_json_has_so_many_values_and_no_more() -> None:
    fits = "[" + ",".join("1" * VALUES) + "]"
    assert len(parse_json(fits.encode())) == VALUES
    with pytest.raises(InvalidInput, match=f"more than {VALUES} values"):
        parse_json(f"[1,{fits[1:]}".encode())
    with pytest.raises(InvalidInput, match=f"more than {VALUES} values"):
        parse_json(("{" + ",".join(f'"{n}":{n}' for n in range(VALUES)) + "}").encode())


def test_what_is_in_a_string_is_no_structure() -> None:
    text = "[{,:" * 10_000
    assert parse_json(f'{{"a": "{text}"}}'.encode()) == {"a": text}
    escaped = '\\"[[' * 10_000
    assert parse_json(f'["{escaped}"]'.encode()) == [escaped.replace("\\", "")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'"',
        b'"\\',
        b'["a',
        b"]]]]",
        b"\xff\xfe\xfd",
        b"\xed\xa0\x80",
        b"nul",
        b"[1,]",
        b"9" * 5000,
        b'"\\"' * 20_000,
        b"\\" * 60_000,
    ],
    ids=lambda body: body[:8].hex(),
)
def test_what_is_no_json_is_refused_in_no_time(body: bytes) -> None:
    start = time.process_time()
    with pytest.raises(InvalidInput, match="the body is no JSON"):
        parse_json(body)
    assert time.process_time() - start < 5  # what looks back at each character takes minutes


# Requests


def _refused(answer: requests.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    for word in words:
        assert word in answer.json()["msg"]


def test_a_json_body_at_the_limit_is_read_and_one_byte_more_is_a_413(
    empty_service: Service,
) -> None:
    for padding, status in ((0, 400), (1, 413)):
        body = b'{"File": ""}'.ljust(MAX_BODY_BYTES + padding)
        answer = empty_service.post("/img/load", data=body)
        _refused(answer, status, "folder" if status == 400 else str(MAX_BODY_BYTES))


def test_a_bomb_of_a_json_body_is_a_413(empty_service: Service) -> None:
    packed = gzip.compress(b" " * (50 * 2**20))
    answer = empty_service.post("/img/load", data=packed, headers={"Content-Encoding": "gzip"})
    _refused(answer, 413, str(MAX_BODY_BYTES))


def test_a_query_string_has_so_many_parameters_and_no_more(empty_service: Service) -> None:
    assert empty_service.post("/img/count?" + "&".join("a" * PARAMETERS)).status_code == 200
    for path in ("/img/count", "/data", "/nowhere"):
        answer = empty_service.post(f"{path}?" + "&".join("a" * (PARAMETERS + 1)))
        _refused(answer, 400, f"more than the {PARAMETERS} parameters")
    answer = empty_service.get("/api/v1/images?" + "&" * PARAMETERS)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input")


def _answered(service: Service, request: bytes) -> int:
    """The status that bytes of ours are answered with."""
    address = urlsplit(service.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as answer:
            return int(answer.readline().split()[1])


def _head(*headers: str, target: str = "/healthz") -> bytes:
    lines = [f"GET {target} HTTP/1.1", "Host: localhost", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_request_has_so_many_headers_and_no_more(empty_service: Service) -> None:
    for more, status in ((-1, 200), (1, 400)):
        headers = [f"X-{number}: x" for number in range(MAX_HEADERS - 1 + more)]
        assert _answered(empty_service, _head(*headers)) == status


def test_a_header_has_so_many_bytes_and_no_more(empty_service: Service) -> None:
    for size, status in ((MAX_HEADER_BYTES - 100, 200), (MAX_HEADER_BYTES + 1, 400)):
        assert _answered(empty_service, _head("X-A: " + "x" * size)) == status


def test_a_request_s_line_has_so_many_bytes_and_no_more(empty_service: Service) -> None:
    for size, status in ((MAX_LINE_BYTES - 100, 200), (MAX_LINE_BYTES + 1, 400)):
        target = "/healthz?" + "x" * size
        assert _answered(empty_service, _head(target=target)) == status


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX:\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /img/load HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=range(10),
)
def test_what_is_no_request_is_answered_400_and_nothing_of_ours(
    empty_service: Service, request_bytes: bytes
) -> None:
    address = urlsplit(empty_service.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(request_bytes + b"\r\n\r\n")
        answer = HTTPResponse(connection)
        answer.begin()
        told = f"{answer.headers}{answer.read().decode()}"
    assert answer.status == 400, told
    for private in ("Traceback", ".py", "site-packages"):
        assert private not in told


# Forms


def _form(*parts: bytes) -> bytes:
    whole = b"".join(b"--" + BOUNDARY.encode() + b"\r\n" + part + b"\r\n" for part in parts)
    return whole + b"--" + BOUNDARY.encode() + b"--\r\n"


def _part(name: str, data: bytes, *headers: str) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"; filename="a.jpg"'
    return "\r\n".join([disposition, *headers, "", ""]).encode() + data


def _search(service: Service, *parts: bytes) -> requests.Response:
    return service.post(
        "/img/search",
        data=_form(*parts),
        headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
    )


def test_a_part_has_so_many_headers_and_no_more(empty_service: Service) -> None:
    fits = [f"X-{number}: x" for number in range(MAX_HEADERS - 2)]
    assert _search(empty_service, _part("image", PHOTO, *fits)).status_code == 200
    many = [f"X-{number}: x" for number in range(MAX_HEADERS + 1)]
    _refused(_search(empty_service, _part("image", PHOTO, *many)), 400, "cannot be read", "headers")


def test_a_part_s_header_has_so_many_bytes_and_no_more(empty_service: Service) -> None:
    fits = "X-A: " + "x" * (MAX_HEADER_BYTES - 100)
    assert _search(empty_service, _part("image", PHOTO, fits)).status_code == 200
    long = "X-A: " + "x" * (MAX_HEADER_BYTES + 1)
    _refused(_search(empty_service, _part("image", PHOTO, long)), 400, "cannot be read")


def test_a_form_has_so_many_parts_and_no_more(empty_service: Service) -> None:
    others = [_part(f"field{number}", b"x") for number in range(19)]
    assert _search(empty_service, _part("image", PHOTO), *others).status_code == 200
    answer = _search(empty_service, _part("image", PHOTO), *others, _part("more", b"x"))
    _refused(answer, 400, "more than 20 parts")
