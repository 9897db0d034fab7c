"""What a collection may be called."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.errors import InvalidInput
from backend.names import check_collection_name

FIRST = string.ascii_letters + "_"
REST = FIRST + string.digits


@settings(deadline=None)
@given(st.text(FIRST, min_size=1, max_size=1), st.text(REST, max_size=199))
def test_letters_digits_and_underscores_make_a_name(first: str, rest: str) -> None:
    assert check_collection_name(first + rest) == first + rest


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "9lives", "a-b", "a b", "a.b", "a/b", "../x", "a;drop", "a\0", "a\n", "\na"),
        *("é", "naïve", "猫", "\N{FULLWIDTH LATIN SMALL LETTER A}", "a\N{ARABIC-INDIC DIGIT ONE}"),
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(name: str) -> None:
    with pytest.raises(InvalidInput, match="letters of a-z, digits and _") as refused:
        check_collection_name(name)
    assert repr(name) in str(refused.value)


def test_a_name_has_at_most_200_characters() -> None:
    assert check_collection_name("n" * 200) == "n" * 200
    with pytest.raises(InvalidInput, match="at most 200 characters, this one has 201"):
        check_collection_name("n" * 201)


def test_a_long_bad_name_is_not_repeated_in_full() -> None:
    with pytest.raises(InvalidInput) as refused:
        check_collection_name("-" * 100_000)
    assert len(str(refused.value)) < 200


@settings(deadline=None)
@given(st.text(max_size=30))
def test_a_name_is_taken_or_refused_and_never_changed(name: str) -> None:
    try:
        taken = check_collection_name(name)
    except InvalidInput:
        return
    assert taken == name
    assert name.isascii()
    assert name.isidentifier()
