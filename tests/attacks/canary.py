"""An internal HTTP server that tells whether somebody has been led to it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from tests.photos import draw_photo, encode

__all__ = ["Canary", "singing"]


class Canary:
    """What the internal server has seen."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.paths: list[str] = []

    def heard(self, word: str) -> bool:
        """Whether a request with that word in its path has come."""
        return any(word in path and not path.startswith("/to/") for path in self.paths)


class _Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    canary: Canary

    def server_bind(self) -> None:
        # ::1 and 127.0.0.0/8, which a socket for both would take from every interface, are two.
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        super().server_bind()


class _Server4(ThreadingHTTPServer):
    daemon_threads = True
    canary: Canary


class _Handler(BaseHTTPRequestHandler):
    _photo = encode(draw_photo(7))

    def do_GET(self) -> None:
        """Answers a photo, or leads on to where the path says: /to/URL."""
        assert isinstance(self.server, _Server | _Server4)
        self.server.canary.paths.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", unquote(self.path.removeprefix("/to/")))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(self._photo)))
        self.end_headers()
        self.wfile.write(self._photo)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def singing() -> Iterator[Canary]:
    """The server, on one port of 127.0.0.1, .4, .5 and, where the machine has it, of ::1."""
    four = _Server4(("127.0.0.1", 0), _Handler)
    servers: list[_Server | _Server4] = [four]
    canary = Canary(four.server_address[1])
    servers += [_Server4((f"127.0.0.{last}", canary.port), _Handler) for last in (4, 5)]
    with suppress(OSError):  # a machine without IPv6
        servers.append(_Server(("::1", canary.port), _Handler))
    for server in servers:
        server.canary = canary
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield canary
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
