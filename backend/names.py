"""What a collection may be called."""

import re
from typing import Final

from backend.errors import InvalidInput

__all__ = ["MAX_NAME_LENGTH", "NAME_PATTERN", "check_collection_name"]

NAME_PATTERN: Final = "[A-Za-z_][A-Za-z0-9_]*"
MAX_NAME_LENGTH: Final = 200
"""Milvus allows 255 characters; its collection is this name with 13 more behind it."""


def check_collection_name(name: str) -> str:
    """The name itself, where it is one that Milvus takes.

    Raises:
        InvalidInput: with what is allowed.
    """
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidInput(
            f"a collection's name has at most {MAX_NAME_LENGTH} characters, this one has"
            f" {len(name)}"
        )
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidInput(
            f"{name!r} is no collection's name: use letters of a-z, digits and _,"
            " and begin with a letter or _"
        )
    return name
