"""What a collection may be called."""

import re
from typing import Final

from backend.errors import InvalidInput

__all__ = ["check_collection_name"]

_PATTERN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_LENGTH: Final = 200
"""Milvus allows 255 characters; its collection is this name with 13 more behind it."""


def check_collection_name(name: str) -> str:
    """The name itself, where it is one that Milvus takes.

    Raises:
        InvalidInput: with what is allowed.
    """
    if len(name) > _MAX_LENGTH:
        raise InvalidInput(
            f"a collection's name has at most {_MAX_LENGTH} characters, this one has {len(name)}"
        )
    if not _PATTERN.fullmatch(name):
        raise InvalidInput(
            f"{name!r} is no collection's name: use letters of a-z, digits and _,"
            " and begin with a letter or _"
        )
    return name
