"""The command as a process: Locust patches the one that it runs in."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from backend.app import open_keys
from backend.keys import make_key
from backend.settings import Settings
from tests.photos import write_photos
from tests.service import AS_A_USER, REPOSITORY, Service, start

_PHOTOS = 4
_SECONDS = "1"
_TIMEOUT = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "photos", _PHOTOS)[0].parent


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    place = tmp_path_factory.mktemp("service")
    service = start(place, (), place / "data")
    try:
        yield service
    finally:
        service.stop()


@dataclass(frozen=True)
class _Run:
    code: int
    out: str
    error: str
    figures: Any = None


def _command(*arguments: str, prefix: tuple[str, ...] = ()) -> list[str]:
    return [*prefix, sys.executable, "-m", "scripts.load_test", *arguments]


def _run(*arguments: str, prefix: tuple[str, ...] = (), json_file: Path | None = None) -> _Run:
    if json_file is not None:
        arguments = (*arguments, "--json", str(json_file))
    done = subprocess.run(
        _command(*arguments, prefix=prefix),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    figures = None if json_file is None else json.loads(json_file.read_text())
    return _Run(done.returncode, done.stdout, done.stderr, figures)


def _collections(service: Service) -> list[str]:
    return [each["name"] for each in service.get("/api/v1/collections").json()["items"]]


_SEARCHES = {"v1": {"POST /api/v1/search"}, "existing": {"POST /img/search"}}


@pytest.mark.parametrize(
    ("scenario", "api", "expected"),
    [
        ("search", "v1", _SEARCHES["v1"]),
        ("search", "existing", _SEARCHES["existing"]),
        ("search-during-load", "v1", _SEARCHES["v1"]),
        ("search-during-load", "existing", _SEARCHES["existing"]),
        ("uploads", "v1", {"POST /api/v1/images"}),
        ("uploads", "existing", {"POST /img/upload"}),
        ("mixed", "v1", _SEARCHES["v1"]),
        ("mixed", "existing", _SEARCHES["existing"]),
        (
            "existing",
            "existing",
            {"POST /img/search", "GET /progress", "POST /img/count", "GET /data"},
        ),
    ],
)
def test_a_scenario_makes_its_requests_and_leaves_nothing_behind(
    service: Service, folder: Path, tmp_path: Path, scenario: str, api: str, expected: set[str]
) -> None:
    service.post("/api/v1/collections", json={"name": "somebodys"})
    done = _run(
        *(scenario, "--api", api, "--url", service.url, "--photos", str(folder)),
        *("--users", "2", "--seconds", _SECONDS),
        json_file=tmp_path / "figures.json",
    )
    assert done.code == 0, done.out + done.error
    requests = done.figures["requests"]
    assert expected <= set(requests)
    if scenario != "mixed":
        assert expected == set(requests)
    for name, figures in requests.items():
        assert figures["requests"] > 0, name
        assert (figures["errors"], figures["refused"]) == ({}, {})
        assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
        assert name in done.out
    assert done.figures["total"]["requests"] == sum(each["requests"] for each in requests.values())
    assert (done.figures["scenario"], done.figures["api"]) == (scenario, api)
    assert (done.figures["users"], done.figures["photos"]) == (2, _PHOTOS)
    assert (done.figures["steps"], done.figures["knee"]) == ([], None)
    assert (done.figures["loaded"] is not None) == (scenario == "search-during-load")
    assert _collections(service) == ["somebodys"]


def test_steps_tell_where_latency_bends_and_what_is_kept_stays(
    service: Service, folder: Path, tmp_path: Path
) -> None:
    done = _run(
        *("search", "--steps", "--users", "2", "--seconds", "4"),
        *("--collection", "kept", "--keep", "--url", service.url, "--photos", str(folder)),
        json_file=tmp_path / "figures.json",
    )
    assert done.code == 0, done.out + done.error
    assert [step["users"] for step in done.figures["steps"]] == [1, 2]
    assert all(step["rate"] > 0 for step in done.figures["steps"])
    assert done.figures["knee"]["users"] in (1, 2)
    assert "Latency " in done.out
    assert service.count("kept") == _PHOTOS
    service.post("/img/drop", params={"table_name": "kept"})


def test_somebodys_photos_are_used_only_with_keep_and_never_dropped(
    service: Service, folder: Path
) -> None:
    name = {"table_name": "theirs"}
    [photo, *_] = folder.iterdir()
    service.post("/img/upload", params=name, files={"image": photo.read_bytes()})
    here = ("--url", service.url, "--photos", str(folder), "--users", "1", "--seconds", "1")
    refused = _run("search", *here, "--collection", "theirs")
    assert refused.code == 2
    assert "the collection theirs has photos already" in refused.error
    used = _run("search", *here, "--collection", "theirs", "--keep")
    assert used.code == 0, used.out + used.error
    assert "Before" not in used.out
    assert service.count("theirs") == 1
    service.post("/img/drop", params=name)


def test_one_that_is_told_to_end_tells_what_it_has_seen_and_cleans_up(
    service: Service, folder: Path
) -> None:
    process = subprocess.Popen(
        _command("search", "--url", service.url, "--photos", str(folder), "--seconds", "600"),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert "16 users for 600 s" in process.stderr.readline()
        assert "load_test" in _collections(service)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=_TIMEOUT)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "search, API v1, 16 users" in out
    assert "load_test" not in _collections(service)


def test_locusts_own_command_runs_the_same_users(service: Service, folder: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "locust", "-f", "scripts/load_test/locustfile.py"),
            *("--photos", str(folder), "--host", service.url, "--scenario", "search-during-load"),
            *("--headless", "--users", "2", "--run-time", "3", "--json"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [searches] = json.loads(done.stdout)
    assert (searches["name"], searches["num_failures"]) == ("/api/v1/search", 0)
    assert searches["num_requests"] > 0
    assert not {"load_test", "load_test_loading"} & set(_collections(service))


def test_locusts_own_command_is_bounded_unless_it_is_told_otherwise() -> None:
    code = (
        "from locust.argument_parser import parse_options\n"
        "from scripts.load_test import locustfile\n"
        "found = parse_options(['--photos', 'folder'])\n"
        "print(found.num_users, found.spawn_rate, found.run_time)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "16 10 60"


def test_locusts_own_command_aims_at_this_machine_alone(folder: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "locust", "-f", "scripts/load_test/locustfile.py"),
            *("--photos", str(folder), "--host", "http://192.0.2.1", "--headless"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    assert done.returncode != 0
    assert "192.0.2.1 is another machine than this one" in done.stderr


def test_a_service_that_demands_a_key_is_sent_it(folder: Path, tmp_path: Path) -> None:
    service = start(tmp_path, ("--require-api-key", "true"), tmp_path / "data")
    try:
        key = asyncio.run(_admin_key(tmp_path / "data"))
        here = ("--url", service.url, "--photos", str(folder), "--users", "1", "--seconds", "1")
        done = _run("search", *here, prefix=("env", f"API_KEY={key}"))
        assert done.code == 0, done.out + done.error
        assert key not in done.out + done.error
        refused = _run("search", *here)
        assert refused.code == 2
        assert f"{service.url} does not permit" in refused.error
    finally:
        service.stop()


async def _admin_key(data_dir: Path) -> str:
    async with open_keys(Settings(data_dir=data_dir)) as keys:
        _, key = await make_key(keys, ["admin"])
    return key


@contextmanager
def _answering(answer: Callable[[str], tuple[int, str]]) -> Iterator[str]:
    """A server of the existing endpoints that is as full, or as closed, as is wanted."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, text = answer(self.path.partition("?")[0])
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_what_a_full_service_refuses_is_no_failure_and_what_else_it_does_is(
    folder: Path, tmp_path: Path
) -> None:
    turns = iter(range(10**9))
    searches = [(200, "[]"), (429, "{}"), (503, "{}"), (500, "{}"), (302, "{}"), (200, '{"a": 1}')]

    def answer(path: str) -> tuple[int, str]:
        return searches[next(turns) % len(searches)] if path == "/img/search" else (200, "0")

    with _answering(answer) as url:
        done = _run(
            *("search", "--api", "existing", "--url", url, "--photos", str(folder)),
            *("--users", "2", "--seconds", "2"),
            json_file=tmp_path / "figures.json",
        )
    assert done.code == 1, done.out + done.error
    [(name, figures)] = done.figures["requests"].items()
    assert name == "POST /img/search"
    assert set(figures["refused"]) == {"429", "503"}
    assert set(figures["errors"]) == {"500", "302", "200, but not what was asked for"}
    assert "429 says that the service is full" in done.out


def test_each_thing_that_is_in_the_way_is_one_line(folder: Path) -> None:
    photos = ("--photos", str(folder))
    with _answering(lambda path: (403, '{"status": false, "msg": "no key"}')) as url:
        cases = {
            ("--url", "http://127.0.0.1:1", *photos): "no service answers at http://127.0.0.1:1",
            ("--url", url, *photos): f"{url} does not permit POST /img/count: 403: no key",
            ("--most-photos", "2", *photos): f"holds {_PHOTOS} photos, and existing loads them",
        }
        for arguments, expected in cases.items():
            done = _run("existing", *arguments)
            assert (done.code, done.out) == (2, "")
            [line] = done.error.splitlines()
            assert expected in line


def test_photos_and_files_that_are_not_permitted_are_named(folder: Path, tmp_path: Path) -> None:
    [photo] = write_photos(tmp_path / "photos", 1)
    photo.chmod(0)
    figures = tmp_path / "figures.json"
    figures.touch(0o400)
    for arguments, name in (
        (("--photos", str(photo.parent)), photo),
        (("--photos", str(folder), "--json", str(figures)), figures),
    ):
        done = _run("search", *arguments, prefix=AS_A_USER)
        assert done.code == 2
        [line] = done.error.splitlines()
        assert str(name) in line
        assert "Permission denied" in line
