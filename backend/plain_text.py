"""Text from outside, made fit to be shown: in a log, and on a terminal."""

import re
from typing import Final

__all__ = ["printable", "without_credentials"]

_CREDENTIALS: Final = re.compile(r"(?<=//)[^/\s]*@")


def printable(text: str) -> str:
    r"""The text in one line, with all that is not to be seen escaped, such as \n and \x1b.

    That is what ends a line, moves a terminal's cursor or changes its colours, turns the direction
    of what follows, or shows nothing at all.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def without_credentials(text: str) -> str:
    """The text with neither user nor password in the URLs in it."""
    return _CREDENTIALS.sub("***@", text)
