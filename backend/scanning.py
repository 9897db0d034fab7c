"""Which photos a folder holds. Reads names and file times, never contents."""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from backend.errors import InvalidInput
from backend.vision.decode import EXTENSIONS

__all__ = ["FolderScan", "FoundPhoto", "scan_folder"]


@dataclass(frozen=True)
class FoundPhoto:
    """A file that is taken for a photo. Where `problem` is set, it cannot be read as one."""

    path: str
    size: int = 0
    mtime_ns: int = 0
    problem: str | None = None


@dataclass
class FolderScan:
    """What a folder holds.

    `passed_over` counts hidden entries, files without a photo's ending and links to folders;
    `unreadable` maps folders that could not be listed to the reason.
    """

    root: str
    photos: list[FoundPhoto] = field(default_factory=list)
    passed_over: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


def scan_folder(folder: str, *, start: Path) -> FolderScan:
    """Lists a folder's photos recursively, in the order of their names.

    A symbolic link to a file is followed; one to a folder is passed over, so that no loop of
    links can be entered and nothing outside the folder is taken in by surprise.

    Args:
        folder: absolute, or relative to `start`.
        start: the folder that relative ones are taken from.

    Raises:
        InvalidInput: there is no such folder, or it cannot be read, or it holds no photo.
    """
    if not folder or "\0" in folder:
        raise InvalidInput(f"{folder!r} is no folder's name")
    try:
        root = os.path.abspath(start / os.path.expanduser(folder))
        root.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"the folder's name {folder!r} is not valid UTF-8: rename it") from None
    scan = FolderScan(root)
    try:
        _walk(root, scan)
    except FileNotFoundError:
        raise InvalidInput(f"the folder {folder} does not exist on the server") from None
    except NotADirectoryError:
        raise InvalidInput(f"{folder} is a file: name the folder that it is in") from None
    except OSError as error:
        raise InvalidInput(f"the folder {folder} cannot be read: {error.strerror}") from None
    if not scan.photos:
        raise InvalidInput(
            f"the folder {folder} holds no photo"
            f" ({scan.passed_over} other entries, {len(scan.unreadable)} unreadable folders):"
            f" files that end in {', '.join(sorted(EXTENSIONS))} are looked for"
        )
    return scan


def _walk(root: str, scan: FolderScan) -> None:
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            if folder == root:
                raise
            scan.unreadable[folder] = error.strerror or str(error)
            continue
        below = []
        for entry in entries:
            if entry.name.startswith("."):
                scan.passed_over += 1
            elif entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and not _links_to_folder(
                entry
            ):
                scan.photos.append(_found(entry))
            else:
                scan.passed_over += 1
        folders.extend(reversed(below))


def _links_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # a loop of links
        return False


def _found(entry: os.DirEntry[str]) -> FoundPhoto:
    try:
        entry.path.encode()
    except UnicodeEncodeError:
        return FoundPhoto(entry.path, problem="the file's name is not valid UTF-8: rename it")
    try:
        status = entry.stat()
    except FileNotFoundError:
        return FoundPhoto(entry.path, problem="the link leads to a file that does not exist")
    except OSError as error:
        return FoundPhoto(entry.path, problem=f"the file cannot be read: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        # Opening a pipe would wait for ever, and a device may have no end.
        return FoundPhoto(entry.path, problem="this is no regular file")
    return FoundPhoto(entry.path, status.st_size, status.st_mtime_ns)
