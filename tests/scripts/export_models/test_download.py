from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scripts.export_models import download
from scripts.export_models.download import RemoteFile, fetch, file_sha256
from scripts.export_models.errors import DiskError, DownloadError
from scripts.export_models.progress import Display
from tests.scripts.export_models.file_server import Answer, FileServer, Request
from tests.scripts.export_models.limits import files_limited_to

SIZE = 300_000
DATA = np.random.default_rng(0).bytes(SIZE)
SHA256 = hashlib.sha256(DATA).hexdigest()
NAME = "net.weights"
ADDRESS = f"/files/{NAME}"


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RETRY_DELAYS", (0.0, 0.0, 0.0))


@pytest.fixture
def server(server: FileServer) -> FileServer:
    server.files[NAME] = DATA
    return server


def remote(server: FileServer, *, size: int = SIZE, sha256: str = SHA256) -> RemoteFile:
    return RemoteFile(NAME, size, sha256, (server.url,))


def get(file: RemoteFile, folder: Path, *mirrors: str) -> Path:
    return fetch(file, folder, mirrors=mirrors, display=Display())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_downloaded_once(server: FileServer, tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    assert get(remote(server), folder) == folder / NAME
    (folder / f"{NAME}.part").write_bytes(b"of a download that is no longer needed")
    assert get(remote(server), folder) == folder / NAME
    assert (folder / NAME).read_bytes() == DATA
    assert names(folder) == [NAME]
    assert server.requests == [Request(ADDRESS, None)]


def test_a_file_of_that_name_with_other_content_is_replaced(
    server: FileServer, tmp_path: Path
) -> None:
    for content in (b"damaged", DATA[:-1] + bytes([DATA[-1] ^ 1])):
        (tmp_path / NAME).write_bytes(content)
        get(remote(server), tmp_path)
        assert (tmp_path / NAME).read_bytes() == DATA
        assert names(tmp_path) == [NAME]


def test_progress_is_lines_of_text_where_there_is_no_terminal(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    get(remote(server), tmp_path)
    printed = capsys.readouterr()
    first, *others = printed.out.splitlines()
    assert first == f"downloading {server.url}/{NAME}"
    percents = [int(line.removeprefix(f"{NAME}: ").split(" % of 300,000 ")[0]) for line in others]
    assert percents == sorted(set(percents))
    assert all(percent % 10 == 0 for percent in percents)
    assert percents[-1] == 100
    assert not printed.err


def test_a_cut_connection_is_resumed_at_once(server: FileServer, tmp_path: Path) -> None:
    server.answers.extend([Answer(cut_after=100_000), Answer(cut_after=50_000)])
    get(remote(server), tmp_path)
    assert (tmp_path / NAME).read_bytes() == DATA
    assert [request.range for request in server.requests] == [
        None,
        "bytes=100000-",
        "bytes=150000-",
    ]


@pytest.mark.parametrize("length", [True, False])
def test_what_has_arrived_is_kept_when_a_server_fails_for_good(
    server: FileServer, tmp_path: Path, length: bool
) -> None:
    server.answers.append(Answer(cut_after=100_000, length=length))
    server.answers.extend([Answer(status=503)] * 3)
    with pytest.raises(DownloadError, match=r"HTTP 503 .*100,000 bytes are in .*\.part") as raised:
        get(remote(server), tmp_path)
    assert "\n" not in str(raised.value)
    assert names(tmp_path) == [f"{NAME}.part"]
    assert (tmp_path / f"{NAME}.part").read_bytes() == DATA[:100_000]

    server.requests.clear()
    get(remote(server), tmp_path)
    assert (tmp_path / NAME).read_bytes() == DATA
    assert server.requests == [Request(ADDRESS, "bytes=100000-")]


def test_a_part_is_carried_on_at_another_mirror(server: FileServer, tmp_path: Path) -> None:
    server.answers.append(Answer(cut_after=100_000))
    server.answers.extend([Answer(status=503)] * 3)
    get(remote(server), tmp_path, f"http://127.0.0.1:{server.port}/first")
    assert [request.target for request in server.requests[-2:]] == [f"/first/{NAME}", ADDRESS]
    assert server.requests[-1].range == "bytes=100000-"
    assert (tmp_path / NAME).read_bytes() == DATA


@pytest.mark.parametrize(
    "answer",
    [Answer(ranges=False), Answer(status=416), Answer(content_range=f"bytes 5-{SIZE - 1}/{SIZE}")],
    ids=["ignored", "refused", "misunderstood"],
)
def test_a_server_that_cannot_resume_sends_all_of_it(
    server: FileServer, tmp_path: Path, answer: Answer
) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(DATA[:100_000])
    server.answers.append(answer)
    get(remote(server), tmp_path)
    assert (tmp_path / NAME).read_bytes() == DATA


@pytest.mark.parametrize("part", [b"x" * 1000, b"x" * SIZE, b"x" * (SIZE + 1)])
def test_a_part_of_another_file_is_left_for_a_new_start(
    server: FileServer, tmp_path: Path, part: bytes
) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(part)
    get(remote(server), tmp_path)
    assert (tmp_path / NAME).read_bytes() == DATA
    assert names(tmp_path) == [NAME]
    assert server.requests[-1].range is None


def test_a_part_that_lacks_nothing_needs_no_server(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(DATA)
    get(remote(server), tmp_path)
    assert names(tmp_path) == [NAME]
    assert not server.requests


def test_a_wrong_sum_is_told_with_both_and_leaves_nothing(
    server: FileServer, tmp_path: Path
) -> None:
    server.files[NAME] = bytes(SIZE)
    found = hashlib.sha256(bytes(SIZE)).hexdigest()
    with pytest.raises(DownloadError, match=f"its SHA-256 is {found}, not {SHA256}"):
        get(remote(server), tmp_path)
    assert not names(tmp_path)


def test_mirrors_are_tried_in_order_until_one_gives_the_right_file(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bases = [f"http://127.0.0.1:{server.port}/{name}" for name in ("a", "b/", *"cdef")]
    server.answers.extend(
        [
            Answer(status=404),
            Answer(body=bytes(SIZE)),  # another file of that size
            Answer(body=b"<!doctype html>", content_type="text/html; charset=utf-8", length=False),
            Answer(body=DATA + b"!"),
            Answer(body=DATA + b"!", length=False),
            Answer(content_encoding="gzip"),
        ]
    )
    get(remote(server), tmp_path, *bases)
    assert [request.target for request in server.requests] == [
        *(f"/{name}/{NAME}" for name in "abcdef"),
        ADDRESS,
    ]
    printed = capsys.readouterr().out
    for problem in (
        "/a/net.weights: HTTP 404 Not Found; trying the next mirror",
        "/b/net.weights: its SHA-256 is ",
        "/c/net.weights: it answers with a web page;",
        "/d/net.weights: its file has 300,001 bytes, not 300,000;",
        "/e/net.weights: it sends more than 300,000 bytes;",
        "/f/net.weights: it sends the file compressed,",
    ):
        assert problem in printed
    assert names(tmp_path) == [NAME]


def test_each_mirrors_reason_is_told_when_none_is_left(server: FileServer, tmp_path: Path) -> None:
    server.files.clear()
    with pytest.raises(DownloadError) as raised:
        get(remote(server), tmp_path, "http://127.0.0.1:1/closed", "http://[")
    message = str(raised.value)
    assert "http://127.0.0.1:1/closed/net.weights: Connection refused;" in message
    assert f"{server.url}/{NAME}: HTTP 404 Not Found)" in message
    assert "--mirror" in message
    assert "\n" not in message
    assert not names(tmp_path)


def test_a_mirror_is_not_asked_for_ever(server: FileServer, tmp_path: Path) -> None:
    server.answers.extend([Answer(status=503)] * 10)
    with pytest.raises(DownloadError, match="HTTP 503 Service Unavailable"):
        get(remote(server), tmp_path)
    assert len(server.requests) == 1 + len(download.RETRY_DELAYS)


def test_silence_ends_in_a_time_out(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "READ_TIMEOUT_SECONDS", 0.2)
    done = threading.Event()
    server.answers.append(Answer(cut_after=1000, wait_for=done))
    try:
        get(remote(server), tmp_path)
    finally:
        done.set()
    assert (tmp_path / NAME).read_bytes() == DATA
    assert server.requests[-1].range == "bytes=1000-"


def test_proxies_are_taken_from_the_environment(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.port}")
    file = RemoteFile(NAME, SIZE, SHA256, ("http://weights.invalid/of",))
    get(file, tmp_path)
    assert server.requests == [Request(f"http://weights.invalid/of/{NAME}", None)]

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    (tmp_path / NAME).unlink()
    get(remote(server), tmp_path)
    assert server.requests[-1] == Request(ADDRESS, None)


def test_a_disk_that_takes_no_more_keeps_what_it_took(server: FileServer, tmp_path: Path) -> None:
    with (
        files_limited_to(100_000),
        pytest.raises(
            DiskError, match=r"File too large; .*\.part keeps 100,000 of 300,000 bytes"
        ) as raised,
    ):
        get(remote(server), tmp_path)
    assert "\n" not in str(raised.value)
    assert names(tmp_path) == [f"{NAME}.part"]

    get(remote(server), tmp_path)
    assert names(tmp_path) == [NAME]
    assert server.requests[-1].range == "bytes=100000-"


def test_a_full_disk_is_named(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").symlink_to("/dev/full")
    with pytest.raises(DiskError, match=r"\.part: No space left on device; nothing is kept"):
        get(remote(server), tmp_path)
    assert not names(tmp_path)


def test_too_little_space_is_seen_before_the_download(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"1,152,921,504,606,846,976 bytes are needed.*are free"):
        get(remote(server, size=1 << 60), tmp_path)
    assert not server.requests
    assert not names(tmp_path)


def test_a_folder_that_cannot_be_used_is_named(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"file/cache: Not a directory"):
        get(remote(server), tmp_path / "file" / "cache")


class Attentive(Display):
    """Notices that somebody waits for somebody else's download."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = threading.Event()

    def line(self, text: str) -> None:
        if text.endswith("another process is downloading it: waiting for that"):
            self.waiting.set()


def two_at_once(server: FileServer, folder: Path) -> list[BaseException | None]:
    """What becomes of two that want the file; the server sends on as soon as one waits.

    A lock is one of open files, so that threads stand for processes here.
    """
    display = Attentive()
    server.answers[0] = replace(server.answers[0], wait_for=display.waiting)
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(fetch, remote(server), folder, mirrors=(), display=display)
            for _ in range(2)
        ]
        try:
            assert display.waiting.wait(30)
        finally:
            display.waiting.set()
        return [future.exception() for future in futures]


def test_two_that_want_the_same_file_download_it_once(server: FileServer, tmp_path: Path) -> None:
    server.answers.append(Answer(cut_after=1000))
    assert two_at_once(server, tmp_path) == [None, None]
    assert len(server.requests) == 1
    assert names(tmp_path) == [NAME]


def test_who_has_waited_carries_on_where_the_other_gave_up(
    server: FileServer, tmp_path: Path
) -> None:
    server.answers.extend([Answer(body=DATA[:1000], length=False), Answer(status=404)])
    failures = two_at_once(server, tmp_path)
    assert sorted(type(failure).__name__ for failure in failures) == ["DownloadError", "NoneType"]
    assert [request.range for request in server.requests] == [None, "bytes=1000-", "bytes=1000-"]
    assert (tmp_path / NAME).read_bytes() == DATA


def test_another_user_may_read_what_is_downloaded(server: FileServer, tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        path = get(remote(server), tmp_path)
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o644


def test_the_sum_of_several_files_is_that_of_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    expected = hashlib.sha256(b"onetwo").hexdigest()
    assert file_sha256(tmp_path / "a", tmp_path / "b") == expected
