"""How names and addresses of machines are read."""

import pytest

from backend.hosts import Origin, is_address, is_loopback, read_host, read_origin


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("photos.example", "photos.example"),
        ("Photos.Example:5010", "photos.example"),
        ("photos.example.", "photos.example"),
        ("my_box", "my_box"),
        ("127.0.0.1:80", "127.0.0.1"),
        ("[::1]:5010", "::1"),
        ("[0:0:0:0:0:0:0:1]", "::1"),
        ("[::ffff:127.0.0.1]", "127.0.0.1"),
    ],
)
def test_a_host_is_read_in_one_way_of_writing(text: str, host: str) -> None:
    assert read_host(text) == host


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a b",
        "localhost@evil.example",
        "localhost:x",
        "localhost:123456",
        "localhost:80:80",
        "evil.example/localhost",
        "localhost#.evil.example",
        "evil.example\\localhost",
        "[::1",
        "[::g]",
        "::1",
        "localhost\n",
        "lоcalhost",  # noqa: RUF001 - the second letter is a Cyrillic one
        "localhost,evil.example",
    ],
)
def test_what_is_no_host_is_none(text: str) -> None:
    assert read_host(text) is None


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("http://localhost:8001", Origin("http", "localhost", 8001)),
        ("https://photos.example", Origin("https", "photos.example", 443)),
        ("http://photos.example", Origin("http", "photos.example", 80)),
        ("HTTP://Photos.Example:80", Origin("http", "photos.example", 80)),
        ("http://[::1]:5010", Origin("http", "::1", 5010)),
    ],
)
def test_an_origin_is_read(text: str, origin: Origin) -> None:
    assert read_origin(text) == origin


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "localhost",
        "file://",
        "ftp://localhost",
        "chrome-extension://abc",
        "http://",
        "http://[",
        "http://localhost@evil.example",
        "http://localhost/path",
        "http://localhost http://localhost",
    ],
)
def test_what_is_no_origin_is_none(text: str) -> None:
    assert read_origin(text) is None


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "a.localhost", "127.0.0.1", "127.9.9.9", "::1"]
)
def test_loopback_is_told(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        *("0.0.0.0", "::", "192.168.1.5", "128.0.0.1", "127.0.0.1.evil.example"),
        *("localhost.evil.example", "notlocalhost", "2130706433", "0177.0.0.1", ""),
    ],
)
def test_what_only_looks_like_loopback_is_not(host: str) -> None:
    assert not is_loopback(host)


def test_an_address_is_no_name() -> None:
    assert is_address("192.0.2.1")
    assert is_address("2001:db8::1")
    for name in ("photos.example", "1.2.3", "192.0.2.1.evil.example", "2130706433", "0x7f.1"):
        assert not is_address(name)
