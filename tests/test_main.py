"""The command line."""

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from backend.settings import Settings
from tests.forked import run_program
from tests.photos import draw_photo, encode, write_photos
from tests.service import REPOSITORY, Service

_STOP_SECONDS = 5


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_program(*arguments, timeout=60, environment={"COLUMNS": "200", **environment})


@pytest.mark.parametrize(
    "command", ["serve", "load", "search", "check", "keys create", "export", "import"]
)
def test_help_names_every_setting_its_variable_and_its_default(command: str) -> None:
    text = " ".join(_run(*command.split(), "--help").stdout.split())
    for name, info in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in text
        assert f"[{name.upper()}; default: " in text
        assert " ".join(str(info.description).split()) in text
    assert "[PORT; default: 5010]" in text
    assert "[DEFAULT_TABLE; default: milvus_obj_det]" in text


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--port", "http"], {}, ["PORT=http", "integer"]),
        ([], {"PORT": "70000"}, ["PORT=70000", "65535"]),
        ([], {"TOP_K": "0"}, ["TOP_K=0"]),
        ([], {"WHOLE_IMAGE": "sometimes"}, ["WHOLE_IMAGE=sometimes", "fallback"]),
        ([], {"METRIC_TYPE": "IP"}, ["METRIC_TYPE=IP", "L2"]),
        ([], {"DEFAULT_TABLE": "my table"}, ["DEFAULT_TABLE=my table", "letters"]),
        ([], {"MILVUS_INDEX_PARAMS": "M=16"}, ["MILVUS_INDEX_PARAMS=M=16", "JSON"]),
        ([], {"VECTOR_DIMENSION": "7"}, ["VECTOR_DIMENSION=7", "512"]),
        (["--detector-model", "nothing"], {}, ["'nothing'", "does not exist"]),
        (["--data-dir", "/dev/null/x"], {}, ["DATA_DIR=/dev/null/x"]),
        (["--upload-path", "/dev/null/x"], {}, ["UPLOAD_PATH=/dev/null/x"]),
    ],
)
def test_a_bad_setting_is_one_clear_line_and_exit_code_2(
    arguments: list[str], environment: dict[str, str], words: list[str], tmp_path: Path
) -> None:
    done = _run("serve", *arguments, **{"DATA_DIR": str(tmp_path), **environment})
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "arguments",
    [[], ["sing"], ["serve", "--prot", "1"], ["serve", "--por", "1"], ["load"], ["search"]],
)
def test_an_unknown_command_or_flag_exits_with_2(arguments: list[str]) -> None:
    done = _run(*arguments)
    assert done.returncode == 2
    assert "error: " in done.stderr


def test_a_flag_counts_more_than_the_environment(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", "1")
    assert start_service().get("/progress").status_code == 200  # which passes --port 0


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = _run("serve", "--port", port, "--data-dir", str(tmp_path))
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_listens_on_loopback_alone(service: Service) -> None:
    assert service.url.startswith("http://127.0.0.1:")
    port = int(service.url.rsplit(":", 1)[1])
    addresses = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    listening = re.findall(rf"\d+: ([0-9A-F]+):{port:04X} \S+ 0A", addresses)
    assert listening == ["0100007F"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_in_the_middle_of_a_load_is_clean_quick_and_gone_on_with(
    start_service: Callable[..., Service], tmp_path: Path, number: signal.Signals
) -> None:
    write_photos(tmp_path / "photos", 80)
    service = start_service()
    service.load(tmp_path / "photos", params={"wait": "false"})
    start = time.monotonic()
    service.process.send_signal(number)
    assert service.process.wait(_STOP_SECONDS + 5) == 0
    assert time.monotonic() - start < _STOP_SECONDS
    log = service.log.read_text()
    assert "event=load.interrupted" in log
    assert log.splitlines()[-1].endswith("event=server.stopped")
    assert "Traceback" not in log

    again = start_service()
    end = time.monotonic() + 60
    while again.count() < 80:  # without being asked for
        assert time.monotonic() < end
        time.sleep(0.05)
    assert "event=load.resumed" in again.log.read_text()


def test_a_stop_is_quick_though_the_vector_engine_hangs(service: Service, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 60)
    service.load(tmp_path / "photos", params={"wait": "false"})
    engine = service.milvus_lite
    engine.suspend()
    try:
        while "load.started" not in service.log.read_text():
            time.sleep(0.01)
        start = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(_STOP_SECONDS + 5) == 0
        assert time.monotonic() - start < _STOP_SECONDS
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has been ended with the service
            engine.kill()


def test_a_load_that_is_stopped_says_so_by_its_exit_code(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 60)
    command = [sys.executable, "-W", "ignore", "-m", "backend", "load", str(tmp_path / "photos")]
    process = subprocess.Popen(
        [*command, "--data-dir", str(tmp_path / "data")],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while "load.started" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    assert "the same command goes on from here" in process.stderr.read()
    assert process.wait(_STOP_SECONDS) == 1
    process.stderr.close()


def test_every_event_is_one_line(service: Service, tmp_path: Path) -> None:
    service.get("/a%0Atime=forged")
    service.load("/no\nsuch folder")
    write_photos(tmp_path / "photos", 1)
    for ending in ("jpg", "png", "webp", "tiff"):
        name = f"line\nbreak.{ending}"
        (tmp_path / "photos" / name).write_bytes(encode(draw_photo(1), f".{ending}")[:2000])
    service.load(tmp_path / "photos")
    for line in service.log.read_text().splitlines():
        assert re.match(r"time=\S+Z level=\w+ event=", line), line


def test_a_load_in_a_terminal_shows_a_bar_and_says_where_to_look_next(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 12)
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [
            *(sys.executable, "-W", "ignore", "-m", "backend", "serve", "--port", "0"),
            *("--load", str(tmp_path / "photos"), "--data-dir", str(tmp_path / "data")),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        stdin=inside,
        stdout=inside,
        stderr=inside,
    )
    os.close(inside)
    shown = b""
    try:
        while b"/docs" not in shown:
            shown += os.read(terminal, 4096)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        os.close(terminal)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"Loading photos ━+ 12/12 100% [\d.]+ photos/s \d:\d\d:\d\d", text)
    assert "12 photos in" in text
    assert re.search(r"curl -F image=@\S+ http://127\.0\.0\.1:\d+/api/v1/search", text)


def _run_in_terminal(*arguments: str) -> str:
    """What a terminal of 256 colours shows of a command that goes well."""
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "backend", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"},
        stdin=inside,
        stdout=inside,
        stderr=subprocess.DEVNULL,
    )
    os.close(inside)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the process has closed its end
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    assert process.wait(10) == 0
    return shown.decode()


def test_what_a_search_finds_is_shown_where_that_can_be(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    data = ("--data-dir", str(tmp_path / "data"))
    assert _run("load", str(tmp_path / "photos"), *data).returncode == 0
    query = tmp_path / "query.jpg"
    query.write_bytes(photos[0].read_bytes())
    photos[0].unlink()
    search = ("search", str(query), *data)
    shown = _run_in_terminal(*search)
    gone, *others = re.split(r"distance ", shown)[1:]
    pictures = [before.count("▄") > 0 for before in re.split(r"distance ", shown)[:-1]]
    assert len(others) == 2
    assert pictures == [False, True, True]
    assert "\x1b[38;5;" in shown
    assert "photos/" in gone
    piped = _run(*search, "--thumbnails", "always")
    assert piped.stdout.count("\x1b[38;2;") > 50, piped.stderr
    assert "▄" not in _run(*search, "--json", "--thumbnails", "always").stdout


def test_a_photo_is_searched_for_in_the_terminal_and_by_programs(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos [1]", 6)
    data = ("--data-dir", str(tmp_path / "data"))
    assert _run("load", str(tmp_path / "photos [1]"), *data).returncode == 0
    shown = _run("search", str(photos[2]), *data, "--top-k", "3", COLUMNS="400")
    assert shown.returncode == 0, shown.stderr
    [head, _line, first, *others] = shown.stdout.splitlines()
    assert head.split()[0] == "distance"
    assert str(photos[2]) in first
    assert "0.0000" in first
    assert len(others) == 2
    done = _run("search", str(photos[2]), *data, "--top-k", "3", "--json")
    found = json.loads(done.stdout)
    assert (found["collection"], found["photos"], len(found["hits"])) == ("milvus_obj_det", 6, 3)
    distances = [hit["distance"] for hit in found["hits"]]
    assert distances == sorted(distances)
    nearest = found["hits"][0]
    assert (nearest["path"], nearest["distance"] < 1e-3) == (str(photos[2]), True)
    x1, y1, x2, y2 = nearest["box"]
    assert x1 < x2
    assert y1 < y2
    nothing = _run("search", str(photos[2]), *data, "--table", "other")
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "collection other holds 0 photos: load a folder" in nothing.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), (b"no photo", "query.jpg"), (b"x" * 101, "MAX_FILE_BYTES")],
)
def test_a_query_that_cannot_be_searched_for_is_one_clear_line(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    query = tmp_path / "query.jpg"
    if content is not None:
        query.write_bytes(content)
    data = ("--data-dir", str(tmp_path / "data"), "--log-level", "ERROR")
    done = _run("search", str(query), *data, "--max-file-bytes", "100")
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
