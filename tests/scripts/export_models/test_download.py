from __future__ import annotations

import hashlib
import os
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import requests
import urllib3

from scripts.export_models import download
from scripts.export_models.download import RemoteFile, fetch, file_sha256
from scripts.export_models.errors import DiskError, DownloadError
from scripts.export_models.progress import Display
from tests.limits import files_limited_to
from tests.scripts.export_models.file_server import Answer, FileServer, Request

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


def test_a_whole_file_is_taken_from_a_folder_that_may_only_be_read(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, display: Display) -> NoReturn:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(download, "_lock", refuse)
    (tmp_path / NAME).write_bytes(DATA)
    assert get(remote(server), tmp_path) == tmp_path / NAME
    (tmp_path / NAME).write_bytes(DATA[1:])
    with pytest.raises(DiskError, match=r"net\.weights\.part: Read-only file system"):
        get(remote(server), tmp_path)
    assert not server.requests


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


cannot_resume = pytest.mark.parametrize(
    "answer",
    [
        Answer(ranges=False),
        Answer(ranges=False, length=False),
        Answer(status=416),
        Answer(content_range=f"bytes 5-{SIZE - 1}/{SIZE}", length=False),
    ],
    ids=["ignored", "ignored, without length", "refused", "misunderstood"],
)


@cannot_resume
def test_a_server_that_cannot_resume_sends_all_of_it(
    server: FileServer, tmp_path: Path, answer: Answer
) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(DATA[:100_000])
    server.answers.extend([answer, answer])
    get(remote(server), tmp_path)
    assert (tmp_path / NAME).read_bytes() == DATA


@cannot_resume
def test_what_is_there_is_not_given_up_while_another_mirror_may_go_on(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: Answer
) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(DATA[:100_000])
    server.answers.append(answer)
    get(remote(server), tmp_path, f"http://127.0.0.1:{server.port}/first")
    assert (tmp_path / NAME).read_bytes() == DATA
    assert server.requests == [
        Request(f"/{folder}/{NAME}", "bytes=100000-") for folder in ("first", "files")
    ]
    problem = "it does not go on where the download stopped; trying the next mirror"
    assert f"/first/{NAME}: {problem}\n" in capsys.readouterr().out


@cannot_resume
def test_it_is_given_up_when_no_mirror_goes_on(
    server: FileServer, tmp_path: Path, answer: Answer
) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(DATA[:100_000])
    server.answers.extend([answer, Answer(status=404), answer])
    get(remote(server), tmp_path, f"http://127.0.0.1:{server.port}/first")
    assert (tmp_path / NAME).read_bytes() == DATA
    assert [request.target for request in server.requests[:3]] == [
        f"/first/{NAME}",
        ADDRESS,
        f"/first/{NAME}",
    ]


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


@pytest.mark.parametrize(
    ("status", "problem", "requests_each"),
    [
        (403, "403 Forbidden", 1),
        (407, "407 Proxy Authentication Required", 1),
        (502, "502 Bad Gateway", 4),
    ],
)
def test_a_refusing_proxy_is_named_and_asked_again_only_if_that_may_help(
    server: FileServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    problem: str,
    requests_each: int,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.port}")
    server.answers.extend([Answer(status=status)] * 8)
    file = RemoteFile(NAME, SIZE, SHA256, ("https://one.invalid/of", "https://two.invalid/of"))
    with pytest.raises(DownloadError) as raised:
        get(file, tmp_path)
    message = str(raised.value)
    assert f"https://one.invalid/of/{NAME}: the proxy: Tunnel connection failed: {problem}" in (
        message
    )
    assert "\n" not in message
    assert [request.target for request in server.requests] == (
        ["one.invalid:443"] * requests_each + ["two.invalid:443"] * requests_each
    )


def test_an_unreachable_proxy_is_named(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", "http://127.0.0.1:1")
        file = RemoteFile(NAME, SIZE, SHA256, (f"{scheme}://weights.invalid",))
        with pytest.raises(DownloadError, match="the proxy: Connection refused"):
            get(file, tmp_path)


def test_a_malformed_proxy_is_one_line(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(DownloadError, match="unsupported scheme gopher") as raised:
        get(remote(server), tmp_path)
    assert "\n" not in str(raised.value)
    assert not server.requests


def test_an_error_of_tls_within_the_file_is_momentary(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read1 = urllib3.HTTPResponse.read1
    broken = iter([False, True])

    def read(response: urllib3.HTTPResponse, size: int) -> bytes:
        if next(broken, False):
            raise urllib3.exceptions.SSLError(ssl.SSLError(1, "[SSL] bad record mac"))
        return read1(response, min(size, 100_000))

    monkeypatch.setattr(urllib3.HTTPResponse, "read1", read)
    get(remote(server), tmp_path)
    assert (tmp_path / NAME).read_bytes() == DATA
    first, second = server.requests
    assert first.range is None
    assert second.range is not None

    def never(response: urllib3.HTTPResponse, size: int) -> NoReturn:
        raise urllib3.exceptions.SSLError(ssl.SSLError(1, "[SSL] bad record mac"))

    monkeypatch.setattr(urllib3.HTTPResponse, "read1", never)
    (tmp_path / NAME).unlink()
    with pytest.raises(DownloadError, match=r"net\.weights: \[SSL\] bad record mac\)"):
        get(remote(server), tmp_path)


def test_a_server_without_tls_is_not_said_to_have_a_certificate(
    server: FileServer, tmp_path: Path
) -> None:
    file = RemoteFile(NAME, SIZE, SHA256, (f"https://127.0.0.1:{server.port}",))
    with pytest.raises(DownloadError, match=r"net\.weights: .*SSL") as raised:
        get(file, tmp_path)
    assert "certificate" not in str(raised.value)


def test_a_certificate_that_is_not_accepted_is_no_matter_of_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(session: requests.Session, url: str, **options: object) -> NoReturn:
        asked.append(url)
        cause = ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed")
        reason = urllib3.exceptions.SSLError(cause)
        try:
            raise cause
        except ssl.SSLError:  # as urllib3 and requests hand it on
            pool = urllib3.HTTPSConnectionPool("weights.invalid")
            failure = urllib3.exceptions.MaxRetryError(pool, url, reason)
            raise requests.exceptions.SSLError(failure) from reason

    monkeypatch.setattr(requests.Session, "get", refuse)
    file = RemoteFile(NAME, SIZE, SHA256, ("https://weights.invalid",))
    with pytest.raises(
        DownloadError, match=r"its certificate is not accepted \(certificate verify failed: self-"
    ):
        get(file, tmp_path)
    assert len(asked) == 1


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
