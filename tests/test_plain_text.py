"""Text from outside as a log and a terminal show it."""

import pytest

from backend.plain_text import printable, without_credentials


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b/ü漢🐈.jpg", "a b/ü漢🐈.jpg"),
        ("a\nb\r\nc", r"a\nb\r\nc"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),  # clears a terminal, names it
        ("\x9b31m", r"\x9b31m"),  # the same in one character
        ("a\u202egpj.exe", r"a\u202egpj.exe"),  # turns what follows
        ("\u2066a\u2069", r"\u2066a\u2069"),
        ("a\u200bb\ufeffc", r"a\u200bb\ufeffc"),  # shows nothing
        ("a\u2028b\u2029c\x85d", r"a\u2028b\u2029c\x85d"),  # ends lines, to some
        ("a\0b\x7fc", r"a\x00b\x7fc"),
        ("latin-\udce9", r"latin-\udce9"),  # of a file's name that is not UTF-8
        ("\U000e0041", r"\U000e0041"),  # a letter that no one sees
    ],
)
def test_what_is_not_to_be_seen_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://collector:4318/v1", "http://collector:4318/v1"),
        ("http://user:hunter2@collector:4318", "http://***@collector:4318"),
        ("no http://:hunter2@a/b@c and https://x@b", "no http://***@a/b@c and https://***@b"),
        ("http://u:p@hunter2@host/", "http://***@host/"),
        ("mail to a@b", "mail to a@b"),
    ],
)
def test_users_and_passwords_of_urls_are_not_shown(text: str, shown: str) -> None:
    assert without_credentials(text) == shown
