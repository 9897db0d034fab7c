"""What is attacked: a server, the folders around it, and how an attacker speaks with it."""

import http.client
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

import numpy as np

from tests.attacks.canary import Canary
from tests.photos import draw_photo, encode, write_photos
from tests.service import resident_bytes

__all__ = [
    "BOUNDARY",
    "BUCKET",
    "OTHERS_BUCKET",
    "TOKEN",
    "Answer",
    "Keys",
    "Target",
    "World",
    "form",
    "part",
]

TOKEN: Final = "token-5a1d0cf1-must-stay-here"
"""Stands in every file and variable that nobody outside may get to read."""
BUCKET: Final = "attacked"
"""Whose folder `photos` may be loaded, and nothing else of any store."""
OTHERS_BUCKET: Final = "attacked-by-others"
BOUNDARY: Final = "----attack"
_SECONDS: Final = 20.0

Headers = Mapping[str, str] | Sequence[tuple[str, str]]


@dataclass
class World:
    """Folders on the server's disk: photos that may be loaded, and what nobody may see.

    Attributes:
        photos: the one folder that photos may be loaded from.
        outside: a folder beside it, with a photo that holds TOKEN.
        secret: a text file that holds TOKEN.
    """

    folder: Path
    photos: Path = field(init=False)
    outside: Path = field(init=False)
    secret: Path = field(init=False)
    _drawing: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self.photos = self.folder / "photos"
        self.outside = self.folder / "outside"
        self.secret = self.folder / "secret.txt"
        write_photos(self.photos, 3)
        self.outside.mkdir()
        # Its name begins with that of the folder that may be loaded.
        write_photos(self.folder / "photos2", 1)
        # A photo all the same: viewers pass over what comes behind its end.
        self.secret_photo.write_bytes(encode(draw_photo(99)) + TOKEN.encode())
        self.secret.write_text(f"{TOKEN}\n")
        (self.folder / ".env").write_text(f"MYSQL_PWD={TOKEN}\n")

    def large_photo(self) -> Path:
        """A photo of 36 MB, alone in a folder that may be loaded; drawn when first asked for."""
        path = self.photos / "large" / "large.bmp"
        with self._drawing:  # attacks on both servers want it at the same time
            if not path.exists():
                path.parent.mkdir()
                path.write_bytes(encode(np.zeros((4000, 3000, 3), np.uint8), ".bmp"))
        return path

    @property
    def secret_photo(self) -> Path:
        """A photo outside of what may be loaded."""
        return self.outside / "secret.jpg"


@dataclass(frozen=True)
class Keys:
    """API keys of a server that demands them, by what they are good for."""

    read: str
    write: str
    admin: str
    revoked: str
    other: str
    """Reads and writes the collection `other_only`, and no other."""


@dataclass(frozen=True)
class Answer:
    """What a server has answered; status 0 where it has closed the connection without."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        """The body."""
        return self.body.decode("utf-8", "replace")

    @property
    def done(self) -> bool:
        """Whether it says that what was asked for has been done."""
        return 200 <= self.status < 300

    def has_token(self) -> bool:
        """Whether the secret is in it, its headers included."""
        return TOKEN.encode() in self.body or TOKEN in str(self.headers)


@dataclass
class Target:
    """A server under attack.

    Attributes:
        address: host and port of the server that asks for no key.
        guarded: of the one that demands keys; for the careless server it is the same one.
        uploads: the folder under which it keeps uploaded photos.
        canary: an internal server which no client has any business with.
        statuses: of all answers so far.
    """

    address: tuple[str, int]
    guarded: tuple[str, int]
    keys: Keys
    world: World
    uploads: Path
    log: Path
    canary: Canary
    pid: int
    statuses: list[int] = field(default_factory=list)
    _names: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))

    def send(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Headers = (),
        *,
        host: str | None = None,
        to: tuple[str, int] | None = None,
    ) -> Answer:
        """Sends a request as it is written here: nothing of it is normalised on the way."""
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        where = to or self.address
        lines = [f"{method} {target} HTTP/1.1"]
        lines.append(f"Host: {f'{where[0]}:{where[1]}' if host is None else host}")
        lines += [f"{name}: {value}" for name, value in pairs]
        if body or method in ("POST", "PUT", "PATCH"):
            lines.append(f"Content-Length: {len(body)}")
        lines += ["Connection: close", "", ""]
        head = "\r\n".join(lines).encode("utf-8", "surrogateescape")
        return self.raw(head + body, to=where)

    def raw(
        self, data: bytes, *, to: tuple[str, int] | None = None, seconds: float = _SECONDS
    ) -> Answer:
        """Sends bytes over a connection of their own; the first answer that comes back."""
        with socket.create_connection(to or self.address, seconds) as connection:
            with suppress(OSError):  # it may have been answered, and closed, before its end
                connection.sendall(data)
            return self.read(connection)

    def read(self, connection: socket.socket) -> Answer:
        """The answer that comes over a connection."""
        response = http.client.HTTPResponse(connection)
        try:
            response.begin()
            answer = Answer(response.status, response.headers, response.read())
        except http.client.IncompleteRead as broken:
            answer = Answer(response.status, response.headers, broken.partial)
        except (OSError, http.client.HTTPException):
            answer = Answer(0, http.client.HTTPMessage(), b"")
        finally:
            response.close()
        self.statuses.append(answer.status)
        return answer

    def post(
        self,
        target: str,
        body: bytes = b"",
        headers: Headers = (),
        *,
        to: tuple[str, int] | None = None,
    ) -> Answer:
        """Sends a POST."""
        return self.send("POST", target, body, headers, to=to)

    def get(self, target: str, headers: Headers = ()) -> Answer:
        """Sends a GET."""
        return self.send("GET", target, headers=headers)

    def json(self, target: str, body: bytes, headers: Headers = ()) -> Answer:
        """Sends a POST whose body says that it is JSON."""
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        return self.post(target, body, [("Content-Type", "application/json"), *pairs])

    def upload(
        self, target: str, photo: bytes, filename: str = "photo.jpg", headers: Headers = ()
    ) -> Answer:
        """Sends a form with one photo."""
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        kind = ("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
        return self.post(target, form(part(photo, filename=filename)), [kind, *pairs])

    def new_collection(self) -> str:
        """The name of a collection of the attack's own, with one photo in it."""
        name = f"victim_{next(self._names)}"
        answer = self.upload(f"/img/upload?table_name={name}", encode(draw_photo(5)))
        assert answer.status == 200, answer.text
        assert self.count(name) == 1
        return name

    def large_photo(self) -> str:
        """The path of an indexed photo that fits no socket's buffers, as a URL has it."""
        path = self.world.large_photo()
        body = f'{{"File": "{path.parent}", "Table": "large"}}'
        assert self.post("/img/load", body.encode()).done
        address = f"/data?image_path={quote(str(path))}"
        assert self.send("HEAD", address).status == 200
        return quote(str(path))

    def count(self, collection: str) -> int:
        """How many photos a collection has, asked for by somebody who may."""
        answer = self.post(f"/img/count?table_name={quote(collection)}")
        assert answer.status == 200, answer.text
        return int(answer.text)

    def log_since(self, position: int) -> str:
        """What has been logged since `log_end`, once that is all there."""
        time.sleep(0.05)
        with self.log.open("rb") as file:
            file.seek(position)
            return file.read().decode("utf-8", "surrogateescape")

    def log_end(self) -> int:
        """Where the log ends now."""
        return self.log.stat().st_size

    @contextmanager
    def connection(self, to: tuple[str, int] | None = None) -> Iterator[socket.socket]:
        """A connection that the attack uses byte by byte."""
        with socket.create_connection(to or self.address, _SECONDS) as opened:
            yield opened

    def memory(self) -> int:
        """Resident bytes of the server and of the processes that it has started."""
        return resident_bytes(self.pid)

    def written(self, name: str) -> list[Path]:
        """Files of this name anywhere in the world, or in the server's own folder."""
        folders = (self.world.folder, self.uploads.parent)
        return [
            Path(folder) / name
            for root in folders
            for folder, _, files in os.walk(root)
            if name in files
        ]


def part(
    content: bytes,
    name: str = "image",
    filename: str | None = "photo.jpg",
    headers: str = "",
) -> bytes:
    """A part of a form, without the boundary before it."""
    disposition = f'Content-Disposition: form-data; name="{name}"'
    if filename is not None:
        disposition += f'; filename="{filename}"'
    return f"{disposition}\r\n{headers}\r\n".encode("utf-8", "surrogateescape") + content


def form(*parts: bytes, boundary: str = BOUNDARY, end: bool = True) -> bytes:
    """A multipart body of such parts."""
    line = f"--{boundary}".encode()
    body = b"".join(line + b"\r\n" + each + b"\r\n" for each in parts)
    return body + (line + b"--\r\n" if end else b"")


def forged_lines(text: str, words: str) -> list[str]:
    """Lines of a log, however a viewer breaks it into lines, that begin with words of a client."""
    return [
        line
        for line in re.split(r"[\r\n\x0b\x0c\x85\u2028\u2029]+", text)
        if line.startswith(words)
    ]
