"""A server of files on loopback that can be told to fail, as servers do."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """How to answer one request; by default as a good server does."""

    status: int | None = None
    """Answer with this and no file."""

    ranges: bool = True
    """Whether a ``Range`` is heeded."""

    body: bytes | None = None
    """Instead of the file."""

    content_type: str = "application/octet-stream"
    content_encoding: str = "identity"

    length: bool = True
    """Whether to say how long the answer is."""

    cut_after: int | None = None
    """Close the connection after so many bytes of the answer."""

    wait_for: Event | None = None
    """Before anything is sent after those bytes."""

    content_range: str | None = None
    """Instead of the right one."""


@dataclass(frozen=True)
class Request:
    """What was asked for: the target as it came, and its ``Range``."""

    target: str
    range: str | None


@dataclass
class FileServer:
    """Serves ``files`` in any folder; the next requests get ``answers``, the others good ones."""

    port: int
    files: dict[str, bytes] = field(default_factory=dict)
    answers: deque[Answer] = field(default_factory=deque)
    requests: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Of a folder that the files are in."""
        return f"http://127.0.0.1:{self.port}/files"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        files = self.server.files
        wanted = self.headers.get("Range")
        files.requests.append(Request(self.path, wanted))
        answer = files.answers.popleft() if files.answers else Answer()
        name = urlsplit(self.path).path.rpartition("/")[2]
        data = files.files.get(name) if answer.body is None else answer.body
        if answer.status is not None or data is None:
            self.send_error(answer.status or 404)
            return
        start = 0
        match = re.fullmatch(r"bytes=(\d+)-", wanted or "")
        if match and answer.ranges:
            start = int(match[1])
            if start >= len(data):
                self.send_error(416)
                return
        part = data[start:]
        self.send_response(206 if match and answer.ranges else 200)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Encoding", answer.content_encoding)
        if answer.length:
            self.send_header("Content-Length", str(len(part)))
        if match and answer.ranges:
            true_range = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.send_header("Content-Range", answer.content_range or true_range)
        self.end_headers()
        sent = len(part) if answer.cut_after is None else answer.cut_after
        self.wfile.write(part[:sent])
        self.wfile.flush()
        if answer.wait_for is not None:
            answer.wait_for.wait()
            if answer.cut_after is not None:
                self.wfile.write(part[sent:])

    def do_CONNECT(self) -> None:
        """Refuses what is asked of a proxy that is to lead to a server with TLS."""
        files = self.server.files
        files.requests.append(Request(self.path, None))
        answer = files.answers.popleft() if files.answers else Answer()
        self.send_error(answer.status or 405)

    def log_message(self, *args: Any) -> None:
        """Says nothing: the test has ``requests``."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    files: FileServer

    def handle_error(self, *args: Any) -> None:
        """A client that goes away is what some tests are about."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*args)


@contextmanager
def file_server() -> Iterator[FileServer]:
    """Runs a server on a free port."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.files = FileServer(server.server_port)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.files
        finally:
            server.shutdown()
            thread.join()
