"""Addresses of photos in stores elsewhere, such as s3://bucket/folder/photo.jpg. Pure: asks nobody.

An address has one spelling. What another one could mean (`..`, `//`, a second protocol in front of
the first) is refused rather than resolved: what was compared is then what the store is asked for.
"""

import re
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import unquote

from backend.plain_text import without_credentials

__all__ = ["PhotoAddress", "is_address"]

_ADDRESS: Final = re.compile(r"(?P<protocols>[a-z][a-z0-9+.-]*(?:::[a-z0-9+.-]+)*)://", re.I)
_SEPARATORS: Final = re.compile(r"[/\\]")
_VERSIONS: Final = ("?versionId=", "?generation=")
"""What s3fs and gcsfs take off a name, to look for an old version of another."""


def is_address(text: str) -> bool:
    """Whether a text is meant as an address, not as a path of this machine's."""
    return _ADDRESS.match(text) is not None


@dataclass(frozen=True)
class PhotoAddress:
    """Where something lies in a store: str() gives its one spelling.

    Attributes:
        protocol: in lower case, such as s3.
        path: what follows `://`, such as bucket/folder: parts between single slashes.
    """

    protocol: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads an address; a slash at its end does not matter.

        Raises:
            ValueError: it is none, or could be taken for another.
        """
        found = _ADDRESS.match(text)
        if found is None:
            raise ValueError(f"{text!r} is no address such as s3://bucket/folder")
        shown = without_credentials(text)
        protocol = found["protocols"].lower()
        path = text[found.end() :].removesuffix("/")
        parts = path.split("/")
        if "::" in protocol:
            raise ValueError(f"{shown!r} chains protocols: an address has one")
        if not path:
            raise ValueError(f"{shown!r} names no bucket, as s3://bucket/folder does")
        if "@" in parts[0]:
            raise ValueError(
                f"{shown!r} has credentials in it: they belong into the environment, such as"
                " AWS_ACCESS_KEY_ID"
            )
        if problem := _problem(path, parts):
            raise ValueError(f"{shown!r} {problem}")
        return cls(protocol, path)

    def __str__(self) -> str:
        return f"{self.protocol}://{self.path}"

    def holds(self, other: "PhotoAddress") -> bool:
        """Whether another is this very address, or lies below it."""
        return self.protocol == other.protocol and (
            self.path == other.path or other.path.startswith(f"{self.path}/")
        )


def _problem(path: str, parts: list[str]) -> str | None:
    if "\0" in path:
        return "has a NUL in it"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if any(mark in path for mark in _VERSIONS):
        return "names a version of a photo: photos are read as they are now"
    for part in parts:
        # Some stores' servers decode a name before they look for it.
        if part == "" or {".", ".."} & set(_SEPARATORS.split(unquote(part))):
            return "has a part that is empty, '.' or '..': some would take it for another"
    return None
