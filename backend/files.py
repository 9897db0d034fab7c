"""Opens and locks files that somebody else may use too. Blocks: call it in a thread.

Photos lie in folders that the settings allow, wherever a path, a link in it, or an exchange at the
last moment leads. So a path is looked up once; where it has led to is asked of the kernel, and what
is read afterwards is that very file, by its descriptor. The one thing that this cannot tell is a
hard link to a file outside: who may make one could as well have copied it.
"""

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import Final

from backend.errors import Forbidden, InsufficientStorage, InvalidImage, TooLarge

__all__ = [
    "EVERYWHERE",
    "KEPT_FREE_BYTES",
    "PhotoFolders",
    "check_room",
    "lock_file",
    "note_address",
    "owners_address",
    "sync_folder",
]

KEPT_FREE_BYTES: Final = 2**30
_KEPT_FREE_SHARE: Final = 0.05
"""The lesser of both stays free of a disk: databases and logs need room when exports are large."""


class PhotoFolders:
    """The folders that photos may lie in, each with all that is below it."""

    def __init__(self, roots: Iterable[Path] | None, *, without: Iterable[Path] = ()) -> None:
        """Looks at nothing yet.

        Args:
            roots: absolute paths, which may be links; None where photos may lie anywhere.
            without: folders, within those, that are none of them.
        """
        self._roots = None if roots is None else tuple(map(os.fspath, roots))
        self._without = tuple(map(os.fspath, without))

    def with_folder(self, folder: Path) -> "PhotoFolders":
        """The roots, whole, and one more."""
        return PhotoFolders(None if self._roots is None else map(Path, (*self._roots, str(folder))))

    def open_file(self, path: str) -> BufferedReader:
        """Opens a file for reading, and nothing but a file in one of the folders.

        What lies elsewhere is not even opened. A pipe would make the reader wait for ever, and a
        device may have no end.

        Raises:
            Forbidden: the path leads out of the folders.
            InvalidImage: it leads to something that is no regular file, or is none.
            OSError: it leads nowhere, or may not be read.
        """
        found = _look_up(path, os.O_PATH)
        try:
            self._check(found)
            if not stat.S_ISREG(os.fstat(found).st_mode):
                raise InvalidImage("this is no regular file")
            return os.fdopen(_open_found(found, os.O_NONBLOCK, path), "rb")
        finally:
            os.close(found)

    def read_file(self, path: str, max_bytes: int) -> bytes:
        """The bytes of a file of which at most so many are taken into memory.

        Raises:
            Forbidden, InvalidImage, OSError: as `open_file`.
            TooLarge: it has more.
        """
        with self.open_file(path) as file:
            # One byte past the limit tells a file that has grown since its size was looked at.
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise TooLarge(
                f"the file has more than the {max_bytes} bytes that MAX_FILE_BYTES allows"
            )
        return data

    def open_folder(self, path: str, *, may_be_link: bool) -> int:
        """Opens a folder for listing; returns its descriptor.

        Raises:
            Forbidden: the path leads out of the folders, whether there is something or not.
            OSError: it leads to no folder, or it may not be read.
        """
        self._check_path(path)
        found = _look_up(path, os.O_PATH | os.O_DIRECTORY | (0 if may_be_link else os.O_NOFOLLOW))
        try:
            self._check(found)
            return _open_found(found, os.O_DIRECTORY, path)
        finally:
            os.close(found)

    def _check_path(self, path: str) -> None:
        """Refuses what leads out before it is looked at: whether it exists is not told."""
        if self._roots is not None and not self._allows(os.path.realpath(path)):
            raise _outside()

    def _check(self, found: int) -> None:
        if self._roots is not None and not self._allows(_path_of(found)):
            raise _outside()

    def _allows(self, path: str) -> bool:
        return _lies_in(path, self._roots or ()) and not _lies_in(path, self._without)


EVERYWHERE: Final = PhotoFolders(None)
"""For files of ours, and for what a user at a terminal names."""


def _lies_in(path: str, folders: Iterable[str]) -> bool:
    for each in folders:
        try:
            descriptor = os.open(each, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:  # not mounted, say: nothing lies in it
            continue
        try:
            # Asked for each time: what a link leads to is the operator's to change.
            folder = _path_of(descriptor)
        finally:
            os.close(descriptor)
        if path == folder or path.startswith(os.path.join(folder, "")):
            return True
    return False


def _look_up(path: str, flags: int) -> int:
    """Follows a path; what is there is not opened, so that nothing happens to it."""
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except ValueError:  # NUL, or half of a surrogate pair
        raise OSError(errno.EINVAL, "this can be no file's name") from None


def _open_found(found: int, flags: int, path: str) -> int:
    try:
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC | flags)
    except OSError as error:
        error.filename = path  # as it was called
        raise


def _path_of(descriptor: int) -> str:
    """Where the kernel says that a descriptor's file is, links resolved."""
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _outside() -> Forbidden:
    return Forbidden(
        "it lies outside of the folders that photos may be taken from: see ALLOWED_ROOTS and"
        " DATA_PATH"
    )


def lock_file(path: Path) -> int:
    """Makes and locks a file, and returns its descriptor: closing it, or dying, unlocks it.

    The file holds the process id of its owner, and its address where it has one.

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
        owner, *_ = _read_lines(descriptor)
        os.close(descriptor)
        raise BlockingIOError(owner or "unknown") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def note_address(path: Path, address: str) -> None:
    """Says in a file that this process has locked at which URL it can be asked."""
    path.write_text(f"{os.getpid()}\n{address}\n", "ascii")


def owners_address(path: Path) -> str | None:
    """The URL of the process that has a file locked; None where it has none, or nobody has."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        _, address, *_ = *_read_lines(descriptor), "", ""
        return address or None
    finally:
        os.close(descriptor)
    return None


def _read_lines(descriptor: int) -> list[str]:
    return os.pread(descriptor, 1024, 0).decode("ascii", "replace").strip().split("\n")


def sync_folder(folder: Path) -> None:
    """Makes the names of a folder's files last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_room(folder: Path, size: int) -> None:
    """Sees whether so many bytes more may be written to the disk of a folder, there yet or not.

    Raises:
        InsufficientStorage: too little would be left for everything else.
    """
    there = next(each for each in (folder, *folder.parents) if each.exists())
    disk = shutil.disk_usage(there)
    kept = min(KEPT_FREE_BYTES, int(disk.total * _KEPT_FREE_SHARE))
    if disk.free - size < kept:
        raise InsufficientStorage(
            f"the service's disk has no room for {size} bytes more, of which {kept} are kept free:"
            " have its operator make room, and try again"
        )
