"""Which photos a folder holds. Reads names and file times, never contents."""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from backend.errors import Forbidden, InvalidInput
from backend.files import PhotoFolders
from backend.vision.decode import EXTENSIONS

__all__ = ["FolderScan", "FoundPhoto", "nothing_found", "scan_folder"]


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


def scan_folder(folder: str, *, start: Path, within: PhotoFolders) -> FolderScan:
    """Lists a folder's photos recursively, in the order of their names.

    A symbolic link to a file is followed; one to a folder is passed over, so that no loop of
    links can be entered and nothing outside the folder is taken in by surprise. Where a link to a
    file leads is seen when it is read.

    Args:
        folder: absolute, or relative to `start`.
        start: the folder that relative ones are taken from.
        within: the folders that it may lie in.

    Raises:
        Forbidden: it lies elsewhere, or would if there were one.
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
        _walk(root, scan, within)
    except Forbidden as reason:
        raise Forbidden(f"the folder {folder} cannot be read: {reason}") from None
    except FileNotFoundError:
        raise InvalidInput(f"the folder {folder} does not exist on the server") from None
    except NotADirectoryError:
        raise InvalidInput(f"{folder} is a file: name the folder that it is in") from None
    except OSError as error:
        raise InvalidInput(f"the folder {folder} cannot be read: {error.strerror}") from None
    if not scan.photos:
        raise nothing_found(folder, scan)
    return scan


def nothing_found(folder: str, scan: FolderScan) -> InvalidInput:
    """What is said of a folder without a photo."""
    return InvalidInput(
        f"the folder {folder} holds no photo"
        f" ({scan.passed_over} other entries, {len(scan.unreadable)} unreadable folders):"
        f" files that end in {', '.join(sorted(EXTENSIONS))} are looked for"
    )


def _walk(root: str, scan: FolderScan, within: PhotoFolders) -> None:
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            descriptor = within.open_folder(folder, may_be_link=folder == root)
        except (Forbidden, OSError) as error:  # below the root: it was exchanged since it was seen
            if folder == root:
                raise
            scan.unreadable[folder] = getattr(error, "strerror", None) or str(error)
            continue
        try:
            below = _list(descriptor, folder, scan)
        finally:
            os.close(descriptor)
        folders.extend(reversed(below))


def _list(descriptor: int, folder: str, scan: FolderScan) -> list[str]:
    """Takes in what lies in an open folder; returns the folders in it."""
    try:
        with os.scandir(descriptor) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:  # the disk, in the middle of it
        scan.unreadable[folder] = error.strerror or str(error)
        return []
    below = []
    for entry in entries:
        path = os.path.join(folder, entry.name)
        if entry.name.startswith("."):
            scan.passed_over += 1
        elif entry.is_dir(follow_symlinks=False):
            below.append(path)
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and not _links_to_folder(entry):
            scan.photos.append(_found(entry, path))
        else:
            scan.passed_over += 1
    return below


def _links_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # a loop of links
        return False


def _found(entry: os.DirEntry[str], path: str) -> FoundPhoto:
    try:
        path.encode()
    except UnicodeEncodeError:
        return FoundPhoto(path, problem="the file's name is not valid UTF-8: rename it")
    try:
        status = entry.stat()
    except FileNotFoundError:
        return FoundPhoto(path, problem="the link leads to a file that does not exist")
    except OSError as error:
        return FoundPhoto(path, problem=f"the file cannot be read: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        # Opening a pipe would wait for ever, and a device may have no end.
        return FoundPhoto(path, problem="this is no regular file")
    return FoundPhoto(path, status.st_size, status.st_mtime_ns)
