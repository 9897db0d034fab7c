"""Opens and locks files that somebody else may use too. Blocks: call it in a thread."""

import fcntl
import os
import stat
from io import BufferedReader
from pathlib import Path

from backend.errors import InvalidImage

__all__ = ["lock_file", "open_regular_file"]


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
