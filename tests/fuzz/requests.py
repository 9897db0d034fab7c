"""Changed requests to the whole service: each is answered, or its connection closed."""

import http.client
import json
import random
import re
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psutil

from backend.http.access import SESSION_COOKIE
from tests.fuzz.mutations import blind
from tests.photos import draw_photo, encode, write_photos
from tests.service import Service, resident_bytes, start

__all__ = ["MOST_GROWTH", "RequestsReport", "fuzz_requests", "good_requests"]

MOST_GROWTH: Final = 192 * 2**20
"""Bytes by which the service and its processes may have grown after the first tenth: processes that
decode photos, caches that fill, collections that have come into being, and above all what Milvus
Lite keeps of those that have gone, imported ones among them, until it tidies up: it took 235 MiB
after 1,200 requests, 304 after 3,600, 170 after 6,000 and as much after 12,000."""
_SECONDS: Final = 0.4
"""After which a request that may not be whole is given up: the service would wait for the rest."""
_LONG_SECONDS: Final = 60.0
"""After which one that is whole should have been answered, however busy the machine."""
_FRAMING: Final = ("Content-Length", "Transfer-Encoding", "Expect", "Upgrade", "Connection")
"""Headers that change where a request ends."""
_THREADS: Final = 8
_BOUNDARY: Final = "fuzz"
_VALUES: Final = (
    "",
    "0",
    "-1",
    "1",
    "99999999999999999999",
    "1e309",
    "NaN",
    "true",
    "null",
    "'",
    '"',
    "%00",
    "%ff",
    "%",
    "../",
    "{}",
    "[]",
    "a" * 5000,
    "\u0661",
    "\u202e",
    "\ud800",
    "%0d%0aX: y",
    "a;b",
)
_HEADERS: Final = (
    "Content-Length: 0",
    "Content-Length: -1",
    "Content-Length: 99999999999",
    "Content-Type: text/plain",
    "Content-Type: application/json",
    "Transfer-Encoding: chunked",
    "Content-Encoding: gzip",
    "Content-Encoding: br",
    "Expect: 100-continue",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Range: bytes=0-0",
    "If-None-Match: *",
    "Origin: null",
    "Accept-Encoding: gzip;q=x",
    "Idempotency-Key: a",
    "X-Request-ID: \x7f",
    "Cookie: a=b",
    "Sec-Fetch-Site: none",
    "traceparent: 00-0-0-0",
)


@dataclass
class RequestsReport:
    """What has become of the requests.

    Attributes:
        answers: by status; 0 where the connection was closed, -1 where the service waited for more.
        growth: bytes of memory, since a tenth was done.
    """

    answers: Counter[int] = field(default_factory=Counter)
    growth: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Request:
    method: str
    target: str
    headers: Sequence[str] = ()
    body: bytes = b""


def fuzz_requests(
    count: int, seed: int, tell: Callable[[str], None] = lambda line: None
) -> RequestsReport:
    """Sends so many changed requests to a service of their own.

    Raises:
        AssertionError: one was answered with a 5xx, or broke something; the service ended, has
            grown by more than MOST_GROWTH, does not do its work any more, or a file was left.
    """
    draw = random.Random(seed)
    report = RequestsReport()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        temporary = folder / "tmp"
        temporary.mkdir()
        photos = write_photos(folder / "photos", 6)
        flags = ("--allowed-roots", str(folder / "photos"), "--url-fetch", "false")
        prefix = ("env", f"TMPDIR={temporary}")
        service = start(folder, flags, folder / "data", prefix)
        try:
            assert service.load(folder / "photos").status_code == 200
            good = good_requests(folder / "photos", photos[0], _export(service))
            there = _files(temporary)  # Milvus Lite's logs
            before = 0
            done = 0
            lock = threading.Lock()

            def send(changed: tuple[bytes, bool]) -> None:
                data, whole = changed
                status = _answer(service, data, _LONG_SECONDS if whole else _SECONDS)
                with lock:
                    report.answers[status] += 1
                assert status < 500, f"{status} to {data[:2000]!r}"
                assert status >= 0 or not whole, f"no answer to {data[:2000]!r}"

            with ThreadPoolExecutor(_THREADS) as threads:
                while done < count:
                    size = min(max(1, count // 10), count - done)
                    list(threads.map(send, [_changed(draw, good) for _ in range(size)]))
                    done += size
                    before = before or resident_bytes(service.process.pid)
                    tell(f"{done} requests, {dict(report.answers)}")
            report.growth = resident_bytes(service.process.pid) - before
            left = _files(temporary) - there
            assert not left, f"files were left: {left}"
            _check(service, folder, photos)
        finally:
            service.stop()
    report.seconds = time.monotonic() - begun
    assert report.growth <= MOST_GROWTH, f"memory has grown by {report.growth} bytes"
    return report


def _export(service: Service) -> bytes:
    with service.get("/api/v1/collections/milvus_obj_det/export") as answer:
        assert answer.status_code == 200, answer.text
        return answer.content


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def _check(service: Service, folder: Path, photos: Sequence[Path]) -> None:
    """The service is as good as new, and nothing of what was sent is left."""
    log = service.log.read_text("utf-8", "replace")
    assert service.process.poll() is None, log[-4000:]
    # Also of those whose client has not waited for the answer.
    broken = [
        line for line in log.splitlines() if re.search(r" event=request\.broke | status=5", line)
    ]
    assert not broken, broken[:3]
    for collection in service.get("/api/v1/collections").json()["items"]:
        answer = service.post("/img/drop", params={"table_name": collection["name"]})
        assert answer.status_code == 200, answer.text
    uploads = _files(folder / "data" / "uploads")
    assert not uploads, f"files were left: {uploads}"
    assert service.load(folder / "photos").status_code == 200
    assert service.count() == len(photos)
    [nearest, distance] = service.search(photos[0].read_bytes()).json()[0]
    assert (nearest, distance < 1e-3) == (str(photos[0]), True)
    # Whoever was given up has gone: nothing is kept for them.
    process = psutil.Process(service.process.pid)
    end = time.monotonic() + 30
    while _open_connections(process) > 1:
        assert time.monotonic() < end, "connections are kept that nobody uses"
        time.sleep(0.2)


def _open_connections(process: psutil.Process) -> int:
    return sum(each.status == "ESTABLISHED" for each in process.net_connections("tcp"))


def _answer(service: Service, data: bytes, seconds: float) -> int:
    """The status; the rest of the answer is left: events, for one, come as long as a load runs."""
    parts = urlsplit(service.url)
    with socket.create_connection((parts.hostname, parts.port or 0), 30) as connection:
        with suppress(OSError):  # it may have answered, and closed, before the end
            connection.sendall(data)
        connection.settimeout(seconds)
        response = http.client.HTTPResponse(connection)
        try:
            response.begin()
        except TimeoutError:
            return -1
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            response.close()
        return response.status


def good_requests(folder: Path, photo: Path, export: bytes) -> list[_Request]:
    """Requests to every endpoint that are right: of a folder of photos, one of these, an export."""
    image = encode(draw_photo(1))
    json_type = ("Content-Type: application/json",)
    form_type = (f"Content-Type: multipart/form-data; boundary={_BOUNDARY}",)
    form = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="topk"\r\n\r\n3\r\n'
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    ).encode() + image
    form += f"\r\n--{_BOUNDARY}--\r\n".encode()
    only = form[form.index(b"\r\n--fuzz\r\n") + 2 :]
    load = json.dumps({"File": str(folder), "Table": "fuzzed"}).encode()
    new_load = json.dumps({"folder": str(folder), "collection": "fuzzed", "prune": False}).encode()
    path = str(photo).replace(" ", "%20")
    return [
        _Request("POST", "/img/search?table_name=milvus_obj_det", form_type, form),
        _Request("POST", "/img/upload?table_name=fuzzed", form_type, form),
        _Request("POST", "/img/upload?url=http://127.0.0.1/a.jpg"),
        _Request("POST", "/img/load?wait=false", json_type, load),
        _Request("POST", "/img/count?table_name=fuzzed"),
        _Request("POST", "/img/drop?table_name=fuzzed"),
        _Request("GET", f"/data?image_path={path}"),
        _Request("GET", "/progress"),
        _Request("POST", "/api/v1/search?top_k=3&label=person&min_score=0.1", form_type, only),
        _Request("POST", "/api/v1/search", json_type, b'{"url": "http://127.0.0.1/a.jpg"}'),
        _Request("POST", "/api/v1/search/batch?top_k=3", form_type, only),
        _Request("POST", "/api/v1/detect", form_type, only),
        _Request("GET", "/api/v1/search?image_id=1&match=all&group_by=image&max_distance=2"),
        _Request("GET", "/api/v1/search?object_id=1&region=1,2,30,40"),
        _Request(
            "POST", "/api/v1/images?collection=fuzzed", (*form_type, "Idempotency-Key: k"), only
        ),
        _Request("GET", "/api/v1/images?limit=3&label=person&state=indexed"),
        _Request("GET", "/api/v1/images/1"),
        _Request("GET", "/api/v1/images/1/file"),
        _Request("GET", "/api/v1/images/1/thumbnail?size=128"),
        _Request("GET", "/api/v1/images/1/duplicates?max_bits=4&max_distance=0.5"),
        _Request("DELETE", "/api/v1/images/99999"),
        _Request("POST", "/api/v1/loads", json_type, new_load),
        _Request("GET", "/api/v1/loads?limit=2"),
        _Request("GET", "/api/v1/loads/1"),
        _Request("GET", "/api/v1/loads/1/events"),
        _Request("POST", "/api/v1/loads/1/cancel"),
        _Request("POST", "/api/v1/loads/1/resume"),
        _Request("POST", "/api/v1/collections", json_type, b'{"name": "fuzzed"}'),
        _Request("GET", "/api/v1/collections"),
        _Request("GET", "/api/v1/collections/milvus_obj_det"),
        _Request("GET", "/api/v1/collections/milvus_obj_det/duplicates?limit=2"),
        _Request("GET", "/api/v1/collections/milvus_obj_det/export?photos=true"),
        _Request(
            "POST",
            "/api/v1/collections/imported/import?replace=true",
            ("Content-Type: application/x-tar",),
            export,
        ),
        _Request("DELETE", "/api/v1/collections/fuzzed"),
        _Request("POST", "/api/v1/session"),
        _Request("DELETE", "/api/v1/session", (f"Cookie: {SESSION_COOKIE}={'a' * 43}",)),
        _Request("GET", "/api/v1/info"),
        _Request("GET", f"/api/v1/queries/{'0' * 64}/file"),
        _Request("GET", "/healthz"),
        _Request("GET", "/readyz"),
        _Request("GET", "/metrics"),
        _Request("GET", "/openapi.json"),
        _Request("GET", "/docs"),
        _Request("GET", "/docs/"),
        _Request("GET", "/docs/swagger.json"),
        _Request("GET", "/docs/static/swagger-ui.css"),
        _Request("GET", "/"),
        _Request("GET", "/page/main.js", ("Accept-Encoding: gzip",)),
        _Request(
            "OPTIONS",
            "/img/load",
            ("Origin: http://127.0.0.1", "Access-Control-Request-Method: POST"),
        ),
    ]


def _changed(draw: random.Random, good: Sequence[_Request]) -> tuple[bytes, bool]:
    """A request with something wrong, or nothing, and whether it surely has its end.

    Most of what is tried is almost right.
    """
    request = draw.choice(good)
    method, target, headers, body = (
        request.method,
        request.target,
        list(request.headers),
        request.body,
    )
    length: object = None
    raw = False
    for _ in range(draw.choice((1, 1, 2, 3))):
        match draw.randrange(9):
            case 0:
                target = _change_query(draw, target)
            case 1:
                target = _change_path(draw, target)
            case 2:
                method = draw.choice(
                    ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "X")
                )
            case 3:
                headers.append(draw.choice(_HEADERS))
            case 4 if headers:
                headers.insert(0, draw.choice(headers))
            case 5 if body:
                _, body = blind(draw, body)
            case 6 if body[:1] == b"{":
                body = _change_json(draw, body)
            case 7 if body:
                body = body.replace(b"image", draw.choice((b"", b"url", b"\xff", b"topk")), 1)
            case 8:
                if draw.random() < 0.3:
                    length = draw.choice((0, 1, len(body) - 1, len(body) + 1, 10**9, -1, "x"))
                raw = draw.random() < 0.3
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *headers]
    if body or length is not None:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    head = "\r\n".join([*lines, "Connection: close", "", ""]).encode("utf-8", "surrogatepass")
    if raw:
        _, head = blind(draw, head)
    framed = length is not None or any(header.startswith(_FRAMING) for header in headers)
    return head + body, not (raw or framed)


def _change_query(draw: random.Random, target: str) -> str:
    path, _, query = target.partition("?")
    pairs = query.split("&")
    index = draw.randrange(len(pairs))
    name, _, _ = pairs[index].partition("=")
    value = re.sub(r"[\s#]", "", draw.choice(_VALUES))
    match draw.randrange(3):
        case 0:
            pairs[index] = f"{name}={value}"
        case 1:
            pairs.append(pairs[index])
        case 2:
            pairs.append(f"{draw.choice(('cursor', 'limit', 'x', 'label', 'wait', ''))}={value}")
    return f"{path}?{'&'.join(pairs)}"


def _change_path(draw: random.Random, target: str) -> str:
    path, mark, query = target.partition("?")
    parts = path.split("/")
    parts[draw.randrange(1, len(parts))] = re.sub(r"[\s#?]", "", draw.choice(_VALUES))
    return "/".join(parts) + mark + query


def _change_json(draw: random.Random, body: bytes) -> bytes:
    try:
        value = json.loads(body)
    except ValueError:
        return body
    if not isinstance(value, dict) or not value:
        return body
    name = draw.choice(list(value))
    odd: list[object] = [None, 0, -1, 2**70, 1e308, "", "\0", "a" * 5000, [], {}, [[[]]], True]
    match draw.randrange(4):
        case 0 if name not in ("File", "folder"):
            value[name] = draw.choice(odd)
        case 1:
            del value[name]
        case 2:
            value[draw.choice(("x", "__proto__", "", "\u0661"))] = draw.choice(odd)
        case 3:
            return body[:-1] + b"," + body[1:]
    return json.dumps(value).encode()
