"""Header abuse: requests that two programs would read differently, and ones that are too large."""

from functools import partial
from typing import Final

from tests.attacks.cases import Attacks
from tests.attacks.target import Target

__all__ = ["ATTACKS"]

ATTACKS: Final = Attacks("header abuse")


def _accepted(head: str, body: bytes, target: Target) -> bool:
    """Whether a request is carried out that should not be understood at all."""
    host = f"{target.address[0]}:{target.address[1]}"
    data = head.replace("{host}", host).encode("utf-8", "surrogateescape") + body
    answer = target.raw(data, seconds=5.0)
    return answer.done or answer.status >= 500


def _post(*lines: str) -> str:
    return "\r\n".join(["POST /img/count HTTP/1.1", "Host: {host}", *lines, "", ""])


_GET: Final = "GET /progress HTTP/1.1\r\n"
_CHUNKS: Final = b"3\r\nabc\r\n0\r\n\r\n"
_SMUGGLED: Final = b"0\r\n\r\nPOST /img/drop HTTP/1.1\r\nHost: a\r\n\r\n"
_REQUESTS: Final = (
    (
        "length and chunks",
        "Content-Length and Transfer-Encoding together",
        _post("Content-Length: 6", "Transfer-Encoding: chunked"),
        _SMUGGLED,
    ),
    (
        "chunks and length",
        "the same the other way round",
        _post("Transfer-Encoding: chunked", "Content-Length: 6"),
        _SMUGGLED,
    ),
    (
        "two lengths",
        "two Content-Lengths that differ",
        _post("Content-Length: 3", "Content-Length: 5"),
        b"abcde",
    ),
    (
        "two equal lengths",
        "the same Content-Length twice",
        _post("Content-Length: 3", "Content-Length: 3"),
        b"abc",
    ),
    ("lengths in a list", "Content-Length: 3, 5", _post("Content-Length: 3, 5"), b"abcde"),
    ("length with a sign", "Content-Length: +3", _post("Content-Length: +3"), b"abc"),
    ("negative length", "Content-Length: -3", _post("Content-Length: -3"), b"abc"),
    ("hexadecimal length", "Content-Length: 0x3", _post("Content-Length: 0x3"), b"abc"),
    ("length with an underscore", "Content-Length: 0_3", _post("Content-Length: 0_3"), b"abc"),
    (
        "length in other digits",
        "Content-Length in Arabic digits",
        _post("Content-Length: ٣"),
        b"abc",
    ),
    (
        "length of 30 digits",
        "Content-Length: 9999…",
        _post(f"Content-Length: {'9' * 30}", "Connection: close"),
        b"",
    ),
    (
        "two encodings",
        "two Transfer-Encodings",
        _post("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        _CHUNKS,
    ),
    (
        "obscured encoding",
        "Transfer-Encoding: xchunked",
        _post("Transfer-Encoding: xchunked"),
        _CHUNKS,
    ),
    (
        "encoding with a control character",
        "Transfer-Encoding: <VT>chunked",
        _post("Transfer-Encoding: \x0bchunked"),
        _CHUNKS,
    ),
    (
        "encoding not at its end",
        "Transfer-Encoding: chunked, gzip",
        _post("Transfer-Encoding: chunked, gzip"),
        _CHUNKS,
    ),
    (
        "space before the colon",
        "Transfer-Encoding : chunked",
        _post("Transfer-Encoding : chunked"),
        _CHUNKS,
    ),
    (
        "space before a name",
        "a header that begins with a space",
        _post(" Content-Length: 3"),
        b"abc",
    ),
    (
        "folded header",
        "a header that goes on in the next line",
        _post("X-A: a", "\tContent-Length: 3"),
        b"abc",
    ),
    ("header without a colon", "a line that is no header", _post("X-A"), b""),
    ("header without a name", "a header of which the name is missing", _post(": a"), b""),
    ("NUL in a value", "a NUL in a header's value", _post("X-A: a\0b"), b""),
    (
        "control character in a name",
        "a control character in a header's name",
        _post("X\x01A: a"),
        b"",
    ),
    (
        "bare line feeds",
        "lines that end with LF alone",
        "POST /img/count HTTP/1.1\nHost: {host}\nContent-Length: 0\n\n",
        b"",
    ),
    ("bare carriage returns", "a header that a CR alone begins", _post("X-A: a\rX-Forged: b"), b""),
    (
        "chunk of hexadecimal with 0x",
        "a chunk's size as 0x3",
        _post("Transfer-Encoding: chunked"),
        b"0x3\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "chunk of a negative size",
        "a chunk's size as -3",
        _post("Transfer-Encoding: chunked"),
        b"-3\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "chunk with a sign",
        "a chunk's size as +3",
        _post("Transfer-Encoding: chunked"),
        b"+3\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "chunk of a huge size",
        "a chunk's size of 20 digits",
        _post("Transfer-Encoding: chunked"),
        b"f" * 20 + b"\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "chunk with a space",
        "a chunk's size with a space in it",
        _post("Transfer-Encoding: chunked"),
        b"3 \t;a\r\nabc\r\n0 0\r\n\r\n",
    ),
    (
        "line of 1 MB",
        "a request whose first line has 1 MB",
        f"GET /progress?{'a' * 2**20} HTTP/1.1\r\nHost: {{host}}\r\n\r\n",
        b"",
    ),
    ("header of 1 MB", "one header of 1 MB", _post(f"X-A: {'a' * 2**20}"), b""),
    ("name of 1 MB", "a header whose name has 1 MB", _post(f"{'a' * 2**20}: a"), b""),
    ("10,000 headers", "10,000 headers", _post(*["X-A: a"] * 10_000), b""),
    (
        "headers of 4 MB in all",
        "500 headers of 8,000 letters",
        _post(*[f"X-{n}: {'a' * 8000}" for n in range(500)]),
        b"",
    ),
    (
        "method of 10,000 letters",
        "a method that is none",
        f"{'A' * 10_000} /progress HTTP/1.1\r\nHost: {{host}}\r\n\r\n",
        b"",
    ),
    (
        "method with a control character",
        "a method with a control character",
        "GE\x01T /progress HTTP/1.1\r\nHost: {host}\r\n\r\n",
        b"",
    ),
    (
        "another version",
        "a request of HTTP/9.9",
        "GET /progress HTTP/9.9\r\nHost: {host}\r\n\r\n",
        b"",
    ),
    (
        "another protocol",
        "a request of another protocol",
        "GET /progress FTP/1.1\r\nHost: {host}\r\n\r\n",
        b"",
    ),
    (
        "spaces in the target",
        "a target with spaces in it",
        "GET /progress a b HTTP/1.1\r\nHost: {host}\r\n\r\n",
        b"",
    ),
    ("TLS on a port without", "the first bytes of TLS", "\x16\x03\x01\x02\r\n\r\n", b""),
)
for _name, _tries, _head, _body in _REQUESTS:
    ATTACKS.add(_name, _tries, partial(_accepted, _head, _body))


def _split(target: Target) -> bool:
    """Whether words of a client's become a header of the answer."""
    return any(
        "X-Forged" in target.get(f"{address}%0d%0aX-Forged:%20yes").headers
        for address in ("/progress?a=", "/nowhere", "/data?image_path=")
    )


ATTACKS.add("answer in two", "put a line break into a header of the answer", _split)


def _request_id(target: Target) -> bool:
    answer = target.get("/progress", {"X-Request-ID": "a" * 5000})
    return "a" * 5000 in str(answer.headers)


ATTACKS.add(
    "request's id of 5,000 letters",
    "have the answer and the log repeat an id of any length",
    _request_id,
)


def _expected(target: Target) -> bool:
    head = _post("Expect: 200-ok", "Content-Length: 0", "Connection: close")
    return _accepted(head, b"", target)


ATTACKS.add("unknown expectation", "Expect something that there is not", _expected)


def _pipelined(target: Target) -> bool:
    """Whether requests behind one that is ambiguous are carried out."""
    victim = target.new_collection()
    host = f"{target.address[0]}:{target.address[1]}"
    hidden = f"POST /img/drop?table_name={victim} HTTP/1.1\r\nHost: {host}\r\n\r\n"
    head = _post("Content-Length: 5", "Transfer-Encoding: chunked").replace("{host}", host)
    answer = target.raw(head.encode() + b"0\r\n\r\n" + hidden.encode(), seconds=2.0)
    return answer.done or target.count(victim) == 0


ATTACKS.add("request behind a request", "hide a drop behind a request of two lengths", _pipelined)
