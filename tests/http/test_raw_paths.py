"""Which photo a client means by a path that was escaped a little, wholly, or not at all."""

import re
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backend.http.raw_paths import paths_meant

NAME = "image_path"

# What no path holds, what a browser's parser takes out of any URL (URL Standard, 4.4: basic URL
# parser, steps 1 to 3), so that no server ever sees it, and what ends the query.
_LOST = "\0\t\n\r#"
_LOST_AT_THE_END = "".join(map(chr, range(0x21)))

# URL Standard, 1.3: the special-query percent-encode set.
_C0_CONTROLS = frozenset(map(chr, range(0x20)))
_SPECIAL_QUERY = _C0_CONTROLS | frozenset(" \"#<>'")

# ECMA-262, 19.2.6.4: what encodeURIComponent leaves as it is, besides letters and digits.
_URI_COMPONENT_SAFE = "-_.!~*'()"

_PIECES = st.sampled_from(
    [
        *(" ", "&", "+", "%", "=", "?", "/", "'", '"', "<", ">", ";", ",", "\\", "\x01", "\x7f"),
        *("%20", "%2520", "%22", "%27", "%3C", "%3E", "%3c", "%2B", "%26", "%C3%A9", "%c3%a9"),
        *("%FF", "%", "%4", "%zz", "é", "猫", "\N{CAT FACE}", "\xa0", "100%.jpg", "&image_path="),
    ]
)
_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PATHS = (
    st.lists(_PIECES | _TEXTS, max_size=8)
    .map("".join)
    .map(lambda text: re.sub(f"[{_LOST}]", "", text).rstrip(_LOST_AT_THE_END))
)


def _as_a_browser_sends(path: str) -> str:
    """The query of an <img src="/data?image_path={path}">: only the special-query set escaped."""
    sent = ""
    for character in path:
        if character in _SPECIAL_QUERY or character > "~":
            sent += "".join(f"%{byte:02X}" for byte in character.encode())
        else:
            sent += character
    return f"{NAME}={sent}"


def _ambiguous(query: str) -> int:
    """Escapes that may be the browser's or may be the file's own."""
    return len(re.findall("%(?:20|22|27|3C|3E)", query))


def _is_common(path: str) -> bool:
    """No control characters, and no escapes of them or of non-ASCII in the name itself."""
    return not re.search(r"[\x01-\x1f\x7f]|%[0189A-F][0-9A-F]|%7F", path)


def _sent(value: str) -> list[str]:
    return paths_meant(f"{NAME}={value}", NAME)


# Properties


@settings(deadline=None)
@given(PATHS.filter(_is_common).filter(lambda path: _ambiguous(_as_a_browser_sends(path)) <= 8))
@example("/photos/holiday in Rome/a&b+c 100%.jpg")
@example("/photos/a%20b c.jpg")
def test_a_path_pasted_unescaped_into_a_page_is_among_the_readings(path: str) -> None:
    assert path in paths_meant(_as_a_browser_sends(path), NAME)


@pytest.mark.parametrize(
    "path",
    [
        "/caf%C3%A9.jpg",  # as a download is often named
        "/caf%C3%A9 au lait.jpg",
        "/%E7%8C%AB.jpg",
        "/a%20b\x01.jpg",
        "/a%20b\x7f.jpg",
    ],
    ids=["letter", "letter and space", "ideograph", "control", "delete"],
)
def test_a_name_that_holds_rarer_escapes_or_characters_is_among_the_readings(path: str) -> None:
    assert path in paths_meant(_as_a_browser_sends(path), NAME)


@settings(deadline=None)
@given(PATHS.filter(lambda path: not re.search("%[0-9A-Fa-f]{2}", path)))
def test_a_path_without_escapes_of_its_own_is_the_likeliest_reading(path: str) -> None:
    assert paths_meant(_as_a_browser_sends(path), NAME)[0] == path


@settings(deadline=None)
@given(PATHS)
def test_a_wholly_escaped_path_is_the_likeliest_reading(path: str) -> None:
    for safe in ("/", "", _URI_COMPONENT_SAFE):
        assert _sent(quote(path, safe=safe))[0] == path


@settings(deadline=None)
@given(PATHS)
def test_a_path_escaped_as_a_form_does_is_among_the_readings(path: str) -> None:
    assert path in _sent(quote_plus(path))


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=40))
def test_the_bytes_of_a_name_that_is_not_utf_8_come_out_again(name: bytes) -> None:
    assert _sent(quote(name))[0].encode("utf-8", "surrogateescape") == name


@settings(deadline=None)
@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=60))
def test_any_query_has_distinct_readings_and_not_too_many(query: str) -> None:
    readings = paths_meant(f"{NAME}={query}", NAME)
    assert 1 <= len(readings) <= 258
    assert len(set(readings)) == len(readings)


# Examples


@pytest.mark.parametrize(
    ("sent", "likeliest"),
    [
        ("/photos/a.jpg", "/photos/a.jpg"),
        ("/photos/a%20b.jpg", "/photos/a b.jpg"),
        ("/photos/a+b.jpg", "/photos/a+b.jpg"),
        ("/photos/a%2Bb.jpg", "/photos/a+b.jpg"),
        ("/photos/salt&pepper.jpg", "/photos/salt&pepper.jpg"),
        ("/photos/salt%26pepper.jpg", "/photos/salt&pepper.jpg"),
        ("/photos/a=b?c.jpg", "/photos/a=b?c.jpg"),
        ("/photos/100%.jpg", "/photos/100%.jpg"),
        ("/photos/100%25.jpg", "/photos/100%.jpg"),
        ("/photos/caf%C3%A9.jpg", "/photos/café.jpg"),
        ("/photos/%E7%8C%AB.jpg", "/photos/猫.jpg"),
        ("/photos/%22quoted%22.jpg", '/photos/"quoted".jpg'),
        ("%2Fphotos%2Fa.jpg", "/photos/a.jpg"),
        ("/photos/a&image_path=b.jpg", "/photos/a&image_path=b.jpg"),
    ],
)
def test_the_likeliest_path_comes_first(sent: str, likeliest: str) -> None:
    assert _sent(sent)[0] == likeliest


@pytest.mark.parametrize(
    ("sent", "possible"),
    [
        ("/a%20b.jpg", "/a%20b.jpg"),  # the file's own name holds the escape
        ("/a%20b%20c.jpg", "/a%20b c.jpg"),  # and a space besides
        ("/a%2520b.jpg", "/a%2520b.jpg"),
        ("/a%25b.jpg", "/a%25b.jpg"),
        ("/a+b.jpg", "/a b.jpg"),  # a form's way to write a space
        ("/100%.jpg", "/100%.jpg"),
        ("/100%%20x.jpg", "/100% x.jpg"),
        ("/caf%C3%A9%2B.jpg", "/café%2B.jpg"),
    ],
)
def test_an_unlikelier_path_is_tried_as_well(sent: str, possible: str) -> None:
    assert possible in _sent(sent)


def test_the_parameter_is_found_behind_others_and_reaches_to_the_end() -> None:
    assert paths_meant("table_name=x&image_path=/a.jpg", NAME)[0] == "/a.jpg"
    assert paths_meant("image_path=/a&b=c&d.jpg", NAME)[0] == "/a&b=c&d.jpg"


@pytest.mark.parametrize(
    "query", ["", "image_path", "image=/a.jpg", "my_image_path=/a.jpg", "x=image_path=/a.jpg"]
)
def test_a_query_without_the_parameter_means_nothing(query: str) -> None:
    assert paths_meant(query, NAME) == []


def test_an_empty_value_is_an_empty_path() -> None:
    assert paths_meant("image_path=", NAME) == [""]


def test_eight_ambiguous_escapes_are_all_tried_and_more_are_taken_for_the_browsers() -> None:
    eight = "/" + "%20".join("abcdefghi")
    assert len(_sent(eight)) == 2**8
    assert eight in _sent(eight)
    nine = "/" + "%20".join("abcdefghij")
    assert nine not in _sent(nine)
    assert nine.replace("%20", " ") == _sent(nine)[0]


@pytest.mark.parametrize(
    "hostile", ["%20" * 2500, "%" * 8000, "%C3" * 2500, "+" * 8000, "&image_path=" * 600]
)
def test_a_hostile_query_has_a_bounded_number_of_readings(hostile: str) -> None:
    assert len(_sent(hostile)) <= 258


def test_what_is_longer_than_any_path_is_read_once() -> None:
    longest = "%20" * 4096
    assert len(_sent(longest)) == 2**8
    assert _sent(longest + "a") == [" " * 4096 + "a"]


def test_the_name_of_the_parameter_is_no_pattern() -> None:
    assert paths_meant("imageXpath=/a.jpg", "image.path") == []
    assert paths_meant("image.path=/a.jpg", "image.path") == ["/a.jpg"]
