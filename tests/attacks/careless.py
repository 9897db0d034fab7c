"""A server that makes every mistake there is, for attacks to get through to.

`python -m tests.attacks.careless WORLD UPLOADS` serves on a free loopback port and prints it. It
speaks enough of the service's addresses to be attacked by the same requests, and does with them
what a program does whose author has thought of nobody but friends: it serves any path, runs SQL
from names, writes where a file's name says, fetches any URL, answers any origin under any name,
believes every header, logs what comes, and tells all in its errors. Its one care is for the
machine that it runs on: what it would allocate, it only counts.

It reads HTTP itself: no library of these days would take what this one has to.
"""

import asyncio
import contextlib
import io
import json
import os
import re
import socket
import sqlite3
import sys
import tarfile
import tempfile
import traceback
import unicodedata
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, unquote_plus, urlsplit

import fsspec
import numpy as np
from PIL import Image
from pyarrow import ArrowException, parquet

from backend.archive import ArchivedCollection
from tests.archives import content
from tests.attacks.target import TOKEN

_MOST_BYTES: Final = 2**26
"""Of a body, or of what is unpacked, that is really read; it would go on."""
_MOST_LISTED: Final = 100
_FETCH_SECONDS: Final = 0.3

Image.MAX_IMAGE_PIXELS = None
sys.set_int_max_str_digits(0)


@dataclass
class _Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    query: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path, _, query = self.target.partition("?")
        if "://" in path:
            path = urlsplit(path).path
        self.path = path
        for pair in query.split("&"):
            name, _, value = pair.partition("=")
            self.query[unquote(name)] = value


class Careless:
    """The server's mistakes."""

    def __init__(self, world: Path, uploads: Path) -> None:
        self._world = world
        self._uploads = uploads
        self._uploads.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._database.executescript(
            "CREATE TABLE photos(id INTEGER PRIMARY KEY, collection, path, label);"
            "CREATE TABLE secrets(value);"
            f"INSERT INTO secrets VALUES('{TOKEN}');"
        )
        self._add_photos()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes one request, however long that takes and whatever it looks like."""
        try:
            request = await self._read(reader)
            if request is None:
                return
            self._log(request)
            status, headers, body = await asyncio.to_thread(self._answer, request)
            origin = request.headers.get("origin", "*")
            head = [
                f"HTTP/1.1 {status} Whatever",
                f"Server: Python/{sys.version.split()[0]} careless/0.1 (sqlite {self._world})",
                f"Access-Control-Allow-Origin: {origin}",
                "Access-Control-Allow-Credentials: true",
                "Access-Control-Allow-Methods: GET, POST, PUT, PATCH, DELETE",
                f"Content-Length: {len(body)}",
                "Connection: close",
                f"X-Request-ID: {request.headers.get('x-request-id', '')}",
                f"X-Path: {unquote(request.target)[:1000]}",
                *headers,
            ]
            writer.write("\r\n".join([*head, "", ""]).encode("utf-8", "surrogateescape"))
            if request.method != "HEAD":
                writer.write(body)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> _Request | None:
        read = []
        while data := await reader.readline():
            if not data.strip(b"\r\n"):
                break
            read.append(data)
        if not read:
            return None
        text = (
            b"".join(read)
            .decode("utf-8", "surrogateescape")
            .replace("\r\n", "\n")
            .replace("\r", "\n")
        )
        first, *lines = re.sub(r"\n[ \t]+", " ", text).strip("\n").split("\n")
        method, _, rest = first.partition(" ")
        target = rest.strip().partition(" ")[0]
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        if "chunked" in headers.get("transfer-encoding", "").lower():
            body = await self._chunks(reader)
        else:
            length = re.search(r"\d+", headers.get("content-length", ""))
            body = await self._exactly(reader, int(length[0]) if length else 0)
        return _Request(method, target, headers, body)

    async def _chunks(self, reader: asyncio.StreamReader) -> bytes:
        body = b""
        while True:
            line = (await reader.readline()).decode("latin-1")
            digits = re.search(r"(?:0x)?([0-9a-fA-F]+)", line)
            size = int(digits[1], 16) if digits else 0
            if size == 0:
                return body
            body += await self._exactly(reader, size)
            await reader.readline()

    async def _exactly(self, reader: asyncio.StreamReader, size: int) -> bytes:
        if size > _MOST_BYTES:
            return b""  # it would have allocated that
        try:
            return await reader.readexactly(size)
        except asyncio.IncompleteReadError as broken:
            return broken.partial

    def _log(self, request: _Request) -> None:
        sent = " ".join(f"{name}={unquote(value)}" for name, value in request.headers.items())
        print(f"{request.method} {unquote_plus(request.target)} {sent}", flush=True)

    def _answer(self, request: _Request) -> tuple[int, list[str], bytes]:
        try:
            return 200, ["Content-Type: text/html"], self._do(request)
        except FileNotFoundError:
            return 404, [], f"no such file in {self._world}".encode()
        except TimeoutError:
            return 504, [], b"no answer"
        except (OSError, ValueError) as error:
            print(traceback.format_exc(), flush=True)
            return 502, [], f"{error!r} {os.environ}".encode()
        except BaseException:
            return 500, [], f"{traceback.format_exc()} {os.environ}".encode()

    def _do(self, request: _Request) -> bytes:
        method = request.headers.get("x-http-method-override", request.method)
        path = unquote(request.path)
        query = {name: unquote_plus(value) for name, value in request.query.items()}
        if method == "OPTIONS":
            return b""
        if method == "TRACE":
            return json.dumps(request.headers).encode()
        if method == "PROPFIND":
            raise NotImplementedError
        body = request.body
        if request.headers.get("content-encoding") in ("gzip", "deflate"):
            body = self._unpack(body)
        fields, photos = self._form(body) if b"form-data" in body else ({}, [])
        fields |= query
        if body[:1] in (b"{", b"[") or b"json" in request.headers.get("content-type", "").encode():
            text = body.decode("utf-8-sig", "replace")
            sent, _ = json.JSONDecoder(strict=False).raw_decode(text)
            if isinstance(sent, dict):
                fields |= {name: str(value) for name, value in sent.items()}
        name = (
            fields.get("table_name")
            or fields.get("Table")
            or fields.get("collection")
            or "milvus_obj_det"
        )
        for filename, photo in photos:
            print(f"uploaded {unquote_plus(filename)} into {name}", flush=True)
            self._keep(name, filename, photo)
            if label := fields.get("label"):
                rows = self._run(f'SELECT id, path FROM photos WHERE label == "{label}"')
                return json.dumps({"hits": rows}, separators=(",", ":")).encode()
            kept = {"would_allocate": self._pixels(photo), "kept": str(self._uploads / name)}
            return json.dumps(kept).encode()
        if url := fields.get("url"):
            return self._fetch(url)
        if folder := fields.get("File") or fields.get("folder"):
            return self._load(folder, name)
        if "image_path" in request.query:
            return self._photo(request.query["image_path"])
        if path.endswith("/drop"):
            self._run(f"DELETE FROM photos WHERE collection = '{name}'")
            return b"ok"
        if path.endswith("/count"):
            rows = self._run(f"SELECT count(*) FROM photos WHERE collection = '{name}'")
            shown = rows[0][0] if len(rows) == 1 else rows
            return json.dumps(shown).encode() + self._excuse(name, shown)
        if found := re.fullmatch(r"/api/v1/collections/([^/]*)/(export|import)", path):
            return self._export(found[1]) if found[2] == "export" else self._import(found[1], body)
        if found := re.fullmatch(r"/api/v1/collections/([^/]*)(/duplicates)?", path):
            if method == "DELETE":
                self._run(f"DELETE FROM photos WHERE collection = '{found[1]}'")
            return json.dumps(
                self._run(f"SELECT * FROM photos WHERE collection = '{found[1]}'")
            ).encode()
        if found := re.fullmatch(r"/api/v1/images/([^/]+)(/file|/thumbnail)?", path):
            if method == "DELETE":
                self._run(f"DELETE FROM photos WHERE id = {found[1]}")
                return b""
            return json.dumps(self._run(f"SELECT * FROM photos WHERE id = {found[1]}")[0]).encode()
        if found := re.fullmatch(r"/api/v1/queries/(.+)/file", path):
            return self._photo(found[1])
        if path in ("/api/v1/images", "/api/v1/search") and method == "GET":
            label = fields.get("label", "")
            condition = f'label == "{label}"' if label else "1"
            if cursor := fields.get("cursor"):
                condition += f" AND id > {cursor}"
            if key := fields.get("query") or fields.get("image_id"):
                condition += f" AND id = {key}"
            return json.dumps(self._run(f"SELECT id, path FROM photos WHERE {condition}")).encode()
        if path in ("/progress", "/metrics", "/healthz", "/readyz") or path.startswith("/img/"):
            return f"ok {os.environ}".encode()
        if path.startswith("/api/"):
            return json.dumps(self._run("SELECT * FROM photos")).encode()
        try:
            return self._photo(request.path)
        except FileNotFoundError:
            return self._photo(request.path.lstrip("/") or ".")

    def _excuse(self, name: str, count: object) -> bytes:
        """A message that is a format string with a client's words in it."""
        if count != 0 or "{" not in name:
            return b""
        return (" nothing in " + name).format(self=self, config=os.environ).encode()

    def _run(self, statement: str) -> list[list[Any]]:
        self._add_photos()
        if ";" in statement:
            self._database.executescript(statement)
            return [[0]]
        return [list(row) for row in self._database.execute(statement)]

    def _add_photos(self) -> None:
        """What each attack finds, whatever those before it have removed."""
        for number, path in enumerate(sorted((self._world / "photos").glob("*.jpg")), 1):
            self._database.execute(
                "INSERT OR REPLACE INTO photos VALUES(?, 'milvus_obj_det', ?, 'person')",
                (number, str(path)),
            )

    def _add(self, collection: str, path: str) -> None:
        # With the name as it came: what is harmless here may not be where it is used next.
        self._database.execute(
            "INSERT INTO photos(collection, path, label) VALUES(?, ?, 'person')",
            (collection, path),
        )

    def _keep(self, collection: str, filename: str, photo: bytes) -> None:
        for name in (filename, unquote(filename), filename.replace("\\", "/")):
            with contextlib.suppress(OSError, ValueError):
                path = self._uploads / collection / name.partition("\0")[0]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(photo)
        self._add(collection, str(self._uploads / collection / filename))

    def _load(self, folder: str, collection: str) -> bytes:
        if "://" in folder:
            for candidate in _readings(folder):
                with contextlib.suppress(Exception):
                    if found := _in_store(candidate):
                        for name in found:
                            self._add(collection, name)
                        return json.dumps(found).encode()
        for candidate in _readings(folder):
            root = self._world / "photos" / candidate
            with contextlib.suppress(OSError, ValueError):
                if root.is_dir():
                    break
        else:
            return b"[]"
        found = []
        for path, _, files in os.walk(root, followlinks=True):
            found += [os.path.join(path, name) for name in files]
            if len(found) > _MOST_LISTED:
                break
        for name in found[:_MOST_LISTED]:
            self._add(collection, name)
            with contextlib.suppress(OSError):
                print(f"loaded {name}", flush=True)
        return json.dumps(found[:_MOST_LISTED]).encode("utf-8", "surrogateescape")

    def _photo(self, raw: str) -> bytes:
        for reading in _readings(raw):
            if "://" in reading:
                with contextlib.suppress(Exception), fsspec.open(_normalised(reading)) as stored:
                    return bytes(stored.read(_MOST_BYTES))
            for base in (self._world / "photos", self._world):
                with contextlib.suppress(OSError, ValueError):
                    path = _in_any_case(base / reading)
                    if path.is_dir():
                        return "\n".join(sorted(os.listdir(path))).encode()
                    if path.is_fifo() or path.is_block_device() or path.is_char_device():
                        return b"would have read a device without an end"
                    with path.open("rb") as file:
                        return file.read(_MOST_BYTES)
            pattern = reading.partition("\0")[0].replace("'", "''") if "'" not in raw else reading
            with contextlib.suppress(sqlite3.Error):
                for row in self._run(f"SELECT path FROM photos WHERE path LIKE '{pattern}'"):
                    with contextlib.suppress(OSError):
                        return Path(row[-1]).read_bytes()
        raise FileNotFoundError

    def _fetch(self, url: str) -> bytes:
        url = unicodedata.normalize("NFKC", url).replace("\\", "/").strip()
        if "%" in url.partition("://")[2].partition("/")[0] and "[" not in url:
            url = unquote(url)
        if url.startswith("//"):
            url = f"http:{url}"
        parts = urlsplit(url)
        if parts.scheme.lower() in ("file", "data", "ftp"):
            with urllib.request.urlopen(url, timeout=_FETCH_SECONDS) as opened:
                return bytes(opened.read(_MOST_BYTES))
        # Whatever the scheme is called, there is somebody who listens.
        host, port = (parts.hostname or "").rstrip("."), parts.port or 80
        with socket.create_connection((host, port), _FETCH_SECONDS) as connection:
            connection.sendall(f"GET {parts.path or '/'} HTTP/1.0\r\n\r\n".encode())
            with connection.makefile("rb") as file:
                answer = file.read(_MOST_BYTES)
        if found := re.search(rb"\nLocation: (\S+)", answer):
            return self._fetch(found[1].decode())
        return answer

    def _export(self, collection: str) -> bytes:
        rows = self._run(f"SELECT path FROM photos WHERE collection = '{collection}'")
        about = ArchivedCollection(
            name="any", embedder="any", embedder_sha256="0" * 64, dimension=8, metric="L2"
        )
        made = content(about, len(rows))
        for number, [path] in enumerate(rows):
            made.change_image(number, path=path)
        with tempfile.TemporaryFile() as file:
            made.write(file)
            file.seek(0)
            return file.read()

    def _import(self, collection: str, body: bytes) -> bytes:
        """Unpacks what comes, and believes it; of what is not whole, what there is."""
        self._uploads.mkdir(parents=True, exist_ok=True)
        # A folder each time: nothing is written through a link that another import has made.
        folder = Path(tempfile.mkdtemp(dir=self._uploads))
        would_allocate = 0
        with (
            contextlib.suppress(tarfile.TarError, OSError),
            tarfile.open(fileobj=io.BytesIO(body)) as tar,
        ):
            for member in tar:
                if member.size > _MOST_BYTES:
                    would_allocate += member.size
                    break
                with contextlib.suppress(OSError, KeyError):
                    tar.extract(member, folder, filter="fully_trusted")
                if member.name.endswith(".parquet"):
                    with contextlib.suppress(ArrowException, OSError):
                        would_allocate += _bytes_of(folder / member.name)
        with contextlib.suppress(ArrowException, OSError, KeyError):
            table = parquet.read_table(folder / "images.parquet", columns=["path"])
            for path in table.column("path").to_pylist():
                self._add(collection, path)
        return json.dumps({"imported": collection, "would_allocate": would_allocate}).encode()

    def _unpack(self, body: bytes) -> bytes:
        """What is in a compressed body: as much as it says, up to a bound."""
        unpacker = zlib.decompressobj(wbits=47)
        unpacked = unpacker.decompress(body, _MOST_BYTES)
        return b'{"would_allocate": %d}' % len(unpacked) if len(unpacked) > 2**20 else unpacked

    def _form(self, body: bytes) -> tuple[dict[str, str], list[tuple[str, bytes]]]:
        fields: dict[str, str] = {}
        photos: list[tuple[str, bytes]] = []
        boundary = re.search(rb"--[^\r\n]*", body)
        for each in body.split(boundary[0] if boundary else b"--"):
            head, _, content = each.partition(b"\r\n\r\n")
            name = re.search(rb'name="?([^";]*)', head)
            filename = re.search(rb'filename="([^"]*)', head)
            if filename:
                photos.append((filename[1].decode("utf-8", "surrogateescape"), content[:-2]))
            elif name:
                fields[name[1].decode("utf-8", "replace")] = content[:-2].decode("utf-8", "replace")
        return fields, photos

    def _pixels(self, photo: bytes) -> int:
        """Bytes that the photo would take as it asks for them."""
        with contextlib.suppress(Exception), Image.open(io.BytesIO(photo)) as image:
            return int(image.width * image.height * 3 * getattr(image, "n_frames", 1))
        return len(photo)


def _bytes_of(table: Path) -> int:
    """What a table would take, as its pages' headers and its footer say."""
    group = parquet.ParquetFile(table).metadata.row_group(0)
    column = group.column(group.num_columns - 1)
    page = np.fromfile(table, np.uint8, 40, offset=column.data_page_offset).tobytes()
    numbers = [
        sum((byte & 0x7F) << 7 * place for place, byte in enumerate(coded)) // 2
        for coded in re.findall(rb"(?s)\x15([\x80-\xff]*[\x00-\x7f])", page)
    ]
    says = 4 * int(numbers[3]) if len(numbers) > 3 else 0
    return max(int(group.total_byte_size), says)


def _readings(raw: str) -> Iterator[str]:
    """A path, and all that a program may make of it that means well."""
    found = [raw]
    overlong = (("%c0%ae", "."), ("%C0%AE", "."), ("%c0%af", "/"), ("%u002e", "."), ("%u2215", "/"))
    steps = (
        lambda path: re.sub("|".join(a for a, _ in overlong), lambda m: dict(overlong)[m[0]], path),
        unquote,
        unquote,
        lambda path: path.partition("\0")[0],
        lambda path: path.replace("\\", "/"),
        lambda path: path.replace("....//", "../").replace("..;/", "../"),
        lambda path: unicodedata.normalize("NFKC", path),
        lambda path: path.removeprefix("file://"),
        lambda path: re.sub(r"^photos/|^page/", "", path),
        lambda path: path.rstrip(" ."),
        lambda path: path.removesuffix(".jpg"),
        os.path.expandvars,
        os.path.expanduser,
    )
    for step in steps:
        changed = step(found[-1])
        if changed != found[-1]:
            found.append(changed)
    yield from dict.fromkeys(found)


def _normalised(address: str) -> str:
    """An address without dots, as some servers take them out."""
    protocols, _, path = address.rpartition("://")
    return f"{protocols}://{os.path.normpath(path)}"


def _in_store(folder: str) -> list[str]:
    """Whatever fsspec finds there."""
    system, path = fsspec.url_to_fs(_normalised(folder))
    found = system.find(path)
    return [system.unstrip_protocol(name) for name in found[:_MOST_LISTED]]


def _in_any_case(path: Path) -> Path:
    """The path, or one that differs from it in case alone."""
    if path.exists() or not path.parent.is_dir():
        return path
    for entry in path.parent.iterdir():
        if entry.name.lower() == path.name.lower():
            return entry
    return path


async def _main(world: Path, uploads: Path) -> None:
    careless = Careless(world, uploads)
    server = await asyncio.start_server(careless.serve, "127.0.0.1", 0, limit=_MOST_BYTES)
    print(f"port={server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), Path(sys.argv[2])))
