"""Which photo a client means by `/data?image_path=…`.

The existing web client pastes the path into an `src` attribute unescaped, and the browser escapes
only part of it: spaces, quotes, angle brackets and what is not ASCII become %XX, while `&`, `+`
and `%` stay as they are. Other clients escape all of it, with %20 or with + for a space. One raw
query string can therefore mean several paths; the catalog knows which of them exists.
"""

import itertools
import re
from typing import Final
from urllib.parse import unquote_plus, unquote_to_bytes

__all__ = ["paths_meant"]

# What browsers escape in the query of an http URL (URL Standard, special-query percent-encode
# set), a character or a run of UTF-8: each may also be a literal %XX of the file's name.
_ESCAPES: Final = re.compile(r"(%(?:[01][0-9A-F]|20|22|27|3C|3E|7F)|(?:%[89A-F][0-9A-F])+)")
_MAX_LENGTH: Final = 3 * 4096
"""Characters: a longer value, all of it escaped, is longer than any path, and is read once."""
_MAX_AMBIGUOUS: Final = 8
"""Up to 2^8 readings are tried; further escapes are taken for the browser's."""


def paths_meant(raw_query: str, name: str) -> list[str]:
    """The paths that `name=…` of a raw query string may mean, the likeliest first.

    The value reaches to the end of the query: an unescaped path may hold `&`. Empty where the
    query has no such parameter.
    """
    match = re.search(rf"(?:^|&){re.escape(name)}=", raw_query)
    if match is None:
        return []
    raw = raw_query[match.end() :]
    if len(raw) > _MAX_LENGTH:
        return [_decode(raw)]
    readings = [_decode(raw), *_as_a_browser_escapes(raw), unquote_plus(raw)]
    return list(dict.fromkeys(readings))


def _as_a_browser_escapes(raw: str) -> list[str]:
    pieces = _ESCAPES.split(raw)
    escapes = pieces[1::2]
    # Names that hold a literal %20 are likelier than names that hold a literal %E3%81%82.
    order = sorted(range(len(escapes)), key=lambda index: len(escapes[index]))
    ambiguous = set(order[:_MAX_AMBIGUOUS])
    # What is read in one way alone is put together once, not in each of the readings.
    sure = [pieces[0]]
    choices: list[tuple[str, str]] = []
    for index, (escape, text) in enumerate(zip(escapes, pieces[2::2], strict=True)):
        if index in ambiguous:
            choices.append((_decode(escape), escape))
            sure.append(text)
        else:
            sure[-1] += _decode(escape) + text
    return [
        "".join(itertools.chain(*zip(sure, [*chosen, ""], strict=True)))
        for chosen in itertools.product(*choices)
    ]


def _decode(text: str) -> str:
    # As a file system's names are decoded, so that their bytes come out again.
    return unquote_to_bytes(text).decode("utf-8", "surrogateescape")
