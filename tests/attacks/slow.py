"""Slow clients: connections that are held for as long as the server lets them be."""

import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from tests.attacks.cases import Attacks
from tests.attacks.target import BOUNDARY, Target

__all__ = ["ATTACKS", "PATIENCE_SECONDS", "SERVER_SECONDS"]

ATTACKS: Final = Attacks("slow clients")
SERVER_SECONDS: Final = 1.0
"""That the server under attack waits for each of these things."""
PATIENCE_SECONDS: Final = 8.0
"""After which an attacker who is still connected has got through."""


def _held(begin: bytes, drop: bytes, target: Target) -> bool:
    """Whether a connection stays on which a byte comes now and then."""
    host = f"{target.address[0]}:{target.address[1]}"
    with target.connection() as connection:
        connection.sendall(begin.replace(b"{host}", host.encode()))
        return _stays(connection, lambda: connection.sendall(drop))


def _stays(connection: socket.socket, go_on: Callable[[], object]) -> bool:
    """Whether it is neither closed nor answered: what comes behind an answer is passed over."""
    connection.settimeout(0.2)
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        try:
            connection.recv(2**16)
        except TimeoutError:
            pass
        except ConnectionError:
            return False
        else:
            return False
        try:
            go_on()
        except ConnectionError:
            return False
    return True


_FORM: Final = f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n".encode()
_JSON: Final = b"Content-Type: application/json\r\n"
_SLOW: Final = (
    ("nothing", "a connection on which nothing comes", b"", b""),
    ("first line", "a first line byte by byte", b"GET /", b"a"),
    (
        "headers",
        "headers byte by byte (Slowloris)",
        b"GET / HTTP/1.1\r\nHost: {host}\r\nX-A: ",
        b"a",
    ),
    (
        "headers without an end",
        "one header after the other",
        b"GET / HTTP/1.1\r\nHost: {host}\r\n",
        b"X-A: a\r\n",
    ),
    (
        "JSON body",
        "a JSON body byte by byte",
        b"POST /img/load HTTP/1.1\r\nHost: {host}\r\n" + _JSON + b"Content-Length: 9999\r\n\r\n{",
        b" ",
    ),
    (
        "JSON body of the resource API",
        "the same to /api/v1/loads",
        b"POST /api/v1/loads HTTP/1.1\r\nHost: {host}\r\n"
        + _JSON
        + b"Content-Length: 9999\r\n\r\n{",
        b" ",
    ),
    (
        "photo",
        "a photo byte by byte",
        b"POST /img/search HTTP/1.1\r\nHost: {host}\r\n"
        + _FORM
        + b"Content-Length: 9999\r\n\r\n--"
        + BOUNDARY.encode()
        + b'\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n',
        b"a",
    ),
    (
        "preamble of a form",
        "what comes before a form, byte by byte",
        b"POST /img/search HTTP/1.1\r\nHost: {host}\r\n" + _FORM + b"Content-Length: 9999\r\n\r\n",
        b"a",
    ),
    (
        "chunks",
        "a body in chunks of one byte",
        b"POST /img/load HTTP/1.1\r\nHost: {host}\r\n"
        + _JSON
        + b"Transfer-Encoding: chunked\r\n\r\n",
        b"1\r\n \r\n",
    ),
    (
        "body that nobody reads",
        "a body byte by byte where none is expected",
        b"POST /img/count HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9999\r\n\r\n",
        b"a",
    ),
)
for _name, _tries, _begin, _drop in _SLOW:
    ATTACKS.add(_name, _tries, partial(_held, _begin, _drop))


def _never_reads(target: Target) -> bool:
    """Asks for a large file and reads nothing of it."""
    path = target.large_photo()
    host = f"{target.address[0]}:{target.address[1]}"
    with target.connection() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = f"GET /data?image_path={path} HTTP/1.1\r\nHost: {host}\r\n\r\n"
        connection.sendall(request.encode())
        # What the server has ended resets the connection, which sending shows.
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            time.sleep(0.2)
            error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                return False
            try:
                connection.send(b"\r\n")
            except OSError:
                return False
        return True


ATTACKS.add(
    "answer that is never read", "ask for a photo of 36 MB and read nothing of it", _never_reads
)
