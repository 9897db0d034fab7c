"""A folder of files that can be had again, kept below a size: the least recently used go first.

The folder itself is the record: a file's time of change is when it was last used. A restart thus
forgets nothing, and several processes may share the folder; each counts it anew after having
written a sixteenth of the limit, so that they exceed the limit together by about as much each.
"""

import os
import re
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from backend.errors import InvalidImage
from backend.files import EVERYWHERE

__all__ = ["PhotoCache"]

_log = structlog.get_logger(__name__)

_RECOUNT: Final = 1 / 16
"""Part of the limit that is written before the folder is counted again."""
_ROOM: Final = 1 / 8
"""Part of the limit that is free after a removal: one look at the folder makes room for many."""
_PART_SECONDS: Final = 3600
"""No write takes as long: an unfinished file so old is what a crash has left."""


class PhotoCache:
    """Files of a folder, by their names. Every method blocks: call it in a thread, or in several.

    Only files named as ours are counted, read or removed. What they hold is for the caller to
    check: nothing keeps others from writing there, and nothing is synced.
    """

    def __init__(self, folder: Path, *, max_bytes: int, name: re.Pattern[str]) -> None:
        """Looks at nothing yet; the folder is made by the first write.

        Args:
            folder: where the files lie; other files in it are left alone.
            max_bytes: of all files together; 0 keeps none.
            name: what the names of ours match as a whole.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._name = name
        self._part = re.compile(rf"(?:{name.pattern})\.[a-z0-9_]{{8}}\.part")
        self._lock = threading.Lock()
        self._total: int | None = None
        """Bytes in the folder as far as is known, writes under way included; None: not counted."""
        self._writing = 0
        self._uncounted = 0
        self._complained = False

    def read(self, name: str) -> bytes | None:
        """The content of a file, which counts as used now; None where there is none."""
        path = self._path(name)
        try:
            with EVERYWHERE.open_file(str(path)) as file:
                if os.fstat(file.fileno()).st_size > self._max_bytes:  # it cannot be ours
                    return None
                data = file.read()
        except (OSError, InvalidImage):
            return None
        with suppress(OSError):  # it was removed meanwhile, or may only be read
            # Not the kernel's own "now", which is up to 10 ms late.
            os.utime(path, ns=(time.time_ns(),) * 2)
        return data

    def write(self, name: str, data: bytes) -> bool:
        """Keeps a file, wholly or not at all, and removes others for it.

        Returns:
            Whether it is kept. A full disk, or one that cannot be written to, is logged, once until
            a write succeeds again.
        """
        path = self._path(name)
        if not self._reserve(len(data)):
            return False
        try:
            self._write(path, data)
        except OSError as error:
            self._complain(error)  # what is counted for it is found out with the next sweep
            return False
        finally:
            with self._lock:
                self._writing -= len(data)
        self._complained = False
        return True

    def remove(self, name: str) -> None:
        """Removes a file where there is one."""
        with suppress(OSError):  # it is gone, or is a folder: nothing of ours either way
            self._path(name).unlink()

    def _path(self, name: str) -> Path:
        if not self._name.fullmatch(name):
            raise ValueError(f"{name!r} is no name of this cache")
        return self._folder / name

    def _write(self, path: Path, data: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(".part", f"{path.name}.", self._folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.utime(part, ns=(time.time_ns(),) * 2)
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise

    def _reserve(self, size: int) -> bool:
        """Makes room, where so much can fit at all."""
        with self._lock:
            fits = size <= self._max_bytes
            if self._total is None or (
                fits
                and (
                    self._total + size > self._max_bytes
                    or self._uncounted > self._max_bytes * _RECOUNT
                )
            ):
                self._total = self._sweep(size if fits else 0) + self._writing
                self._uncounted = 0
            if self._total + size > self._max_bytes:
                return False
            self._total += size
            self._writing += size
            self._uncounted += size
            return True

    def _sweep(self, size: int) -> int:
        """Removes what leaves no room for so many bytes, and tells how many are left."""
        files: list[tuple[int, int, str]] = []
        stale = time.time() - _PART_SECONDS
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    ours = self._name.fullmatch(entry.name) is not None
                    if not ours and not self._part.fullmatch(entry.name):
                        continue
                    with suppress(FileNotFoundError):  # another process was faster
                        if not entry.is_file(follow_symlinks=False):
                            continue
                        status = entry.stat(follow_symlinks=False)
                        if ours:
                            files.append((status.st_mtime_ns, status.st_size, entry.path))
                        elif status.st_mtime < stale:
                            os.unlink(entry.path)
        except FileNotFoundError:
            return 0
        except OSError as error:
            self._complain(error)
        total = sum(found_size for _, found_size, _ in files)
        needed = self._writing + size
        if total + needed <= self._max_bytes:
            return total
        for _, found_size, path in sorted(files):
            if total + needed <= self._max_bytes * (1 - _ROOM):
                break
            with suppress(OSError):
                os.unlink(path)
                total -= found_size
        return total

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            _log.warning("cache.unusable", folder=str(self._folder), problem=str(error))
