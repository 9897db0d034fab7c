"""Memory that a server on this machine reads a request's pixels from.

What is written here need not go through a connection, which copies it five times on its way. A
region is a file in /dev/shm that its owner keeps locked: who finds one that is not locked knows
that its owner has died, and may remove it.
"""

import contextlib
import fcntl
import mmap
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["SharedMemory"]

_FOLDER: Final = Path("/dev/shm")
_PREFIX: Final = "image-search-"


class SharedMemory:
    """A region of places of equal size; blocks for microseconds, and never waits.

    Attributes:
        name: of the file, unlike any other.
        size: of all places together, in bytes.
    """

    def __init__(self, places: int, place_bytes: int) -> None:
        """Makes it and takes its memory.

        Raises:
            OSError: there is not so much, or no such thing on this system.
        """
        self.name = f"{_PREFIX}{uuid.uuid4().hex}"
        self.size = places * place_bytes
        self._place_bytes = place_bytes
        self._free = [number * place_bytes for number in range(places)]
        self._path = _FOLDER / self.name
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            # Memory that is promised only would end the process where it turns out to be missing.
            os.posix_fallocate(self._file, 0, self.size)
            self._memory = mmap.mmap(self._file, self.size)
        except BaseException:
            self._remove()
            raise

    def write(self, batches: Sequence[NDArray[np.uint8]]) -> tuple[int, int] | None:
        """Puts batches one behind the other into a free place; returns its offset and their bytes.

        None where no place is free or large enough.
        """
        size = sum(batch.nbytes for batch in batches)
        if not self._free or size > self._place_bytes:
            return None
        offset = end = self._free.pop()
        for batch in batches:
            start, end = end, end + batch.nbytes
            np.frombuffer(self._memory, np.uint8, batch.nbytes, start).reshape(batch.shape)[:] = (
                batch
            )
        return offset, size

    def release(self, offset: int) -> None:
        """Gives a place back."""
        self._free.append(offset)

    def close(self) -> None:
        """Removes the file; a server that has it open still keeps the memory."""
        self._memory.close()
        self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._file)

    @staticmethod
    def remove_abandoned() -> list[str]:
        """Removes the files of owners that have died, and returns their names."""
        removed = []
        with contextlib.suppress(OSError):
            for path in _FOLDER.glob(f"{_PREFIX}*"):
                with contextlib.suppress(OSError), _locked(path):
                    path.unlink()
                    removed.append(path.name)
        return removed


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Raises OSError where another has it locked."""
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(file)
