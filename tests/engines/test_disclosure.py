"""Nothing that a client is told, and nothing that the service prints, tells what it should not.

A service with the three engines of production, which are taken from it one after the other, and
with a secret wherever one can be set, is asked for everything that can go wrong.
"""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.engines.mariadb import MariaDBProcess
from tests.engines.milvus import MilvusProcess
from tests.engines.production import Engines
from tests.engines.relay import Relay
from tests.engines.triton import TritonProcess
from tests.photos import draw_photo, encode, write_photos
from tests.service import REPOSITORY, SMALL_PAIR, Service, as_flags, launch, start
from tests.test_tracing import Collector

pytestmark = pytest.mark.timeout(300)

ENGINES = ("triton", "milvus", "mysql")
TOKEN = "svc:hunter2-milvus"
COLLECTOR = "hunter2-collector"
HEADERS = "hunter2-otlp"
SECRETS = ["hunter2", "hunter2-milvus", MariaDBProcess.password, 'pass"word', "pass%22word"]
TABLE = "steady"
_STACK = re.compile(
    r"Traceback|File \"|\.py\b|site-packages|0x[0-9a-f]{6,}|\b(?:SELECT|INSERT|UPDATE|DELETE) \w"
    r"|sqlalchemy|pymysql|aiomysql|pymilvus|grpc\.|StatusCode|Errno|errno|DNS|ipv4:"
)
"""What only an error of the inside says."""


@dataclass(frozen=True)
class Subject:
    """A service under test, the ways to its engines, and all that must not be told of them."""

    service: Service
    relays: Mapping[str, Relay]
    collector: Collector
    folder: Path
    private: list[str]


@pytest.fixture(scope="module")
def subject(
    tmp_path_factory: pytest.TempPathFactory,
    triton_server: TritonProcess,
    milvus_server: MilvusProcess,
    mysql_server: MariaDBProcess,
) -> Iterator[Subject]:
    """A service that comes to each engine through a relay."""
    servers: dict[str, TritonProcess | MilvusProcess | MariaDBProcess] = {
        "triton": triton_server,
        "milvus": milvus_server,
        "mysql": mysql_server,
    }
    milvus_server.start_if_given_up()
    engines = Engines(servers)
    settings = engines.settings()
    folder = tmp_path_factory.mktemp("disclosure")
    with ExitStack() as stack:
        relays = {}
        for name, server in servers.items():
            host, port = _address(server)
            relays[name] = Relay(host, port)
            stack.callback(relays[name].close)
        collector = Collector()
        stack.callback(collector.close)
        stack.callback(engines.forget, settings)
        settings |= {
            "triton_url": f"127.0.0.1:{relays['triton'].port}",
            "milvus_port": str(relays["milvus"].port),
            "mysql_port": str(relays["mysql"].port),
            "milvus_token": TOKEN,
            "otel_exporter_otlp_endpoint": collector.url.replace("//", f"//svc:{COLLECTOR}@"),
            "url_fetch": "true",
            "request_timeout": "4",
            "engine_timeout": "20",
            "log_level": "DEBUG",
        }
        stack.enter_context(pytest.MonkeyPatch.context()).setenv(
            "OTEL_EXPORTER_OTLP_HEADERS", f"api-key={HEADERS}"
        )
        service = start(folder, as_flags(settings), folder / "data")
        stack.callback(service.stop)
        write_photos(folder / "photos", 4)
        body = {"File": str(folder / "photos"), "Table": TABLE}
        loaded = service.post("/img/load", json=body)
        assert loaded.status_code == 200, loaded.text
        private = [
            *SECRETS,
            *(str(folder), str(REPOSITORY), sys.prefix, str(Path.home())),
            *(f":{relay.port}" for relay in relays.values()),
            *(f", {relay.port}" for relay in relays.values()),
            settings["mysql_db"],
            f"127.0.0.1:{collector.url.rpartition(':')[2]}",
        ]
        yield Subject(service, relays, collector, folder, private)


def _address(server: TritonProcess | MilvusProcess | MariaDBProcess) -> tuple[str, int]:
    if isinstance(server, TritonProcess):
        host, _, port = server.address.rpartition(":")
        return host, int(port)
    return server.host, server.port


_photo = {"image": ("a.jpg", encode(draw_photo(1)))}
_other = {"image": ("b.jpg", encode(draw_photo(10**7)))}
_bad = {"image": ("b.jpg", b"\xff\xd8\xff no photo")}

REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/progress", {}),
    ("GET", "/readyz", {}),
    ("GET", "/metrics", {}),
    ("POST", "/img/count", {"params": {"table_name": TABLE}}),
    ("POST", "/img/count", {"params": {"table_name": "no name"}}),
    ("POST", "/img/search", {"params": {"table_name": TABLE}, "files": _photo}),
    ("POST", "/img/search", {"files": _bad}),
    ("POST", "/img/search", {"data": b"x", "headers": {"Content-Type": "multipart/form-data"}}),
    ("POST", "/img/upload", {"params": {"table_name": TABLE}, "files": _other}),
    ("POST", "/img/upload", {"params": {"url": "http://127.0.0.1/a.jpg"}}),
    ("POST", "/img/upload", {"params": {"url": "http://localhost/a.jpg"}}),
    ("POST", "/img/load", {"json": {"File": "nowhere"}}),
    ("POST", "/img/load", {"json": {"File": "~nobody/photos"}}),
    ("POST", "/img/load", {"json": {"File": "pyproject.toml"}}),
    ("POST", "/img/load", {"data": b"{"}),
    ("POST", "/img/drop", {"params": {"table_name": "nothing"}}),
    ("GET", "/data", {"params": {"image_path": "../../etc/passwd"}}),
    ("GET", "/data", {"params": {"image_path": "\0"}}),
    ("GET", "/api/v1/info", {}),
    ("GET", "/api/v1/collections", {}),
    ("GET", f"/api/v1/collections/{TABLE}", {}),
    ("GET", f"/api/v1/collections/{TABLE}/duplicates", {}),
    ("DELETE", "/api/v1/collections/nothing", {}),
    ("POST", "/api/v1/collections", {"json": {"name": "made"}}),
    ("POST", "/api/v1/collections", {"json": {"name": "no name"}}),
    ("GET", "/api/v1/images", {"params": {"collection": TABLE, "label": "' OR 1=1 --"}}),
    ("GET", "/api/v1/images", {"params": {"cursor": "AAAA"}}),
    ("GET", "/api/v1/images/1", {}),
    ("GET", "/api/v1/images/1/file", {}),
    ("GET", "/api/v1/images/1/thumbnail", {}),
    ("GET", "/api/v1/images/1/duplicates", {}),
    ("DELETE", "/api/v1/images/999999", {}),
    ("POST", "/api/v1/images", {"params": {"collection": TABLE}, "files": _other}),
    ("POST", "/api/v1/images", {"json": {"url": "http://169.254.169.254/latest"}}),
    (
        "POST",
        "/api/v1/images",
        {"json": {"url": "http://nowhere.invalid/a"}, "headers": {"Idempotency-Key": "k"}},
    ),
    ("POST", "/api/v1/search", {"params": {"collection": TABLE}, "files": _photo}),
    ("POST", "/api/v1/search", {"params": {"label": "a\rb", "collection": TABLE}, "files": _photo}),
    ("POST", "/api/v1/search/batch", {"params": {"collection": TABLE}, "files": _photo}),
    ("GET", "/api/v1/search", {"params": {"image_id": "1", "collection": TABLE}}),
    ("GET", "/api/v1/search", {"params": {"image_id": "1", "region": "0,0,20,20"}}),
    ("GET", "/api/v1/search", {"params": {"query": "0" * 64}}),
    ("POST", "/api/v1/detect", {"files": _other}),
    ("GET", "/api/v1/loads", {}),
    ("GET", "/api/v1/loads/1", {}),
    ("POST", "/api/v1/loads", {"json": {"folder": "nowhere", "collection": TABLE}}),
    ("POST", "/api/v1/loads/99/resume", {}),
    ("GET", "/api/v1/loads/99/events", {}),
    ("GET", "/nowhere", {}),
    ("DELETE", "/img/search", {}),
]


def _ask_for_everything(service: Service) -> list[tuple[str, requests.Response]]:
    def ask(request: tuple[str, str, dict[str, Any]]) -> tuple[str, requests.Response]:
        method, path, options = request
        answer = requests.request(method, service.url + path, timeout=60, **options)
        return f"{method} {path} {options.get('params') or options.get('json')}", answer

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(ask, REQUESTS))


@pytest.mark.parametrize("away", [None, *ENGINES])
def test_no_error_tells_what_the_client_did_not_send(subject: Subject, away: str | None) -> None:
    with subject.relays[away].cut() if away else nullcontext():
        answers = _ask_for_everything(subject.service)
    errors = [
        (asked, answer)
        for asked, answer in answers
        if answer.status_code >= 400 or ("/api/" not in asked and "/img/" not in asked)
    ]
    assert len(errors) > 20
    if away:
        assert sum(answer.status_code == 503 for _, answer in errors) >= 4
    for asked, answer in errors:
        told = f"{answer.text}\n{answer.headers}"
        assert answer.status_code in (200, *range(400, 500), 502, 503), (asked, told)
        for private in subject.private:
            assert private not in told, (asked, told)
        assert not _STACK.search(told), (asked, told)


def test_no_error_of_the_disk_tells_where_it_is(subject: Subject) -> None:
    service, uploads = subject.service, subject.folder / "data" / "uploads"
    photos = sorted((subject.folder / "photos").iterdir())
    ids = {
        each["path"]: each["id"]
        for each in service.get(f"/api/v1/images?collection={TABLE}").json()["items"]
    }
    gone, changed, pipe = photos[:3]
    gone.unlink()
    changed.write_bytes(encode(draw_photo(77)))
    pipe.write_bytes(b"no photo any more")
    kept = uploads.with_name("uploads-kept")
    uploads.rename(kept)
    uploads.write_bytes(b"in the way")
    try:
        answers = [service.post("/img/upload", files={"image": encode(draw_photo(78))})]
    finally:
        uploads.unlink()
        kept.rename(uploads)
    assert answers[0].status_code == 500
    for path in (gone, changed, pipe):
        image = f"/api/v1/images/{ids[str(path)]}"
        answers += [service.get(f"{image}/file"), service.get(f"{image}/thumbnail")]
        where = {"image_id": ids[str(path)], "region": "0,0,20,20"}
        answers.append(service.get("/api/v1/search", params=where))
    assert sum(answer.status_code == 404 for answer in answers) >= 7
    for answer in answers:
        if answer.status_code >= 400:
            for private in subject.private:
                assert private not in answer.text
            assert not _STACK.search(answer.text), answer.text


def test_no_secret_is_printed_or_sent_to_a_collector(subject: Subject) -> None:
    _ask_for_everything(subject.service)
    printed = subject.service.log.read_text("utf-8", "replace")
    assert "event=catalog.failed" in printed or "event=vectors.failed" in printed
    assert printed.count("event=request") > 50
    subject.collector.wait_for("GET /readyz")
    traced = "\n".join(map(str, subject.collector.spans))
    measured = subject.service.get("/metrics").text
    for secret in SECRETS:
        for told in (printed, traced, measured):
            assert secret not in told


def test_every_line_that_is_printed_is_one_of_the_log_s(subject: Subject) -> None:
    for forged in ("/\n", "/%0atime=2026-01-01T00:00:00Z%20level=info", "/%1b[2J", "/%e2%80%ae"):
        subject.service.get(forged)
    for line in subject.service.log.read_bytes().decode().split("\n")[:-1]:
        assert line.startswith("time="), line
        assert line.isprintable(), line


def test_a_start_that_fails_prints_no_secret(
    tmp_path: Path, mysql_server: MariaDBProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"api-key={HEADERS}")
    flags = {
        "mysql_host": mysql_server.host,
        "mysql_port": str(mysql_server.port),
        "mysql_user": "root",
        "mysql_pwd": "hunter2-mysql",
        "milvus_token": TOKEN,
    }
    service = launch(tmp_path, as_flags(flags), tmp_path / "data")
    assert service.process.wait(60) == 2
    printed = service.log.read_text()
    assert "MYSQL_PWD" in printed
    assert "hunter2" not in printed


@pytest.mark.parametrize("arguments", [("serve", "--help"), ("serve", "--port", "x")])
def test_the_command_line_prints_no_secret(arguments: tuple[str, ...]) -> None:
    secrets = {
        "MYSQL_PWD": "hunter2-mysql",
        "MILVUS_TOKEN": TOKEN,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"ftp://svc:{COLLECTOR}@collector",
    }
    done = subprocess.run(
        [sys.executable, "-m", "backend", *arguments],
        cwd=REPOSITORY,
        env={**SMALL_PAIR, **secrets},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == (0 if "--help" in arguments else 2)
    assert "hunter2" not in done.stdout + done.stderr
