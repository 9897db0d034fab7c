"""Tar files of one strict form, sealed by the SHA-256 of all their bytes. Blocks: use a thread.

Any tar reads them. What is read here is what was written here: plain files alone, whose headers are
byte for byte what `tarfile` makes of a name and a size, zeros in between, and as the last member
`SHA256`, the digest of all that is before it. So a flipped bit anywhere, a missing end or anything
behind the end is found, and there are no links, no paths that lead elsewhere and no sparse files.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from backend.errors import InvalidInput

__all__ = ["Member", "MemberFile", "TarballWriter", "check_seal", "members", "open_member"]

_BLOCK: Final = tarfile.BLOCKSIZE
_SEAL_NAME: Final = "SHA256"
_SEAL_BYTES: Final = 4 * _BLOCK
"""The last member's header and content, and two blocks of zeros, which end every tar file."""
_STEP_BYTES: Final = 2**24
"""Read between two steps of a check: a few milliseconds' work, so that it can be broken off."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member: its name, and where its content is, in bytes from the file's beginning."""

    name: str
    offset: int
    size: int


class MemberFile(io.RawIOBase):
    """The member that is being written, as a file of its own."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """Of what has been written, in hex."""
        return self._digest.hexdigest()

    def writable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def write(self, data: Any) -> int:
        """Appends; wholly, unlike a raw file."""
        view = memoryview(data).cast("B")
        self._file.write(view)
        self._digest.update(view)
        self.size += len(view)
        return len(view)

    def tell(self) -> int:
        """Bytes from the member's beginning."""
        return self.size


class TarballWriter:
    """Writes members one after the other into a file that can be read and sought in as well."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    @contextmanager
    def member(self, name: str) -> Iterator[MemberFile]:
        """A member, for as long as it is open; its header is written when its size is known."""
        start = self._file.tell()
        self._file.write(bytes(_BLOCK))
        member = MemberFile(self._file)
        yield member
        self._file.write(bytes(-member.size % _BLOCK))
        end = self._file.tell()
        self._file.seek(start)
        self._file.write(_header(name, member.size))
        self._file.seek(end)

    def seal(self) -> Iterator[None]:
        """Ends the file, step by step: its content is on the disk after the last."""
        self._file.flush()
        end = self._file.tell()
        digest = yield from _digest(self._file, end)
        self._file.seek(end)
        self._file.write(_seal(digest))
        self._file.flush()
        os.fsync(self._file.fileno())


def check_seal(file: BinaryIO) -> Iterator[None]:
    """Reads the whole file, step by step.

    Raises:
        InvalidInput: it is not whole, or not as it was written.
    """
    size = os.fstat(file.fileno()).st_size
    end = size - _SEAL_BYTES
    if end < 0 or size % _BLOCK:
        raise InvalidInput("the file is no export, or its end is missing: copy it again")
    seal = os.pread(file.fileno(), _SEAL_BYTES, end)
    if seal[:_BLOCK] != _header(_SEAL_NAME, len(_content(""))):
        raise InvalidInput("the file is no export, or its end is missing: copy it again")
    digest = yield from _digest(file, end)
    if seal != _seal(digest):
        raise InvalidInput("the file is damaged: its SHA-256 is not what it says; copy it again")


def members(file: BinaryIO) -> Iterator[Member]:
    """The members but for the seal, in their order.

    Raises:
        InvalidInput: there is something that `TarballWriter` does not write.
    """
    position = 0
    end = os.fstat(file.fileno()).st_size - _SEAL_BYTES
    while position < end:
        name, size = _read_header(os.pread(file.fileno(), _BLOCK, position))
        content = position + _BLOCK
        padding = -size % _BLOCK
        if content + size + padding > end:
            raise InvalidInput(f"its member {name!r} says to be longer than the file")
        if os.pread(file.fileno(), padding, content + size) != bytes(padding):
            raise InvalidInput(f"there is something behind its member {name!r}")
        yield Member(name, content, size)
        position = content + size + padding


class _Content(io.RawIOBase):
    def __init__(self, file: BinaryIO, member: Member) -> None:
        self._file = file
        self._member = member
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._member.size}
        self._position = start[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._member.size - self._position))
        data = os.pread(self._file.fileno(), wanted, self._member.offset + self._position)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


def open_member(file: BinaryIO, member: Member) -> io.BufferedReader:
    """A member's content as a file of its own; `file` stays where it is."""
    return io.BufferedReader(_Content(file, member))


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def _read_header(block: bytes) -> tuple[str, int]:
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        if info.size >= 0 and _header(info.name, info.size) == block:
            return info.name, info.size
    except (tarfile.HeaderError, ValueError):
        raise InvalidInput("it has a member whose header cannot be read") from None
    raise InvalidInput(f"its member {info.name!r} is none that an export has")


def _content(digest: str) -> bytes:
    return f"{digest:64}\n".encode()


def _seal(digest: str) -> bytes:
    content = _content(digest)
    return (_header(_SEAL_NAME, len(content)) + content).ljust(_SEAL_BYTES, b"\0")


def _digest(file: BinaryIO, end: int) -> Generator[None, None, str]:
    digest = hashlib.sha256()
    position = 0
    while position < end:
        data = os.pread(file.fileno(), min(_STEP_BYTES, end - position), position)
        if not data:
            raise InvalidInput("the file has become shorter while it was read")
        digest.update(data)
        position += len(data)
        yield
    return digest.hexdigest()
