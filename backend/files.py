"""Opens and locks files that somebody else may use too. Blocks: call it in a thread."""

import fcntl
import os
import stat
from io import BufferedReader
from pathlib import Path

from backend.errors import InvalidImage, TooLarge

__all__ = ["lock_file", "open_regular_file", "read_photo_file"]


def open_regular_file(path: str) -> BufferedReader:
    """Opens a file for reading, and nothing but a file.

    A pipe would make the reader wait for ever, and a device may have no end; which it is can only
    be told of what is open already.

    Raises:
        InvalidImage: the path leads to something that is no regular file.
        OSError: it leads nowhere, or may not be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidImage("this is no regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_photo_file(path: str, max_bytes: int) -> bytes:
    """The bytes of a file of which at most so many are taken into memory.

    Raises:
        InvalidImage, OSError: as `open_regular_file`.
        TooLarge: it has more.
    """
    with open_regular_file(path) as file:
        # One byte past the limit tells a file that has grown since its size was looked at.
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise TooLarge(f"{path} has more than the {max_bytes} bytes that MAX_FILE_BYTES allows")
    return data


def lock_file(path: Path) -> int:
    """Makes and locks a file, and returns its descriptor: closing it, or dying, unlocks it.

    The file holds the process id of its owner.

    Raises:
        BlockingIOError: another process, or another part of this one, has it locked; its text is
            the owner's process id.
        OSError: the file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise BlockingIOError(owner or "unknown") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
